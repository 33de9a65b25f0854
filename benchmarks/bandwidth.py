"""The speedometer: bytes that one jitted sampler step moves per second, beside a plain copy on the same device.

A step with the noise *given* must read x, the network's output and z, and write the next x: four arrays. With the
noise *drawn* it need not read z: three. The floor is set by memory, and `copy` (one array read, one written) shows what
memory gives. Arrays are far larger than any cache.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from common import conclude, interleaved, machine, parser, print_table, ratio, target

import cmjax

SAMPLE = (64, 64, 4)


def measure(batch: int, rounds: int) -> tuple[list[dict[str, Any]], int]:
    """Time the step of every sampler and the copy; returns rows and the bytes of one array."""
    shape, key = (batch, *SAMPLE), jax.random.key(0)
    x, out, z = (jax.random.normal(k, shape) for k in jax.random.split(key, 3))
    states = {
        "cm": cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=4),
        "tcd": cmjax.tcd.init(cmjax.tcd.TCDConfig(), num_steps=4),
        "lcm": cmjax.lcm.init(cmjax.lcm.LCMConfig(), num_steps=4),
    }
    copy = jax.jit(jnp.copy)
    drawn = jax.jit(lambda state, out, x, key: cmjax.step(state, out, x, key)[1])
    given = jax.jit(lambda state, out, x, z: state.renoise(state.predict(out, x), z))
    normal = jax.jit(lambda key: jax.random.normal(key, shape))
    programs: dict[str, Any] = {"copy": lambda: copy(x), "normal draw": lambda: normal(key)}
    arrays = {"copy": 2, "normal draw": 1}
    for name, state in states.items():
        programs[f"{name}, noise given"] = lambda state=state: given(state, out, x, z)
        programs[f"{name}, noise drawn"] = lambda state=state: drawn(state, out, x, key)
        arrays |= {f"{name}, noise given": 4, f"{name}, noise drawn": 3}
    timing, seconds = interleaved(programs, rounds=rounds)
    rows = []
    for name, count in arrays.items():
        rows.append(
            {
                "program": name,
                "arrays_moved": count,
                "gigabytes_per_second": count * x.nbytes / timing[name].median / 1e9,
                "share_of_copy": ratio([count * s for s in seconds["copy"]], [2 * s for s in seconds[name]]),
                "seconds": timing[name],
            }
        )
    return rows, int(x.nbytes)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    default = 512 if jax.default_backend() == "cpu" else 8192
    options.add_argument("--batch", type=int, default=default, help="samples of 64 x 64 x 4 float32 (64 KiB each)")
    options.add_argument("--rounds", type=int, default=15)
    args = options.parse_args(arguments)
    here = machine()
    rows, size = measure(args.batch, args.rounds)
    print_table(
        f"One step, arrays of {size / 1e6:.0f} MB (medians)",
        ["", "arrays", "ms", "GB/s", "of copy"],
        [
            [
                r["program"],
                r["arrays_moved"],
                f"{r['seconds'].median * 1e3:.2f}",
                f"{r['gigabytes_per_second']:.1f}",
                f"{r['share_of_copy']:.0%}",
            ]
            for r in rows
        ],
    )
    targets = [
        target(row["share_of_copy"], 0.8, f"{row['program']}: share of the bandwidth of a copy", at_least=True)
        for row in rows
        if row["arrays_moved"] == 4
    ]
    conclude({"program": "bandwidth", "bytes_per_array": size, "rows": rows, "targets": targets}, args.json, here)


if __name__ == "__main__":
    main()
