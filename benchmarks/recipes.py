"""The recipes side by side: one network, one number of images, and how good are samples in 1, 2 and 4 steps.

``python benchmarks/recipes.py --data fashion_mnist.npz --work FOLDER --only ROW ...`` trains rows; the same without
``--only`` measures those that are done. Every row sees `--images` images in all.
Those that need a trained denoiser, to distil or to begin from, spend half of them on it (the rows *edm* and *vp*) and
half on themselves; the others spend all. All start from the same seed and take batches of 32 with one optimizer, Adam
from 1e-3 down to 1e-4 (half of that where training goes on from a denoiser, a tenth in continuous time, which fails at
more), and an average of decay .999 samples; the methods' own numbers are those of the recipes in `cmjax/recipes`, but
for a longer warm-up of the tangent, and for `ct` a grid of 40 rather than 150 at the end: in so short a run the paper's
passes 30 within the warm-up of the rate, and nothing is learned; and for `ctm`, whose teacher takes 3 steps at most
for a pair rather than 17, since each costs two calls.

The network is a small UNet. Pictures are folded, 28 x 28 x 1 to 14 x 14 x 4: the same pixels and the same noise, in a
quarter of the places, which is what makes a dozen rows possible on two cores.

Figures are those of `sample_quality.py`, whose first page defines them: the Frechet distance in the features of the
package's classifier, recall, precision, and the share of samples in which that classifier sees the class asked for.
Cost is the processor time of training, in minutes; with the teacher's, where there is one.

The run of each row is kept in ``FOLDER/ROW``: one that was killed goes on, one that is done is only measured. So rows
may be trained by several processes, each with ``--only ROW ...``, once the rows that they need are done; the table is
that of the rows which are done.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sample_quality
from common import conclude, machine, parser, print_table, target
from flax import nnx

import cmjax
from cmjax import ode, recipes, training
from cmjax.io import Checkpoint
from cmjax.models import UNet, UNetConfig, from_nnx, with_target
from cmjax.schedules import karras_sigmas

BATCH = 32
NETWORK = UNetConfig(
    sample_size=14,
    in_channels=4,
    out_channels=4,
    num_class_embeds=10,
    block_out_channels=(24, 48),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    attn_norm_num_groups=8,
    attention_head_dim=16,
    resnet_time_scale_shift="scale_shift",
    time_embedding_dim=64,
)
HEUN_STEPS = 18  # 35 calls: the last step has one
DDIM_STEPS = 25


# ---- pictures --------------------------------------------------------------------------------------------------------


def folded(images: np.ndarray) -> np.ndarray:
    """Two by two pixels become four channels: [N, 28, 28, 1] -> [N, 14, 14, 4]."""
    n, h, w, c = images.shape
    return images.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)


def unfolded(images: np.ndarray) -> np.ndarray:
    """The other way."""
    n, h, w, c = images.shape
    return images.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c // 4)


# ---- the rows --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
      recipe: its name among the package's, whose method it has.
      share: of the images.
      after: the row whose model it distils, or begins from.
      changes: of the method's numbers.
      rate: the first learning rate, where it is not that of the other rows.
      sampled: the numbers of steps that it is measured at.
      seed: of the run.
    """

    recipe: str
    share: float = 1.0
    after: str | None = None
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    rate: float | None = None
    sampled: tuple[int, ...] = (1, 2, 4)
    seed: int = 0

    def of(self, images: int) -> training.Recipe:
        """The recipe of a run in which so many images are seen by all rows together that lead to this one."""
        given = {k: v for k, v in recipes.read(self.recipe).items() if k in ("method", self.recipe)}
        given[self.recipe] = {**given.get(self.recipe, {}), **self.changes}
        rate = self.rate or (1e-3 if self.after is None else 5e-4)
        warmup = {} if self.after is None else {"warmup_steps": 0}
        given["optimizer"] = {"learning_rate": rate, "final_learning_rate": rate / 10, **warmup}
        steps = round(images * self.share / BATCH)
        return training.Recipe().changed({**given, "steps": steps, "batch_size": BATCH, "seed": self.seed}, "recipe")


