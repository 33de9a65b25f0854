"""Texts on the command line: read prompts, and open the text-to-image model that draws them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.lora_option import merged, read_loras
from cmjax.cli.model_parts import given_parts, refuse_parts
from cmjax.cli.open_model import UnloadedModel
from cmjax.cli.options import InpaintOptions, TextOptions
from cmjax.io import Checkpoint, Embedding, read_embedding
from cmjax.io.captions import caption_texts
from cmjax.io.memory import return_freed_memory

if TYPE_CHECKING:  # all of text to image loads where a text is given
    from cmjax.text_to_image import Prompt

__all__ = [
    "TOLD_GUIDANCE",
    "OpenedText",
    "four_steps",
    "of_texts",
    "open_preview",
    "open_prompts",
    "open_text_checkpoint",
    "open_text_model",
    "read_embeddings",
    "read_prompts",
    "refuse_classes",
]

TOLD_GUIDANCE = 8.0  # the guidance that latent consistency models were published with


class OpenedText(NamedTuple):
    """A text-to-image model whose weights are not read yet, and what is asked of it.

    Attributes:
      model: the model, as other commands open theirs.
      prompts: drawn in turn.
      latents: (h, w, C), the shape in which noise is drawn.
      prompt_of: from numbers of images, i[B], to what is asked for: a `Prompt`, or what an artifact takes.
    """

    model: UnloadedModel
    prompts: tuple[str, ...]
    latents: tuple[int, ...]
    prompt_of: Callable[[np.ndarray], Any]


def read_prompts(options: TextOptions, *, strict: bool = False) -> tuple[str, ...]:
    """Read --prompt and --prompts; () where neither was given.

    Args:
      options: of a command.
      strict: whether empty prompts and lines are refused, rather than kept and skipped.

    Raises:
      UsageError: the file cannot be read, or has no prompt.
    """
    prompts = list(options.prompt or ())
    if strict and not all(prompt.strip() for prompt in prompts):
        raise UsageError("--prompt: a prompt must say something, but one is empty.")
    if options.prompts is not None:
        found = _lines(Path(options.prompts).expanduser(), strict=strict)
        if not found:
            raise UsageError(f"--prompts: {options.prompts} must hold one prompt a line, but it has none.")
        prompts += found
    if not prompts:
        for name in ("negative", "guidance", "size", "embedding", "lora"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name} belongs to texts: give --prompt too.")
        refuse_parts(options, "belongs to texts: give --prompt too")
    return tuple(prompts)


def _lines(file: Path, *, strict: bool) -> list[str]:
    """Read the prompts of a file: one a line, or of a .jsonl file the text of each line's object."""
    with bad_input("--prompts"):
        lines = file.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()):
            if strict and any(map(str.strip, lines)):
                raise UsageError(f"--prompts: {file}, line {number} is empty: take it out, since it asks for nothing.")
            continue
        found.append(_of_object(text, f"{file}, line {number}") if file.suffix.lower() == ".jsonl" else text)
    return found


def _of_object(line: str, where: str) -> str:
    """Read the text of a line of metadata.jsonl, the first where it lists several."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--prompts: {where} must be a JSON object, but is not valid JSON: {error}.") from error
    if not isinstance(entry, dict) or "text" not in entry:
        raise UsageError(f"--prompts: {where} must be a JSON object with text, got {line:.60}.")
    with bad_input("--prompts"):
        return caption_texts(entry["text"], where)[0]


def four_steps(sampler: str, config: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Plan what was asked for, or else four steps."""
    return asked or {"num_steps": 4}


def open_text_model(options: Any, *, fills: bool = False) -> OpenedText:
    """Look a text-to-image model up, check its files, and turn prompts into tokens.

    Args:
      options: of a command, both `TextOptions` and `ModelOptions`.
      fills: whether holes are filled, so that a network that is told of them suits.

    Raises:
      UsageError: there is none, or it is damaged, or an option does not suit it.
    """
    prompts = read_prompts(options)
    opened = open_text_checkpoint(options)
    pipe: Any = opened.checkpoint.model
    channels, latent = pipe.unet.config.in_channels, pipe.autoencoder.latent_channels
    if channels != latent and not fills:
        raise UsageError(
            f"the network reads {channels} channels, {latent} of them noisy latents: it is made to fill holes, "
            "cmjax edit inpaint."
        )
    if channels not in (latent, 2 * latent + 1):
        raise UsageError(f"the network reads {channels} channels, and edits by instructions are not supported.")
    with bad_input():
        tokens = tuple(np.asarray(one) for one in pipe.tokenize(prompts))
    negative, guidance, told = _guidance(pipe, options)

    def prompt_of(numbers: np.ndarray) -> Prompt:
        rows, first = numbers % len(prompts), np.zeros(len(numbers), int)
        return cmjax.text_to_image.Prompt(
            tuple(one[rows] for one in tokens),
            negative=None if negative is None else tuple(np.asarray(one)[first] for one in negative),
            guidance=_repeated(guidance, numbers),
            told=_repeated(told, numbers),
        )

    latents = pipe.latent_shape(1, options.size)[1:]
    return OpenedText(opened, prompts, latents, prompt_of)


