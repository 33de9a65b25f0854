"""`cmjax lora`: look into files of LoRAs, merge them into models, extract them from two models."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.lora_option import merged, read_loras
from cmjax.cli.model_parts import given_parts
from cmjax.cli.options import ExtractLoRAOptions, InspectLoRAOptions, LoRAOptions, MergeLoRAOptions
from cmjax.cli.output import print_rows
from cmjax.io.atomic import check_writable
from cmjax.io.folder import refuse_other_files
from cmjax.lora import LoRA
from cmjax.text_to_image.opening import open_source

__all__ = ["run"]

_LISTED = 6  # of texts in a header


def run(options: LoRAOptions) -> None:
    """Do the task that was asked for."""
    with jax.default_device(jax.devices("cpu")[0]):
        if isinstance(options, InspectLoRAOptions):
            _inspect(options)
        elif isinstance(options, MergeLoRAOptions):
            _merge(options)
        elif isinstance(options, ExtractLoRAOptions):
            _extract(options)


def _inspect(options: InspectLoRAOptions) -> None:
    """Print what a file holds."""
    with bad_input():
        lora = cmjax.lora.read(options.file)
    rows = [
        ("file", options.file),
        ("form", _counted(lora, _form)),
        ("modules", _counted(lora, _part)),
        ("ranks", _counted(lora, lambda name, one: str(one.rank or "none"))),
        ("alpha / rank", _counted(lora, lambda name, one: f"{float(one.gain):.3g}")),
        ("numbers", f"{lora.size:,} of {', '.join(sorted({str(leaf.dtype) for leaf in _matrices(lora)}))}"),
    ]
    if base := cmjax.lora.base_of(lora):
        rows.append(("seems to be for", base))
    if entry := cmjax.lora.published(options.file):
        rows.append(("published as", f"{entry.title}, for {entry.base}: {entry.settings} ({entry.source})"))
    rows += [(name, value) for name, value in lora.metadata if len(value) < 200][:_LISTED]
    if options.model is not None:
        with bad_input():
            pipe = cmjax.text_to_image.load(options.model, abstract=True, **given_parts(options))
        with bad_input(options.model):
            cmjax.lora.resolve(lora, pipe)
        rows.append(("fits", f"{options.model}: all {len(lora.factors)} modules"))
    print_rows(rows)


def _counted(lora: LoRA, said: Callable[[str, Any], str]) -> str:
    """What is said of each module, with how many there are of each."""
    counts = collections.Counter(said(name, one) for name, one in lora.factors.items())
    if len(counts) == 1:
        return next(iter(counts))
    most = [f"{value} ({count})" for value, count in counts.most_common(8)]
    return ", ".join(most) + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")


def _form(name: str, factors: Any) -> str:
    kind = {"Product": "LoRA", "Hadamard": "LoHa", "Kronecker": "LoKr"}[type(factors.form).__name__]
    if getattr(factors.form, "mid", None) is not None:
        kind = "LoCon with a window between"
    return kind if factors.magnitude is None else f"{kind} with a magnitude (DoRA)"


def _part(name: str, factors: Any) -> str:
    for part in ("text_encoder_2", "lora_te2", "text_encoder", "lora_te1", "lora_te"):
        if name.startswith(part):
            return "text encoder 2" if "2" in part else "text encoder"
    return "unet"


def _matrices(lora: LoRA) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(lora) if leaf.ndim]


def _merge(options: MergeLoRAOptions) -> None:
    """Write the model with LoRAs in its weights."""
    _refuse_out(options.out)
    loras = read_loras(options)
    given = {"variant": options.variant, **given_parts(options)}
    with bad_input():
        pipe = cmjax.text_to_image.load(options.model, abstract=True, **given)
        given["param_dtype"] = _loaded_in(options)
    merged(pipe, loras, abstract=True)
    with bad_input(), Console(stderr=True).status(f"reading {escape(options.model)}"):
        pipe = cmjax.text_to_image.load(options.model, **given)
    pipe = merged(pipe, loras, abstract=False)
    _refuse_overflow(pipe, options.dtype)
    with bad_input("OUT"), Console(stderr=True).status(f"writing {escape(options.out)}"):
        cmjax.text_to_image.save(pipe, options.out, dtype=options.dtype)
    print_rows(
        (
            ("model", options.model),
            *(("lora", f"{one.name}, scale {one.scale:g}, {len(one.lora.factors)} modules") for one in loras),
            ("written", f"{options.out}, in {options.dtype}"),
        )
    )


def _refuse_overflow(pipe: Any, dtype: str) -> None:
    """Refuse sums that a dtype cannot hold, which a file would hold as infinity."""
    largest = float(jnp.finfo(dtype).max)
    for part, network in pipe.networks.items():
        for name, leaf in network.leaves().items():
            if name.endswith(".kernel") and not bool((jnp.abs(leaf) <= largest).all()):
                raise UsageError(
                    f"--lora: the sum is larger than {dtype} can hold, or no number, first in {part}.{name}: take "
                    "smaller scales, or --dtype bfloat16 or float32."
                )


def _loaded_in(options: MergeLoRAOptions) -> str:
    """In what weights wait for the sum: in float32, unless they are stored in what is written; then nothing is lost."""
    parts = {name: value for name, value in given_parts(options).items() if name != "tokenizer"}
    source = open_source(options.model, variant=options.variant, **parts)
    stored = {value.dtype for part in source.parts.values() for value in part.tensors.values() if value.ndim > 1}
    return options.dtype if stored == {jnp.dtype(options.dtype)} else "float32"


def _extract(options: ExtractLoRAOptions) -> None:
    """Write the LoRA between two models, and say how much of the difference it keeps."""
    out = Path(options.out)
    if out.suffix != ".safetensors":
        raise UsageError(f"OUT must end in .safetensors, got {out}.")
    with bad_input("OUT"):
        check_writable(out)
    with bad_input(), Console(stderr=True).status("reading both models"):
        base, tuned = (cmjax.text_to_image.load(name) for name in (options.base, options.tuned))
    with bad_input(), Console(stderr=True).status("extracting"):
        lora = cmjax.lora.extract(base, tuned, options.rank)
    kept = _kept(base, tuned, lora)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(options.dtype)) if leaf.ndim else leaf, lora)
    with bad_input("OUT"):
        cmjax.lora.write(half, out, options.style)
    table = Table(box=None, pad_edge=False)
    for column in ("part", "modules", "of the difference kept"):
        table.add_column(column)
    for part, (count, share) in kept.items():
        table.add_row(part, str(count), f"{share:.1%}")
    Console(highlight=False).print(table)
    print_rows((("written", f"{out} ({out.stat().st_size / 2**20:.1f} MiB), rank {options.rank}"),))


def _kept(base: Any, tuned: Any, lora: LoRA) -> dict[str, tuple[int, float]]:
    """Of each part: how many modules differ, and the share of the squared difference of all kernels that is kept."""
    found = {}
    for part, network in base.networks.items():
        old, new = network.leaves(), tuned.networks[part].leaves()
        chosen = lora.of(part)
        lost = total = 0.0
        for name, factors in chosen.items():
            change = np.asarray(new[f"{name}.kernel"], np.float64) - np.asarray(old[f"{name}.kernel"], np.float64)
            lost += float(((change - np.asarray(factors.delta(old[f"{name}.kernel"]))) ** 2).sum())
            total += float((change**2).sum())
        if chosen:
            found[part] = (len(chosen), 1 - lost / total)
    return found


def _refuse_out(out: str) -> None:
    path = Path(out).expanduser()
    with bad_input("OUT"):
        check_writable(path)
        refuse_other_files(path)
        is_there = path.exists() or path.is_symlink()
        if is_there and not path.is_dir() and path.suffix != ".safetensors":
            raise UsageError(f"OUT: {path} is neither a folder nor a .safetensors file: name a new one.")
