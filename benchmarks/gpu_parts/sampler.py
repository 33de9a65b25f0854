"""The samplers without a network: the bandwidth of one step, and whole loops."""

from __future__ import annotations

import jax

from gpu_parts import Run, part
from gpu_parts.ceilings import rate

__all__ = ["bandwidth"]


@part("bandwidth", place=4, share=20)
def bandwidth(run: Run) -> None:
    """One step against a copy, and loops without a network beside diffusers' schedulers."""
    import bandwidth as program
    import step_overhead
    from unet_forward import reference

    rows, size = program.measure(4 if run.tiny else 8192, 1 if run.tiny else 7)
    ceiling = rate(run, "copy", "gigabytes_per_second")
    for row in rows:
        speed = row["gigabytes_per_second"]
        run.row(
            row["program"], bytes_per_array=size, ms=row["seconds"].median * 1e3, gigabytes_per_second=speed,
            of_copy=row["share_of_copy"], of_ceiling=speed / ceiling if ceiling else None,
        )  # fmt: skip
        if row["arrays_moved"] == 4:
            run.target(row["share_of_copy"], 0.8, f"{row['program']}: share of the bandwidth of a copy", at_least=True)
    torch, device = reference(jax.default_backend() == "gpu")
    run.result["torch"] = torch is not None
    for shape, batch in [("28x28x1", 1)] if run.tiny else [("64x64x4", 1), ("64x64x4", 64)]:
        for sampler in step_overhead.CONFIGS:
            name = f"{sampler}, 4 steps of {shape}, batch {batch}"
            if not run.has(3, name):
                continue
            with run.attempt(name):
                row, verdicts = step_overhead.compare(sampler, shape, batch, 1 if run.tiny else 7, torch and device)
                ms = {f"ms {k}": timing.median * 1e3 for k, timing in row["seconds"].items() if k.endswith("whole")}
                run.row(name, **ms, **{k: v for k, v in row.items() if isinstance(v, float)})
                for line in verdicts:
                    run.target(line["value"], line["limit"], line["rule"])
