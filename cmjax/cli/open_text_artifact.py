"""Open what `cmjax export` wrote of a model of texts, for `cmjax sample --artifact --prompt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.open_artifact import OpenedArtifact
from cmjax.cli.prompts import TOLD_GUIDANCE, OpenedText

__all__ = ["open_text_artifact"]


def open_text_artifact(opened: OpenedArtifact, options: Any, prompts: tuple[str, ...]) -> OpenedText:
    """Turn prompts into what an artifact takes.

    Args:
      opened: the artifact.
      options: of `cmjax sample`.
      prompts: drawn in turn.

    Raises:
      UsageError: the artifact draws no texts, or does not take an option that was given.
    """
    from cmjax.text_to_image.export import read_tokenizers  # loads all of text to image

    takes: Any = opened.setup.model.held.prompt
    if takes is None:
        raise UsageError("the artifact takes no prompt: leave out --prompt.")
    if options.size is not None:
        raise UsageError("--size: an artifact runs as it was exported; export another with cmjax export --size.")
    is_guided, is_told = "guidance" in takes, "told" in takes
    for name in ("guidance", "negative"):
        if getattr(options, name) is not None and not (is_guided or (is_told and name == "guidance")):
            raise UsageError(f"--{name}: the artifact takes none; export another with cmjax export --guided.")
    with bad_input():
        tokenizers = read_tokenizers(Path(options.artifact))
        tokens = [tokenizer(prompts) for tokenizer in tokenizers]
        away = [tokenizer([options.negative or ""]) for tokenizer in tokenizers] if is_guided else []
    scale = options.guidance if options.guidance is not None else TOLD_GUIDANCE if is_told else 1.0

    def asked(numbers: np.ndarray) -> dict[str, Any]:
        rows, first = numbers % len(prompts), np.zeros(len(numbers), int)
        scales = np.full(len(numbers), scale, np.float32)
        given = {
            "tokens": [one[rows] for one in tokens],
            "negative": [one[first] for one in away],
            "guidance": scales,
            "told": scales,
        }
        return {name: given[name] for name in takes}

    return OpenedText(opened.model, prompts, opened.model.shape, asked)
