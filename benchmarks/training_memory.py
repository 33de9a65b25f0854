"""What a step of TCD-LoRA training holds in memory, counted: no time and no resident set on this page is measured.

The step of the recipe `tcd-lora` is traced for a network in its published size: weights in bfloat16, which it computes
in, a LoRA of rank 64 in float32, the guided teacher with the same weights. What is counted:

- the weights of the base, which teacher, target and student share;
- the factors, their gradient, the optimizer's state and one average;
- what the gradient keeps between its two passes, as the traced program says it: with every array, and with recomputed
  blocks (`remat`);
- the largest array that the program makes.

Their sum is an estimate: a compiler adds what one block needs at a time, and may compute cheap arrays again rather than
keep them. A card is said to fit where the sum and a quarter of it are no more than its memory.

`--compile` also asks XLA for the arguments and temporary arrays of the whole step on this machine's device. On a CPU it
computes bfloat16 in float32, and drops the barriers that keep recomputed blocks apart.
"""

from __future__ import annotations

import os

os.environ["CMJAX_CPU_WORKAROUNDS"] = "0"  # the program as accelerators have it

import math
from typing import Any

import jax
import jax.numpy as jnp
from common import conclude, machine, parser, print_table

import cmjax

CARDS = {"24 GB": 24e9, "80 GB": 80e9}
ROOM = 1.25
TOKENS = 77
OPTIMIZERS = {
    "AdamW": {"name": "adamw"},
    "AdamW, mean in bfloat16": {"name": "adamw", "mu_dtype": "bfloat16"},
    "Lion, mean in bfloat16": {"name": "lion", "mu_dtype": "bfloat16"},
    "Adafactor": {"name": "adafactor"},
}


def size(tree: Any) -> int:
    """Bytes of all arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def spec(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def student_of(model: str, rank: int) -> tuple[Any, Any]:
    """A network without numbers, and the same with a LoRA beside its weights."""
    import full_size_texts

    from cmjax.models import lora
    from cmjax.models.lora import Factors, Product

    base = full_size_texts.abstract(model, dtype="bfloat16", param_dtype="bfloat16").unet
    factors = {
        name: Factors(Product(spec((*shape[:-1], rank)), spec((rank, shape[-1]))), spec(()))
        for name, shape in lora.kernels(base).items()
        if name.endswith(cmjax.lora.TARGETS)
    }
    return base, lora.attach(base, factors, spec(()))


def given(config: Any, batch: int, side: int) -> tuple[Any, Any]:
    """Latents and conditions without numbers."""
    from cmjax.guidance import WithNull
    from cmjax.text_to_image import TextCond

    cond = TextCond(spec((batch, TOKENS, config.cross_attention_dim)))
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        cond = cond.replace(pooled=spec((batch, pooled)), sizes=spec((batch, 6)))
    return spec((batch, side, side, config.in_channels)), WithNull(cond, cond)


def recipe_of(batch: int, optimizer: dict[str, Any], *, remat: bool) -> Any:
    from cmjax import recipes, training

    said = {name: value for name, value in recipes.read("tcd-lora").items() if name not in ("lora", "optimizer")}
    return training.Recipe().changed({**said, "batch_size": batch, "remat": remat, "optimizer": optimizer}, "tcd-lora")


def kept(base: Any, student: Any, x0: Any, cond: Any, recipe: Any) -> tuple[int, int]:
    """Bytes that the gradient of a step keeps between its passes, and of the largest array that it makes."""
    from cmjax import training
    from cmjax.models import combine, partition, remat

    trained, frozen = partition(student)
    config = cmjax.tcd.TCDConfig()

    def forward(trained: Any, frozen: Any, base: Any, x0: Any, cond: Any, key: Any) -> Any:
        def objective(trained: Any) -> Any:
            model = combine(trained, frozen)
            learner = training.Learner(remat(model) if recipe.remat else model, model, config, (base, config))
            return recipe.method.loss(learner, x0, cond, key, jnp.int32(0), recipe.steps).mean()

        return jax.tree.leaves(jax.vjp(objective, trained)[1])

    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr = jax.make_jaxpr(forward)(trained, frozen, base, x0, cond, key).jaxpr
    outside = {id(var) for var in (*jaxpr.invars, *jaxpr.constvars)}
    arrays = {id(var): bytes_of(var.aval) for var in jaxpr.outvars if id(var) not in outside}
    return sum(arrays.values()), largest(jaxpr)


def bytes_of(aval: Any) -> int:
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 0)


def largest(jaxpr: Any) -> int:
    """Bytes of the largest array in a program and in all that it calls."""
    most = 0
    for equation in jaxpr.eqns:
        most = max([most, *(bytes_of(var.aval) for var in equation.outvars if hasattr(var.aval, "dtype"))])
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda one: hasattr(one, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                most = max(most, largest(inner))
    return most


def compiled(base: Any, student: Any, x0: Any, cond: Any, recipe: Any) -> dict[str, int]:
    """What XLA says of the whole step on this machine's device."""
    from cmjax import training
    from cmjax.models import partition

    trained, frozen = partition(student)
    state = jax.eval_shape(lambda trained: training.init(trained, recipe), trained)
    key, config = jax.eval_shape(lambda: jax.random.key(0)), cmjax.tcd.TCDConfig()
    static = {"recipe": recipe, "config": config, "teacher_config": config}
    lowered = training.train_step.lower(state, x0, cond, key, base, frozen, **static)
    memory: Any = lowered.compile().memory_analysis()
    return {"arguments": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes}


