"""What the card can do: the figures that all others are shares of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from common import interleaved

from gpu_parts import Run, part

__all__ = ["ceilings", "rate"]


@part("ceilings", place=0, share=25)
def ceilings(run: Run) -> None:
    """Bytes a second of a device copy, operations a second of a large matrix product."""
    from unet_forward import matmul_rates

    device = jax.devices()[0]
    run.row("device", kind=device.device_kind, platform=device.platform, version=str(device.client.platform_version))
    x = jnp.arange((1 << 20 if run.tiny else 1 << 30) // 4, dtype=jnp.float32)
    copy = jax.jit(jnp.copy)
    timing, _ = interleaved({"copy": lambda: copy(x)}, rounds=3 if run.tiny else 9)
    run.row(
        "copy", bytes=x.nbytes, ms=timing["copy"].median * 1e3,
        gigabytes_per_second=2 * x.nbytes / timing["copy"].median / 1e9,
    )  # fmt: skip
    size = 128 if run.tiny else 8192
    for dtype, precision in (("bfloat16", None), ("float32", None), ("float32", "highest")):
        name = f"matmul {dtype}" + (f", {precision}" if precision else "")
        if run.has(3, name):
            with jax.default_matmul_precision(precision):
                flops = matmul_rates(size, dtype, None, "")["jax"]
            run.row(name, size=size, tflops=flops / 1e12)


def rate(run: Run, row: str, figure: str) -> float | None:
    """A ceiling of this run, or None where it was not measured."""
    rows = run.earlier("ceilings").get("rows", ())
    return next((each[figure] for each in rows if each["name"] == row), None)
