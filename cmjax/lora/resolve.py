"""Find the modules that a file of a LoRA means, by the names that a model has: nothing is guessed."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable

from cmjax.io.weights import some_of
from cmjax.lora._checks import refuse_no_lora
from cmjax.lora.parts import Model, networks
from cmjax.models import Network
from cmjax.models.clip import TextConfig
from cmjax.models.lora import Factors, LoRA, kernels, pixel_layers
from cmjax.models.original_names import unet_modules
from cmjax.models.unet2d_condition import UNetConditionConfig

__all__ = ["base_of", "resolve"]

_LISTED = 12
# How the names of a part's modules begin in files.
_DOTTED = {"unet": ("unet.",), "text_encoder": ("text_encoder.",), "text_encoder_2": ("text_encoder_2.",)}
_KOHYA = {
    "unet": ("lora_unet_", "lycoris_unet_"),
    "text_encoder": ("lora_te_", "lora_te1_", "lycoris_te_", "lycoris_te1_"),
    "text_encoder_2": ("lora_te2_", "lycoris_te2_"),
}
# What models of other kinds call their modules.
_OTHERS = {
    "Flux": ("double_blocks", "single_blocks", "single_transformer_blocks"),
    "Stable Diffusion 3": ("joint_blocks", "transformer.transformer_blocks", "lora_transformer_transformer_blocks"),
    "Wan": ("blocks_0_cross_attn", "blocks.0.cross_attn"),
    "AnimateDiff": ("motion_modules",),
    "Stable Cascade": ("lora_prior_unet",),
}


def resolve(lora: LoRA, target: Network | Model) -> LoRA:
    """Give the modules of a LoRA the names of a model's, and its factors the axes of their kernels.

    `merge`, `attach` and `write` take what this returns; `merge` and `attach` call it themselves.

    Args:
      lora: from `read`.
      target: a text-to-image model, or one of its networks.

    Returns:
      The LoRA, its modules named by part and place: `unet.mid_block.attentions.0.proj_in`.

    Raises:
      ValueError: modules are not in the model, or factors do not fit their kernels; the message lists them, and says
        for which base the LoRA seems to be.
      TypeError: target is no model, or lora is none.

    Example:
      >>> import cmjax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> resolve(cmjax.lora.LoRA({}), pipe)
      LoRA(0 modules, rank none, 0 numbers)
    """
    refuse_no_lora(lora)
    parts = networks(target)
    shapes = {f"{part}.{name}": shape for part, network in parts.items() for name, shape in kernels(network).items()}
    of_pixels = {f"{part}.{name}" for part, network in parts.items() for name in pixel_layers(network)}
    known = _names(parts)
    found: dict[str, Factors] = {}
    unknown, misfits = [], []
    for module, factors in lora.factors.items():
        names = known.get(module, set())
        if len(names) != 1:
            unknown.append(module)
            continue
        (name,) = names
        if name in found:
            raise ValueError(f"the LoRA changes {name} twice, once as {module}.")
        try:
            found[name] = factors.fit(shapes[name]).replace(of_pixels=name in of_pixels)
        except ValueError as error:
            misfits.append(f"{module} changes a kernel of shape {shapes[name]}, but {error}")
    if unknown or misfits:
        raise ValueError(_refusal(lora, parts, unknown, misfits, known))
    return LoRA(dict(sorted(found.items())), lora.metadata)


def _names(parts: dict[str, Network]) -> dict[str, set[str]]:
    """Every name that files have for a module, to its name here."""
    known: dict[str, set[str]] = defaultdict(set)
    for part, network in parts.items():
        original = _original(network)
        for name in kernels(network):
            for called in {name, original.get(name, name), *_shorter(network, name)}:
                for said in (called, *(f"{prefix}{called}" for prefix in _DOTTED.get(part, ()))):
                    known[said].add(f"{part}.{name}")
                for prefix in _KOHYA.get(part, ()):
                    known[prefix + called.replace(".", "_")].add(f"{part}.{name}")
    return known


def _original(network: Network) -> dict[str, str]:
    """The names in Stable Diffusion's own files, by ours."""
    if not isinstance(network.config, UNetConditionConfig):
        return {}
    return {ours: theirs for theirs, ours in unet_modules(network.config).items()}


def _shorter(network: Network, name: str) -> Iterable[str]:
    """Text encoders' names without the prefix that newer files lack."""
    if isinstance(network.config, TextConfig) and name.startswith("text_model."):
        yield name.removeprefix("text_model.")


# ---- what does not fit -----------------------------------------------------------------------------------------------


def _refusal(
    lora: LoRA, parts: dict[str, Network], unknown: list[str], misfits: list[str], known: dict[str, set[str]]
) -> str:
    said = []
    if unknown:
        is_slip = len(unknown) <= _LISTED  # in a few names; of many, the LoRA is for another model
        near = [_with_nearest(module, known) if is_slip else module for module in unknown[:_LISTED]]
        more = f" (and {len(unknown) - _LISTED} more)" if len(unknown) > _LISTED else ""
        said.append(
            f"the model has no module for {len(unknown)} of the LoRA's {len(lora.factors)}: {', '.join(near)}{more}"
        )
    if misfits:
        said.append(f"factors do not fit: {some_of(misfits, _LISTED)}")
    base = base_of(lora)
    if base:
        said.append(f"the LoRA seems to be for {base}")
    elif "unet" in parts and len(parts) == 1 and all(_is_of_text(module) for module in unknown):
        said.append("it changes text encoders too: give the whole TextToImage in place of its network")
    return ". ".join(one[0].upper() + one[1:] if i else one for i, one in enumerate(said)) + "."


def _with_nearest(module: str, known: dict[str, set[str]]) -> str:
    near = difflib.get_close_matches(module, [name for name in known if name[:8] == module[:8]], n=1, cutoff=0.8)
    return f"{module} (nearest: {near[0]})" if near else module


def _is_of_text(module: str) -> bool:
    return module.startswith(("lora_te", "text_", "lycoris_te"))


def base_of(lora: LoRA) -> str | None:
    """Tell for which kind of model a LoRA seems to be: by names, and by the width of the text that it reads.

    Args:
      lora: from `read`.

    Returns:
      Such as "Stable Diffusion XL"; None where nothing says.

    Raises:
      TypeError: lora is none.
    """
    refuse_no_lora(lora)
    for kind, words in _OTHERS.items():
        if any(word in module for module in lora.factors for word in words):
            return kind
    widths = set()
    for module, factors in lora.factors.items():
        if module.endswith(("attn2.to_k", "attn2_to_k", "attn2.to_v", "attn2_to_v")):
            down = getattr(factors.form, "down", None)
            widths |= set() if down is None else {down.shape[-2]}
    bases = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL", 1280: "SDXL's refiner"}
    return bases.get(widths.pop()) if len(widths) == 1 else None