def count(model: str, batch: int, side: int, rank: int, *, compiling: bool) -> dict[str, Any]:
    """Count for one network, with and without recomputed blocks, for each optimizer."""
    from cmjax.models import partition

    base, student = student_of(model, rank)
    trained, _ = partition(student)
    x0, cond = given(base.config, batch, side)
    found: dict[str, Any] = {
        "model": model, "batch": batch, "latents": side, "rank": rank,
        "weights": size(base), "factors": size(trained), "numbers": sum(leaf.size for leaf in jax.tree.leaves(trained)),
        "optimizers": {
            name: size(jax.eval_shape(recipe_of(batch, options, remat=False).transformation().init, trained))
            for name, options in OPTIMIZERS.items()
        },
        "rows": [],
    }  # fmt: skip
    for remat in (False, True):
        recipe = recipe_of(batch, OPTIMIZERS["AdamW"], remat=remat)
        held, most = kept(base, student, x0, cond, recipe)
        more = {"compiled": compiled(base, student, x0, cond, recipe)} if compiling else {}
        for name, state in found["optimizers"].items():
            total = found["weights"] + 3 * found["factors"] + state + held + most
            fits = {card: bool(ROOM * total <= room) for card, room in CARDS.items()}
            row = {"remat": remat, "optimizer": name, "kept": held, "largest": most, "total": total, "fits": fits}
            found["rows"].append({**row, **more})
            more = {}
    return found


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=["sdxl"], help="of tests/support/full_size_texts.py")
    options.add_argument("--batches", type=int, nargs="+", default=[1])
    options.add_argument("--rank", type=int, default=64)
    options.add_argument("--compile", action="store_true", help="compile the step for this machine's device as well")
    options.add_argument("--tiny", action="store_true", help="a tiny network: does it run?")
    args = options.parse_args(arguments)
    here = machine()
    models = ["tiny"] if args.tiny else args.models
    sides = {"sd15": 64, "sd21": 96, "sdxl": 128}
    found = [
        count(model, batch, sides.get(model, 8), 4 if args.tiny else args.rank, compiling=args.compile)
        for model in models
        for batch in args.batches
    ]
    for one in found:
        title = ", ".join(f"{name} {one[name]}" for name in ("model", "latents", "batch", "rank"))
        weights = f"weights {one['weights'] / 1e9:.2f}, factors {one['factors'] / 1e9:.2f}"
        rows = []
        for row in one["rows"]:
            parts = one["optimizers"][row["optimizer"]], row["kept"], row["largest"], row["total"]
            name = f"{row['optimizer']}{', remat' if row['remat'] else ''}"
            fits = ("fits" if fits else "no" for fits in row["fits"].values())
            rows.append([name, *(f"{part / 1e9:.2f}" for part in parts), *fits])
        header = ["", "optimizer's state", "kept for the gradient", "largest array", "sum", *CARDS]
        print_table(f"{title}: GB, COUNTED: {weights}", header, rows)
    conclude({"program": "training_memory", "measured": False, "room": ROOM, "rows": found}, args.json, here)


if __name__ == "__main__":
    main()