ROWS = {
    "edm": Row("edm", 0.5, sampled=(HEUN_STEPS,)),
    "vp": Row("vp", 0.5, sampled=(DDIM_STEPS,)),
    "cd": Row("cd", 0.5, "edm"),
    "ct": Row("ct", changes={"final_scales": 40}),
    "ict": Row("ict"),
    "ect": Row("ect"),
    "sct": Row("sct", 0.5, "edm", {"warmup": 0.3}, 1e-4),
    "scd": Row("scd", 0.5, "edm", {"warmup": 0.3}, 1e-4),
    "pd-4": Row("pd", 0.25, "edm", {"num_steps": 4, "stages": [1, 1, 1]}, sampled=(4,)),
    "pd-2": Row("pd", 0.125, "pd-4", {"num_steps": 2, "stages": [1]}, sampled=(2,)),
    "pd-1": Row("pd", 0.125, "pd-2", {"num_steps": 1, "stages": [1]}, sampled=(1,)),
    "ctm": Row("ctm", 0.5, "edm", {"max_steps": 3}),
    "meanflow": Row("meanflow"),
    "meanflow-improved": Row("meanflow", changes={"improved": True}),
    "shortcut": Row("shortcut"),
    "tcd": Row("tcd", 0.5, "vp"),
    "lcd": Row("lcd", 0.5, "vp"),
    "edm-long": Row("edm", sampled=(HEUN_STEPS,)),
}
SEEDED = ("ect", "pd-4", "pd-2", "pd-1")  # the best two; the teacher stays the same
for seed in (1, 2):
    for name in SEEDED:
        after = ROWS[name].after
        after = f"{after}-seed{seed}" if after in SEEDED else after
        ROWS[f"{name}-seed{seed}"] = dataclasses.replace(ROWS[name], seed=seed, after=after)
NAMES = {"edm": "EDM, Heun, 35 calls", "edm-long": "EDM, all images, Heun, 35 calls", "vp": "VP (v), DDIM, 25 calls"}


def is_told_target(row: Row) -> bool:
    return training.METHODS[row.recipe].is_told_target


def minutes() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) / 60


def trained(name: str, work: Path, images: int, data: tuple[np.ndarray, np.ndarray]) -> Checkpoint:
    """The model of a row: that of its folder, or trained now, after the rows that it needs."""
    row, folder = ROWS[name], work / name
    recipe = row.of(images)
    if (folder / "model").is_dir():
        if json.loads((folder / "recipe.json").read_text()) != json.loads(json.dumps(recipe.to_dict())):
            raise SystemExit(f"{folder} is of another recipe: choose another --work.")
        return cmjax.load(folder / "model")
    source = None if row.after is None else trained(row.after, work, images, data)
    folder.mkdir(parents=True, exist_ok=True)
    model = from_nnx(UNet(NETWORK, rngs=nnx.Rngs(row.seed))) if source is None else source.model
    model = with_target(model) if recipe.method.is_told_target else model
    config = _config(row, source)
    teacher = (source.model, source.config) if source is not None and recipe.method.needs_teacher else None
    resume = training.latest_step(folder / "checkpoints") is not None
    cost = folder / "cost.json"
    before = json.loads(cost.read_text()) if resume and cost.exists() else {"minutes": 0.0}
    used = minutes()

    def keep_cost(_: training.TrainState) -> None:
        cost.write_text(json.dumps({"minutes": before["minutes"] + minutes() - used}))

    def say(progress: training.Progress) -> None:
        print(f"{name} {progress.step}/{progress.steps} loss {progress.loss:.4g} {progress.figures}", flush=True)

    state = training.train(
        model, config, *data, recipe=recipe, teacher=teacher, out=folder, resume=resume, report_every=200,
        on_progress=say, on_checkpoint=keep_cost,
    )  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    cmjax.save(Checkpoint(state.ema, recipe.method.made(config, recipe.steps, recipe.steps)), folder / "model")
    return cmjax.load(folder / "model")


def _config(row: Row, source: Checkpoint | None) -> Any:
    """The noise levels: the teacher's, and those of the recipe where there is none."""
    wanted = training.METHODS[row.recipe].config_type
    if wanted is cmjax.ctm.CTMConfig and source is not None:
        return wanted.of_teacher(source.config)
    if source is not None:
        is_cm = wanted is cmjax.cm.CMConfig
        return source.config.of_consistency_model() if is_cm else cmjax.io.read_config(
            cmjax.io.config_dict(source.config), as_=wanted
        )  # fmt: skip
    scheduler = recipes.read(row.recipe).get("scheduler")
    return wanted() if scheduler is None else cmjax.io.read_config(scheduler)


# ---- samples ---------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("shape",))
def _jump(model: Any, state: Any, keys: jax.Array, shape: tuple[int, ...], cond: jax.Array) -> jax.Array:
    return cmjax.generate(model, state, keys, shape, cond)


@partial(jax.jit, static_argnames=("shape", "config", "step"))
def _walk(
    model: Any, sigmas: jax.Array, keys: jax.Array, shape: tuple[int, ...], cond: jax.Array, *, config: Any, step: Any
) -> jax.Array:
    x = sigmas[0] * jax.vmap(partial(jax.random.normal, shape=shape[1:]))(keys)
    return jnp.clip(ode.solve(step, cmjax.denoiser_fn(model, config), sigmas, x, cond=cond), -1.0, 1.0)


