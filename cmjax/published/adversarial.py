"""Adversarial and score distillation of Stable Diffusion: Hyper-SD, SDXL-Lightning, Turbo and DMD2."""

from __future__ import annotations

from cmjax.published.row import Published

__all__ = ["ROWS"]

_XL, _SD1 = "Stable Diffusion XL", "Stable Diffusion 1"


def _hyper() -> list[Published]:
    repo, licence, source = "ByteDance/Hyper-SD", "OpenRAIL++", "Ren et al. 2024 (Hyper-SD); its page"
    found = []
    for short, base in (("SDXL", _XL), ("SD15", _SD1)):
        found.append(
            Published(
                f"Hyper-{short} unified", base, repo, files=(f"Hyper-{short}-1step-lora.safetensors",), steps=1,
                eta=1.0, licence=licence, source=source,
                note="1 to 8 steps; with more of them, less eta gives more detail",
            )
        )  # fmt: skip
        found += [
            Published(
                f"Hyper-{short} {n} steps", base, repo, files=(f"Hyper-{short}-{n}steps-lora.safetensors",),
                sampler="ddim", steps=n, spacing="trailing", licence=licence, source=source,
            )
            for n in (2, 4, 8)
        ]  # fmt: skip
        found += [
            Published(
                f"Hyper-{short} {n} steps, guided", base, repo,
                files=(f"Hyper-{short}-{n}steps-CFG-lora.safetensors",), sampler="ddim", steps=n, spacing="trailing",
                guidance=5.0, licence=licence, source=f"{source}, which takes guidance from 5 to 8",
            )
            for n in (8, 12)
        ]  # fmt: skip
    found.append(
        Published(
            "Hyper-SDXL 1 step UNet", _XL, repo, "unet",
            ("Hyper-SDXL-1step-Unet.safetensors", "Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors"), sampler="lcm",
            steps=1, timesteps=(800,), licence=licence, source=source,
        )
    )  # fmt: skip
    return found


def _lightning() -> list[Published]:
    repo, licence = "ByteDance/SDXL-Lightning", "OpenRAIL++"
    source = "Lin et al. 2024 (SDXL-Lightning); its page"
    found = [
        Published(
            "SDXL-Lightning 1 step UNet", _XL, repo, "unet",
            ("sdxl_lightning_1step_unet_x0.safetensors", "sdxl_lightning_1step_x0.safetensors"), sampler="euler",
            steps=1, spacing="trailing", prediction_type="sample", licence=licence, source=source,
            note="its page calls it experimental",
        )
    ]  # fmt: skip
    for n in (2, 4, 8):
        found += [
            Published(
                f"SDXL-Lightning {n} steps {words}", _XL, repo, kind, files, sampler="euler", steps=n,
                spacing="trailing", licence=licence, source=source,
            )
            for words, kind, files in (
                ("LoRA", "lora", (f"sdxl_lightning_{n}step_lora.safetensors",)),
                ("UNet", "unet", (f"sdxl_lightning_{n}step_unet.safetensors", f"sdxl_lightning_{n}step.safetensors")),
            )
        ]  # fmt: skip
    return found


def _turbo() -> list[Published]:
    source = "Sauer et al. 2023 (ADD); its page and scheduler file"
    turbo = [
        Published(
            title, base, f"stabilityai/{title.lower()}", "model", files, sampler="euler_ancestral", steps=1,
            spacing="trailing", licence=licence, source=source, note="512 x 512 pixels; 1 to 4 steps",
        )
        for title, base, files, licence in (
            ("SD-Turbo", "Stable Diffusion 2", ("sd_turbo.safetensors",), "Stability AI community"),
            (
                "SDXL-Turbo", _XL, ("sd_xl_turbo_1.0.safetensors", "sd_xl_turbo_1.0_fp16.safetensors"),
                "Stability AI non-commercial community",
            ),
        )
    ]  # fmt: skip
    styled = [
        Published(
            title, _XL, f"Lykon/{repo}", "model", sampler="dpmpp", steps=n, guidance=2.0, licence="OpenRAIL++",
            source="its page",
        )
        for title, repo, n in (
            ("Dreamshaper XL Lightning", "dreamshaper-xl-lightning", 4),
            ("Dreamshaper XL Turbo", "dreamshaper-xl-v2-turbo", 6),
        )
    ]  # fmt: skip
    return [*turbo, *styled]


def _dmd2() -> list[Published]:
    source = "Yin et al. 2024 (DMD2); its page"
    return [
        Published(
            f"DMD2 {words}", _XL, "tianweiy/DMD2", kind, (file,), sampler="lcm", steps=len(path), timesteps=path,
            licence="CC BY-NC 4.0", source=source,
        )
        for words, kind, file, path in (
            ("4 steps LoRA", "lora", "dmd2_sdxl_4step_lora_fp16.safetensors", (999, 749, 499, 249)),
            ("4 steps UNet", "unet", "dmd2_sdxl_4step_unet_fp16.bin", (999, 749, 499, 249)),
            ("1 step UNet", "unet", "dmd2_sdxl_1step_unet_fp16.bin", (399,)),
        )
    ]  # fmt: skip


ROWS: tuple[Published, ...] = (*_hyper(), *_lightning(), *_turbo(), *_dmd2())