def open_text_checkpoint(options: Any) -> UnloadedModel:
    """Look a text-to-image model up, and check its files.

    Args:
      options: of a command, `ModelOptions` with a size.

    Raises:
      UsageError: there is none, or it is damaged, or it does not draw pictures of that size.
    """
    name, dtype, variant = options.model, options.dtype, options.variant
    embeddings, loras, parts = read_embeddings(options), read_loras(options), given_parts(options)

    def load(*, abstract: bool = False) -> Checkpoint:
        if not abstract:
            return_freed_memory()  # the compiler's, for the weights
        try:
            pipe = cmjax.text_to_image.load(
                name, dtype=dtype, param_dtype=dtype, variant=variant, abstract=abstract, **parts
            )
        except MemoryError as error:
            raise UsageError(f"{error} On the command line: --dtype bfloat16.") from error
        with bad_input("--embedding"):
            for embedding in embeddings:
                pipe = cmjax.text_to_image.add_embedding(pipe, embedding)
        pipe = merged(pipe, loras, abstract=abstract)
        return Checkpoint(pipe, pipe.config)  # pyright: ignore[reportArgumentType]

    with bad_input():
        checkpoint = load(abstract=True)
        pipe: Any = checkpoint.model
        height, width = pipe.latent_shape(1, options.size)[1:3]
    factor = pipe.autoencoder.downsampling
    return UnloadedModel(checkpoint, load, (height * factor, width * factor, 3), None, None)


def open_preview(options: Any, pipe: Any) -> Callable[..., Any]:
    """Look up the autoencoder of --preview-autoencoder, and check that it decodes the latents of a model.

    Args:
      options: of `cmjax sample`.
      pipe: the model; its weights may be abstract.

    Returns:
      What loads the autoencoder, abstract or with its weights.

    Raises:
      UsageError: there is none, or it is damaged, or of another model.
    """
    name, dtype = options.preview_autoencoder, options.dtype

    def load(*, abstract: bool = False) -> Any:
        return cmjax.text_to_image.load_autoencoder(name, dtype=dtype, param_dtype=dtype, abstract=abstract)

    from cmjax.text_to_image.draw import check_preview

    with bad_input("--preview-autoencoder"):
        check_preview(pipe, load(abstract=True))
    return load


def read_embeddings(options: Any) -> tuple[Embedding, ...]:
    """Read the files of --embedding; () for a command that has none.

    Raises:
      UsageError: there is no such file, or it is damaged or no embedding.
    """
    with bad_input("--embedding"):
        return tuple(read_embedding(file, token) for file, token in getattr(options, "embedding", None) or ())


def of_texts(name: str, variant: str | None) -> bool:
    """Tell whether a model is one of texts; one that cannot be found is reported by what reads it."""
    with contextlib.suppress(OSError, ValueError, ImportError):
        return cmjax.text_to_image.is_text_model(name, variant=variant)
    return False


def open_prompts(options: Any, number: int) -> OpenedText | None:
    """Open the model of texts for --prompt, one for all pictures or one each; None where no prompt was given.

    Args:
      options: of a command; one that takes no texts has none.
      number: of the pictures.

    Raises:
      UsageError: as for `open_text_model`, or there is another number of prompts, or classes are asked for.
    """
    if not isinstance(options, TextOptions) or not (prompts := read_prompts(options)):
        return None
    if len(prompts) not in (1, number):
        raise UsageError(f"--prompt: give one for all pictures or one each, {number}, got {len(prompts)}.")
    refuse_classes(options)
    return open_text_model(options, fills=isinstance(options, InpaintOptions))


def refuse_classes(options: Any) -> None:
    """Refuse --labels beside --prompt."""
    if options.labels is not None:
        raise UsageError("--labels and --prompt exclude each other: a model of texts has no classes.")


def _guidance(pipe: Any, options: TextOptions) -> tuple[Any, float | None, float | None]:
    """The tokens of --negative, the scale of guidance, and the one that the network is told."""
    is_told = pipe.unet.config.time_cond_proj_dim is not None
    if is_told and options.negative is not None:
        raise UsageError("--negative: the network is told how strongly to follow the prompt, and has no negative one.")
    if is_told:
        return None, None, TOLD_GUIDANCE if options.guidance is None else options.guidance
    guidance = options.guidance if options.guidance != 1 else None  # 1 is the model itself
    if options.negative is not None and guidance is None:
        raise UsageError("--negative acts on guidance: give --guidance too, such as --guidance 2.")
    with bad_input("--negative"):
        negative = None if options.negative is None else pipe.tokenize([options.negative])
    return negative, guidance, None


def _repeated(value: float | None, numbers: np.ndarray) -> Any:
    return None if value is None else np.full(len(numbers), value, np.float32)