def sampled(row: Row, made: Checkpoint, num_steps: int, count: int, seed: int, batch: int = 250) -> Any:
    """Images f32[N, 28, 28, 1] and their classes, each class in turn."""
    model, config = made
    labels = np.arange(count) % NETWORK.num_class_embeds
    batch = math.gcd(count, batch)
    keys, shape = jax.random.split(jax.random.key(seed), count), (batch, 14, 14, 4)
    if row.recipe == "edm":
        draw = partial(_walk, model, jnp.float32(ode.ladder(num_steps)), config=config, step=ode.heun)
    elif row.recipe == "pd":
        levels = karras_sigmas(np.arange(num_steps + 1), num_steps + 1)
        draw = partial(_walk, model, jnp.float32(levels), config=config, step=ode.euler)
    else:
        kind = cmjax.samplers.sampler_of(config)
        options = {"eta": 0.0} if row.recipe == "vp" else {}
        draw = partial(_jump, model, kind.init(config, num_steps, **options))
    parts = [
        np.asarray(draw(keys=keys[i : i + batch], shape=shape, cond=jnp.asarray(labels[i : i + batch], jnp.int32)))
        for i in range(0, count, batch)
    ]
    images = np.concatenate(parts).astype(np.float32)
    return unfolded(np.clip(images, -1.0, 1.0) if is_told_target(row) else images), labels


def measured(name: str, made: Checkpoint, reference: Any, work: Path, count: int, seed: int) -> dict[str, Any]:
    """The figures of a row, and what it cost; a grid of its samples is left in its folder."""
    row, found = ROWS[name], {}
    for num_steps in row.sampled:
        images, labels = sampled(row, made, num_steps, count, seed)
        report = sample_quality.measure(images, labels, reference)
        found[str(num_steps)] = {k: v for k, v in report.items() if k not in ("by_class", "worst_class")}
        grid = cmjax.io.images.grid(cmjax.io.images.to_uint8(images[:80]), columns=10)
        cmjax.io.images.write_png(grid, work / name / f"samples-{num_steps}.png")
    return {"recipe": row.recipe, "seed": row.seed, "after": row.after, "steps": found, **_cost(name, work)}


def _cost(name: str, work: Path) -> dict[str, float]:
    """Minutes of a row, and with those before it."""
    cost, after = json.loads((work / name / "cost.json").read_text()), ROWS[name].after
    before = 0.0 if after is None else _cost(after, work)["minutes_in_all"]
    return {"minutes": round(cost["minutes"], 1), "minutes_in_all": round(cost["minutes"] + before, 1)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as .npz")
    options.add_argument("--work", type=Path, required=True, help="where the runs are kept")
    options.add_argument("--only", nargs="+", choices=list(ROWS), metavar="ROW", help="train these, and only that")
    options.add_argument("--images", type=int, default=128_000, help="that each row sees in all (default: %(default)s)")
    options.add_argument("--num", type=int, default=2000, help="samples that are measured (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the samples")
    args: argparse.Namespace = options.parse_args()

    started = machine()
    with np.load(args.data) as file:
        images, labels = folded(file["train_images"].reshape(-1, 28, 28, 1)), file["train_labels"].astype(np.int64)
    for name in args.only or ():
        trained(name, args.work, args.images, (images, labels))
    if args.only:
        return
    reference, rows = sample_quality.make_reference(args.data), {}
    for name in ROWS:
        if (args.work / name / "model").is_dir():
            made = trained(name, args.work, args.images, (images, labels))
            rows[name] = measured(name, made, reference, args.work, args.num, args.seed)
            print(f"{name}: measured", flush=True)
    lines = [
        [NAMES.get(name, name), steps, *(found[k]["samples"] for k in ("frechet", "recall", "precision", "agreement")),
         row["minutes_in_all"]]
        for name, row in rows.items() for steps, found in row["steps"].items()
    ]  # fmt: skip
    print_table(
        f"{args.num} samples, {args.images:,} images seen",
        ["row", "steps", "Frechet", "recall", "precision", "agreement", "minutes"], lines,
    )  # fmt: skip
    result = {
        "program": "recipes",
        "images": args.images,
        "samples": args.num,
        "seed": args.seed,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(from_nnx(UNet(NETWORK, rngs=nnx.Rngs(0))))),
        "rows": rows,
        "targets": _verdicts(rows),
    }
    conclude(result, args.json, started)


def _verdicts(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """The best one-step and two-step row against the teacher with 35 calls."""
    if "edm" not in rows:
        return []
    teacher = rows["edm"]["steps"][str(HEUN_STEPS)]["frechet"]["samples"]
    verdicts = []
    for steps, limit in ((1, 2.0), (2, 1.25)):
        found = {name: row["steps"].get(str(steps)) for name, row in rows.items() if row["seed"] == 0}
        distances = {name: report["frechet"]["samples"] for name, report in found.items() if report}
        if distances:
            best = min(distances, key=distances.__getitem__)
            rule = f"Frechet distance of {best} in {steps} step{'s' * (steps > 1)} over the teacher's with 35 calls"
            verdicts.append(target(distances[best] / teacher, limit, rule))
    return verdicts


if __name__ == "__main__":
    main()
