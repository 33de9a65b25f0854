"""The published LoRAs that make models draw in few steps, and the settings that go with each."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, NamedTuple

__all__ = ["PUBLISHED", "Published", "published"]

_TRAILING = {2: (999, 499), 4: (999, 749, 499, 249), 8: (999, 874, 749, 624, 499, 374, 249, 124)}


class Published(NamedTuple):
    """One LoRA, or several of one kind.

    Attributes:
      title: its name.
      base: of the model that it was made for.
      repo_id: where it is, on the hub.
      files: what the names of its files begin with; () for the repository's only one.
      sampler: "tcd" or "lcm".
      steps: the number of steps that it is used with.
      timesteps: where its path is one by hand.
      eta: of TCD; None for a sampler without.
      guidance: the scale; None where none is used.
      scale: of the LoRA.
      licence: as its page says.
      source: where the settings are from.
    """

    title: str
    base: str
    repo_id: str
    files: tuple[str, ...] = ()
    sampler: str = "tcd"
    steps: int = 4
    timesteps: tuple[int, ...] | None = None
    eta: float | None = 0.3
    guidance: float | None = None
    scale: float = 1.0
    licence: str = ""
    source: str = ""

    @property
    def settings(self) -> str:
        """The settings in words."""
        said = [self.sampler, f"{self.steps} step{'s' if self.steps > 1 else ''}"]
        said += [f"timesteps {' '.join(map(str, self.timesteps))}"] if self.timesteps else []
        said += [] if self.eta is None else [f"eta {self.eta:g}"]
        said += [f"guidance {self.guidance:g}"] if self.guidance else ["no guidance"]
        said += [f"scale {self.scale:g}"] if self.scale != 1 else []
        return ", ".join(said)


def _tcd() -> list[Published]:
    source = "Zheng et al. 2024 and the repository's README"
    bases = {"SDXL": "Stable Diffusion XL", "SD15": "Stable Diffusion 1", "SD21-base": "Stable Diffusion 2"}
    return [
        Published(f"TCD-{short}-LoRA", base, f"h1t/TCD-{short}-LoRA", licence="MIT", source=source)
        for short, base in bases.items()
    ]


def _lcm() -> list[Published]:
    source = "Luo et al. 2023 (LCM-LoRA) and the pages of the repositories"
    bases = {"sdxl": "Stable Diffusion XL", "sdv1-5": "Stable Diffusion 1", "ssd-1b": "SSD-1B"}
    return [
        Published(
            f"lcm-lora-{short}", base, f"latent-consistency/lcm-lora-{short}",
            sampler="lcm", eta=None, licence="OpenRAIL++", source=source,
        )
        for short, base in bases.items()
    ]  # fmt: skip


def _hyper() -> list[Published]:
    source, found = "Ren et al. 2024 (Hyper-SD) and the repository's page", []
    for short, base, scale in (("SDXL", "Stable Diffusion XL", 0.75), ("SD15", "Stable Diffusion 1", 1.0)):
        common: dict[str, Any] = {
            "repo_id": "ByteDance/Hyper-SD",
            "base": base,
            "licence": "of the base model",
            "source": source,
        }
        found.append(
            Published(
                f"Hyper-{short} 1 step", files=(f"Hyper-{short}-1step-",), steps=1, timesteps=(800,), eta=1.0,
                scale=scale, **common,
            )
        )  # fmt: skip
        found += [
            Published(
                f"Hyper-{short} {n} steps", files=(f"Hyper-{short}-{n}steps-lora",), steps=n, eta=0.0,
                timesteps=_TRAILING[n], **common,
            )
            for n in (2, 4, 8)
        ]  # fmt: skip
        found.append(
            Published(
                f"Hyper-{short} 8 steps, guided", files=(f"Hyper-{short}-8steps-CFG-lora",), steps=8, eta=0.0,
                timesteps=_TRAILING[8], guidance=5.0, **common,
            )
        )  # fmt: skip
    return found


def _others() -> list[Published]:
    lightning = [
        Published(
            f"SDXL-Lightning {n} steps", "Stable Diffusion XL", "ByteDance/SDXL-Lightning",
            (f"sdxl_lightning_{n}step_lora",), steps=n, eta=0.0, timesteps=_TRAILING[n], licence="OpenRAIL++",
            source="Lin et al. 2024 and the repository's page",
        )
        for n in (2, 4, 8)
    ]  # fmt: skip
    dmd2 = Published(
        "DMD2 4 steps", "Stable Diffusion XL", "tianweiy/DMD2", ("dmd2_sdxl_4step_lora",), sampler="lcm", eta=None,
        timesteps=_TRAILING[4], licence="CC BY-NC", source="Yin et al. 2024 and the repository's README",
    )  # fmt: skip
    pcm = [
        Published(
            f"PCM {short} {n} steps", base, "wangfuyun/PCM_Weights", (f"pcm_{short}_smallcfg_{n}step",), steps=n,
            eta=0.0, licence="Apache-2.0", source="Wang et al. 2024 and the repository's demo",
        )
        for short, base in (("sdxl", "Stable Diffusion XL"), ("sd15", "Stable Diffusion 1"))
        for n in (2, 4, 8, 16)
    ]  # fmt: skip
    return [*lightning, dmd2, *pcm]


PUBLISHED: tuple[Published, ...] = (*_tcd(), *_lcm(), *_hyper(), *_others())


def published(path_or_repo_id: str | PurePath, weight_name: str | None = None) -> Published | None:
    """Look a LoRA up, by its hub id or by the name of a file or folder that was downloaded.

    Args:
      path_or_repo_id: what `read` is given.
      weight_name: as there.

    Returns:
      The entry, or None for any other LoRA.

    Example:
      >>> published("h1t/TCD-SDXL-LoRA").settings
      'tcd, 4 steps, eta 0.3, no guidance'
      >>> published("downloads/Hyper-SDXL-1step-lora.safetensors").timesteps
      (800,)
      >>> published("style.safetensors") is None
      True
    """
    path = PurePath(path_or_repo_id)
    names = {path.name, PurePath(weight_name or "").name, path.parent.name}
    for entry in PUBLISHED:
        if entry.files:
            if any(name.startswith(entry.files) for name in names):
                return entry
        elif entry.title in {name.removesuffix(".safetensors") for name in names}:
            return entry
    return None
