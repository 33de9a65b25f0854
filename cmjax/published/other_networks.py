"""Models whose networks are not part of cmjax: rectified flows, transformers, and consistency models in angles."""

from __future__ import annotations

import math

from cmjax.published.row import Published
from cmjax.schedules import flux2_mu

__all__ = ["ROWS"]

_DIT = "DiT, not part of cmjax"
_TOKENS = 4096  # of a picture of 1024 x 1024 pixels
_SIZE = "its shift goes by the size of the picture: this one is for 1024 x 1024 pixels, 4096 tokens"


def _flows() -> list[Published]:
    instaflow = Published(
        "InstaFlow-0.9B", "Stable Diffusion 1", "XCLiu/instaflow_0_9B_from_sd_1_5", "model", sampler="flow", steps=1,
        spacing="trailing", network="UNet that predicts x0 - ε",
        note="give the sampler the network's negative, which predicts ε - x0", licence="CC BY-NC 4.0",
        source="Liu et al. 2024 (InstaFlow); its repository",
    )  # fmt: skip
    schnell = Published(
        "FLUX.1-schnell", "FLUX.1", "black-forest-labs/FLUX.1-schnell", "model", sampler="flow", spacing="trailing",
        config={"shift": 1.0}, network=_DIT, licence="Apache-2.0", source="its page; diffusers' pipeline",
    )  # fmt: skip
    sd35 = Published(
        "Stable Diffusion 3.5 Large Turbo", "Stable Diffusion 3.5", "stabilityai/stable-diffusion-3.5-large-turbo",
        "model", sampler="flow", config={"shift": 3.0}, network=_DIT, licence="Stability AI community",
        source="its demo; the shift of Stable Diffusion 3.5's scheduler files",
    )  # fmt: skip
    z_image = Published(
        "Z-Image-Turbo", "Z-Image", "Tongyi-MAI/Z-Image-Turbo", "model", sampler="flow", steps=8, spacing="trailing",
        config={"shift": 3.0}, network=_DIT, licence="Apache-2.0",
        source="its scheduler file; diffusers' pipeline (9 steps in older ones are 8 calls)",
    )  # fmt: skip
    klein = [
        Published(
            f"FLUX.2-klein-{size}", "FLUX.2", f"black-forest-labs/FLUX.2-klein-{size}", "model", sampler="flow",
            spacing="trailing", config={"use_dynamic_shifting": True}, options={"mu": flux2_mu(_TOKENS, 4)},
            network=_DIT, note=f"{_SIZE} (cmjax.schedules.flux2_mu)", licence=licence,
            source="its repository; diffusers' pipeline",
        )
        for size, licence in (("4B", "Apache-2.0"), ("9B", "FLUX non-commercial"))
    ]  # fmt: skip
    return [instaflow, schnell, sd35, z_image, *klein]


def _loras() -> list[Published]:
    fixed = {"use_dynamic_shifting": True, "base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
    qwen = [
        Published(
            f"Qwen-Image-Lightning {n} steps", "Qwen-Image", "lightx2v/Qwen-Image-Lightning",
            files=tuple(f"Qwen-Image-Lightning-{n}steps-{version}.safetensors" for version in versions),
            sampler="flow", steps=n, spacing="trailing", config=fixed, network=_DIT, note="a shift of 3 at every size",
            licence="Apache-2.0", source="its repository",
        )
        for n, versions in ((4, ("V2.0", "V1.0")), (8, ("V2.0", "V1.1", "V1.0")))
    ]  # fmt: skip
    hyper = "Ren et al. 2024 (Hyper-SD); its page"
    flux = [
        Published(
            f"Hyper-FLUX.1-dev {n} steps", "FLUX.1", "ByteDance/Hyper-SD",
            files=(f"Hyper-FLUX.1-dev-{n}steps-lora.safetensors",), sampler="flow", steps=n, spacing="trailing",
            guidance=3.5, told=True, scale=0.125, config={"use_dynamic_shifting": True},
            options={"image_seq_len": _TOKENS}, network=_DIT, note=_SIZE, licence="of the base model", source=hyper,
        )
        for n in (8, 16)
    ]  # fmt: skip
    sd3 = [
        Published(
            f"Hyper-SD3 {n} steps, guided", "Stable Diffusion 3", "ByteDance/Hyper-SD",
            files=(f"Hyper-SD3-{n}steps-CFG-lora.safetensors",), sampler="flow", steps=n, guidance=guidance,
            scale=0.125, config={"shift": 3.0}, network=_DIT, licence="of the base model", source=hyper,
        )
        for n, guidance in ((4, 3.0), (8, 5.0), (16, 7.0))
    ]  # fmt: skip
    flash = "Chadebec et al. 2025 (Flash Diffusion); its repository"
    pixart = Published(
        "flash-pixart", "PixArt-α", "jasperai/flash-pixart", sampler="lcm", network=_DIT, licence="CC BY-NC 4.0",
        config={"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
        source=f"{flash}; the levels of copies of PixArt's scheduler file",
    )  # fmt: skip
    return [*qwen, *flux, *sd3, pixart]


def _angles() -> list[Published]:
    note = "parameterization.trigflow_of_flow presents its network, which was trained as a flow"
    sana = [
        Published(
            f"SANA-Sprint {size}", "SANA", f"Efficient-Large-Model/Sana_Sprint_{size}_1024px_diffusers", "model",
            sampler="scm", steps=2, guidance=4.5, told=True,
            options={"max_timesteps": 1.57080, "intermediate_timesteps": 1.3}, network=_DIT, note=note,
            licence="NVIDIA source code", source="Chen et al. 2025 (SANA-Sprint); diffusers' pipeline",
        )
        for size in ("0.6B", "1.6B")
    ]  # fmt: skip
    rcm = [
        Published(
            f"rCM Wan2.1 T2V {size}", "Wan 2.1", "worstcoder/Wan", "model", (f"rCM_Wan2.1_T2V_{size}_480p.pt",),
            sampler="scm", timesteps=(math.atan(80.0), 1.5, 1.4, 1.0), config={"sigma_data": 1.0}, network=_DIT,
            note=f"videos; {note}", licence="Apache-2.0 (the code)",
            source="Zheng et al. 2025 (rCM); the script of its repository",
        )
        for size in ("1.3B", "14B")
    ]  # fmt: skip
    return [*sana, *rcm]


ROWS: tuple[Published, ...] = (*_flows(), *_loras(), *_angles())
