"""One published few-step model or LoRA: what it is, and the settings that it was published with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from cmjax import samplers
from cmjax.samplers._vp import VPConfig, as_config
from cmjax.samplers.base import SamplerConfig, SamplerState

__all__ = ["BASES", "LEVELS", "Published"]

BASES = {
    "Stable Diffusion 1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "Stable Diffusion 2": "stabilityai/stable-diffusion-2-1-base",
    "Stable Diffusion XL": "stabilityai/stable-diffusion-xl-base-1.0",
    "SSD-1B": "segmind/SSD-1B",
}
"""The models that LoRAs and networks are put into, by their names in the table: their hub ids."""

LEVELS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""The keys of the scheduler files of all Stable Diffusion."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Published(NamedTuple):
    """One model or LoRA, or one file of a repository that has several.

    Attributes:
      title: its name.
      base: the model that it was made of, or is put into.
      repo_id: where it is, on the hub.
      kind: `"lora"`; `"unet"`, a network alone, whose other parts are the base's; or `"model"`, a whole one.
      files: its files in the repository, the usual one first; () for the repository's only one.
      sampler: the name of its sampler, in `cmjax.samplers`.
      steps: how many.
      timesteps: the path by hand; None for one of so many steps.
      spacing: of the steps, such as `"trailing"`; None for the sampler's own, or that of the base's file.
      eta: of the sampler; None for its default, or for a sampler without.
      guidance: the scale; None where none is used.
      told: whether the network is told the guidance, at no cost.
      prediction_type: what the network predicts; None for what its file, or the base's, says.
      scale: of the LoRA.
      config: further keys of the sampler's config.
      options: further arguments of the sampler's `init`.
      network: what draws; cmjax has the UNets of Stable Diffusion.
      note: what else has to be known.
      licence: as its page says.
      source: where the settings are from.
    """

    title: str
    base: str
    repo_id: str
    kind: str = "lora"
    files: tuple[str, ...] = ()
    sampler: str = "tcd"
    steps: int = 4
    timesteps: tuple[float, ...] | None = None
    spacing: str | None = None
    eta: float | None = None
    guidance: float | None = None
    told: bool = False
    prediction_type: str | None = None
    scale: float = 1.0
    config: Mapping[str, Any] = _NOTHING
    options: Mapping[str, Any] = _NOTHING
    network: str = "UNet"
    note: str = ""
    licence: str = ""
    source: str = ""

    @property
    def is_drawn(self) -> bool:
        """Whether `cmjax sample` draws with it; of the others, cmjax has the sampler alone."""
        return self.network == "UNet"

    @property
    def settings(self) -> str:
        """The settings in words."""
        said = [f"{self.sampler} {self.spacing}" if self.spacing else self.sampler]
        said += [f"{self.steps} step{'s' if self.steps > 1 else ''}"]
        said += [f"timesteps {' '.join(f'{t:.5g}' for t in self.timesteps)}"] if self.timesteps else []
        said += [] if self.eta is None else [f"eta {self.eta:g}"]
        said += [f"shift {self.config['shift']:g}"] if "shift" in self.config else []
        said += ["predicts x0"] if self.prediction_type == "sample" else []
        guided = "is told guidance" if self.told else "guidance"
        said += [f"{guided} {self.guidance:g}"] if self.guidance else ["no guidance"]
        said += [f"scale {self.scale:g}"] if self.scale != 1 else []
        return ", ".join(said)

    @property
    def module(self) -> ModuleType:
        """Its sampler."""
        return getattr(samplers, self.sampler)

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of the sampler's config that it was published with, beside those of the base's."""
        found = dict(self.config)
        if self.prediction_type is not None:
            found["prediction_type"] = self.prediction_type
        if self.spacing is not None and self.sampler != "flow":
            found["timestep_spacing"] = self.spacing
        return found

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the sampler's `init`."""
        found: dict[str, Any] = {"num_steps": self.steps} if self.timesteps is None else {"timesteps": self.timesteps}
        if self.spacing is not None and self.sampler == "flow":
            found["spacing"] = self.spacing
        return found | ({} if self.eta is None else {"eta": self.eta}) | dict(self.options)

    def configured(self, config: SamplerConfig) -> SamplerConfig:
        """Put its keys into a config, those that the config has: what its network predicts, and how steps are spaced.

        Example:
          >>> from cmjax.published import find
          >>> find("sdxl_lightning_1step_unet_x0.safetensors").configured(samplers.euler.Config()).prediction_type
          'sample'
        """
        fields = {field.name for field in dataclasses.fields(config)}
        return dataclasses.replace(config, **{key: value for key, value in self.keys.items() if key in fields})

    def state(self, config: SamplerConfig | None = None) -> SamplerState:
        """Plan its path.

        Args:
          config: of the model, such as `pipe.config`; None for Stable Diffusion's noise levels, or the sampler's own.

        Returns:
          The sampler's state, at the start.

        Raises:
          TypeError: the config is for another kind of model.

        Example:
          >>> from cmjax.published import find
          >>> find("stabilityai/sdxl-turbo").state().timesteps
          Array([999.], dtype=float32)
        """
        wanted = self.module.Config
        if config is None:
            default: SamplerConfig = wanted.of(LEVELS) if issubclass(wanted, VPConfig) else wanted()
            config = default
        elif isinstance(config, VPConfig) and issubclass(wanted, VPConfig):
            config = as_config(config, wanted)
        return self.module.init(self.configured(config), **self.arguments)
