"""Consistency distillation of Stable Diffusion: TCD, LCM, PCM and Flash Diffusion."""

from __future__ import annotations

from cmjax.published.row import Published

__all__ = ["ROWS"]

_XL, _SD1 = "Stable Diffusion XL", "Stable Diffusion 1"


def _tcd() -> list[Published]:
    source = "Zheng et al. 2024; its page"
    bases = {"SDXL": _XL, "SD15": _SD1, "SD21-base": "Stable Diffusion 2"}
    return [
        Published(f"TCD-{short}-LoRA", base, f"h1t/TCD-{short}-LoRA", eta=0.3, licence="MIT", source=source)
        for short, base in bases.items()
    ]


def _lcm() -> list[Published]:
    bases = {"sdxl": _XL, "sdv1-5": _SD1, "ssd-1b": "SSD-1B"}
    loras = [
        Published(
            f"lcm-lora-{short}", base, f"latent-consistency/lcm-lora-{short}", sampler="lcm", licence="OpenRAIL++",
            source="Luo et al. 2023 (LCM-LoRA); its page, which takes guidance up to 2 too",
        )
        for short, base in bases.items()
    ]  # fmt: skip
    dreamshaper = Published(
        "LCM Dreamshaper v7", _SD1, "SimianLuo/LCM_Dreamshaper_v7", "model", ("LCM_Dreamshaper_v7_4k.safetensors",),
        sampler="lcm", guidance=8.0, told=True, licence="MIT", source="Luo et al. 2023 (LCM); its page",
    )  # fmt: skip
    networks = [
        Published(
            f"lcm-{short}", base, f"latent-consistency/lcm-{short}", "unet", sampler="lcm", guidance=8.0, told=True,
            licence="OpenRAIL++", source=source,
        )
        for short, base, source in (
            ("sdxl", _XL, "Luo et al. 2023 (LCM); its page"),
            ("ssd-1b", "SSD-1B", "Luo et al. 2023 (LCM); diffusers' test of it"),
        )
    ]  # fmt: skip
    return [*loras, dreamshaper, *networks]


def _pcm() -> list[Published]:
    page, demo = "Wang et al. 2024 (PCM); its page", "Wang et al. 2024 (PCM); the demo of its repository"
    kinds = [(f"smallcfg {n} steps", f"smallcfg_{n}step", n, None, page) for n in (2, 4, 8, 16)]
    kinds += [
        (f"normalcfg {n} steps", f"normalcfg_{n}step", n, guidance, source)
        for n, guidance, source in ((4, 3.0, page), (8, 4.5, page), (16, 7.5, demo))
    ]
    found = []
    for short, base in (("sdxl", _XL), ("sd15", _SD1)):
        found += [
            Published(
                f"PCM {short} {title}", base, "wangfuyun/PCM_Weights",
                files=(f"{short}/pcm_{short}_{file}_converted.safetensors",), sampler="ddim", steps=n,
                spacing="trailing", guidance=guidance, licence="not said", source=source,
            )
            for title, file, n, guidance, source in kinds
        ]  # fmt: skip
        found.append(
            Published(
                f"PCM {short} like LCM", base, "wangfuyun/PCM_Weights",
                files=(f"{short}/pcm_{short}_lcmlike_lora_converted.safetensors",), sampler="lcm", licence="not said",
                source=demo,
            )
        )  # fmt: skip
    return found


def _flash() -> list[Published]:
    source = "Chadebec et al. 2025 (Flash Diffusion); its repository"
    return [
        Published(f"flash-{short}", base, f"jasperai/flash-{short}", sampler="lcm", licence=licence, source=source)
        for short, base, licence in (("sd", _SD1, "CC BY-NC 4.0"), ("sdxl", _XL, "CC BY-NC-ND 4.0"))
    ]


ROWS: tuple[Published, ...] = (*_tcd(), *_lcm(), *_pcm(), *_flash())
