"""What an edit costs: the loop with `edit=` over the loop without, and many masks at once over one after another.

Two questions, on the embedded model. *Edit*: the n-step loop that puts known pixels (`inpaint`) or block means
(`super_resolution`) back at each step, over the same loop that does not. *Masks*: 64 pictures, each with a mask of its
own and a key of its own, in one call, as a batch and as `jax.vmap` of single pictures, over 64 calls of batch 1.
All programs run in turn, compiled beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Timing, conclude, interleaved, machine, parser, print_table, ratio, target

import cmjax
from cmjax import editing

SIZE, FACTOR = 28, 4


def edit_over_plain(
    model: Any, config: Any, batch: int, steps: int, rounds: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time the loop with each edit against the loop without, from the same start."""
    state, labels, (k_photo, k_x, k_z) = _setting(config, batch, steps)
    photo = jax.random.uniform(k_photo, (batch, SIZE, SIZE, 1), minval=-1.0)
    edits = {
        "inpaint": editing.inpaint(photo, jnp.zeros((SIZE, SIZE, 1), bool).at[8:20, 8:20].set(True)),
        "super_resolution": editing.super_resolution(editing.block_mean(photo, FACTOR), FACTOR),
    }
    x, sample = cmjax.prior(state, k_x, photo.shape), jax.jit(cmjax.sample)
    programs: dict[str, Callable[[], Any]] = {"plain": lambda: sample(model, state, x, k_z, labels)}
    for name, edit in edits.items():
        programs[name] = lambda edit=edit: sample(model, state, x, k_z, labels, edit=edit)
    timing, seconds = interleaved(programs, rounds=rounds)
    result: dict[str, Any] = {"batch": batch, "steps": steps, **timing, "ratio": {}, "cpu_ratio": {}}
    verdicts = []
    for name in edits:
        result["ratio"][name] = ratio(seconds[name], seconds["plain"])
        result["cpu_ratio"][name] = timing[name]["cpu"] / timing["plain"]["cpu"]
        rule = f"batch {batch}, {steps} steps: the loop with {name} over the loop without"
        verdicts.append(target(result["ratio"][name], 1.02, rule))
    return result, verdicts


def masks_over_calls(
    model: Any, config: Any, count: int, steps: int, rounds: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time `count` pictures with a mask and a key each: in one call, and in a call each. The pictures are the same."""
    state, labels, (k_photo, k_x, k_z) = _setting(config, count, steps)
    photos = jax.random.uniform(k_photo, (count, SIZE, SIZE, 1), minval=-1.0)
    edit = editing.inpaint(photos, jax.random.bernoulli(k_photo, 0.5, photos.shape))
    x, keys = cmjax.prior(state, k_x, photos.shape), jax.random.split(k_z, count)
    sample = jax.jit(cmjax.sample)

    @jax.jit
    def vmapped(model: Any, x: jax.Array, keys: jax.Array, labels: jax.Array, edit: Any) -> jax.Array:
        def single(x: jax.Array, key: jax.Array, label: jax.Array, edit: Any) -> jax.Array:
            return cmjax.sample(model, state, x, key, label, edit=edit)

        return jax.vmap(single)(*jax.tree.map(lambda leaf: leaf[:, None], (x, keys, labels, edit)))[:, 0]

    singles = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], (x, keys, labels, edit)) for i in range(count)]
    programs = {
        "one batch": lambda: sample(model, state, x, keys, labels, edit=edit),
        "one vmap": lambda: vmapped(model, x, keys, labels, edit),
        "calls": lambda: [sample(model, state, *one[:3], edit=one[3]) for one in singles],
    }
    drawn = {name: np.concatenate([np.asarray(p) for p in _as_list(run())]) for name, run in programs.items()}
    off = {name: float(np.abs(drawn[name] - drawn["calls"]).max()) for name in ("one batch", "one vmap")}
    timing, seconds = interleaved(programs, rounds=rounds)
    result: dict[str, Any] = {"count": count, "steps": steps, **timing, "ratio": {}, "cpu_ratio": {}, "differs_by": off}
    verdicts = []
    for name in ("one batch", "one vmap"):
        result["ratio"][name] = ratio(seconds[name], seconds["calls"])
        result["cpu_ratio"][name] = timing[name]["cpu"] / timing["calls"]["cpu"]
        verdicts.append(target(result["ratio"][name], 1.0, f"{count} masks, {steps} steps: {name} over {count} calls"))
    return result, verdicts


def _setting(config: Any, batch: int, steps: int) -> tuple[Any, jax.Array, jax.Array]:
    return cmjax.cm.init(config, num_steps=steps), jnp.arange(batch) % 10, jax.random.split(jax.random.key(0), 3)


def _as_list(drawn: Any) -> list[jax.Array]:
    return drawn if isinstance(drawn, list) else [drawn]


def _ms(timing: Timing) -> str:
    return f"{timing.median * 1e3:.1f}"


def _figures(row: dict[str, Any], name: str) -> list[str]:
    return [_ms(row[name]), f"{row['ratio'][name]:.3f}", f"{row['cpu_ratio'][name]:.3f}"]


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="fashion-mnist-cm", help="a name or folder that cmjax.load reads")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    options.add_argument("--masks", type=int, default=64, help="how many masks at once")
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--rounds", type=int, default=9)
    args = options.parse_args(arguments)
    here = machine()
    model, config = cmjax.load(args.model)
    rows, targets = [], []
    for batch in args.batches:
        row, verdicts = edit_over_plain(model, config, batch, args.steps, args.rounds)
        rows.append(row)
        targets += verdicts
    print_table(
        f"{args.steps} steps with an edit over {args.steps} steps without, milliseconds (medians)",
        ["", "without", "inpaint", "ratio", "of processor time", "super_resolution", "ratio", "of processor time"],
        [
            [f"batch {r['batch']}", _ms(r["plain"]), *_figures(r, "inpaint"), *_figures(r, "super_resolution")]
            for r in rows
        ],
    )
    masks, verdicts = masks_over_calls(model, config, args.masks, args.steps, args.rounds)
    targets += verdicts
    print_table(
        f"{args.masks} pictures, a mask and a key each, {args.steps} steps, milliseconds (medians)",
        ["", "time", "over a call each", "of processor time", "pictures differ by"],
        [
            *([name, *_figures(masks, name), f"{masks['differs_by'][name]:.1g}"] for name in ("one batch", "one vmap")),
            [f"{args.masks} calls", _ms(masks["calls"]), "", "", ""],
        ],
    )
    conclude({"program": "editing", "edit": rows, "masks": masks, "targets": targets}, args.json, here)


if __name__ == "__main__":
    main()
