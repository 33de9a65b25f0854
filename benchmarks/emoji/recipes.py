"""The recipes of text-to-image distillation side by side: LoRAs and whole networks of the pictogram model's teacher.

    recipes.py tcd-lora tcd ... --data pictograms.npz --work FOLDER                  # train rows, and draw with them
    recipe_table.py --data pictograms.npz --work FOLDER --json figures.json          # measure the rows that are drawn

Every row sees the same `--pictures` with the same captions, in the same batches, composed as they are needed. All begin
as the teacher: a whole network with its weights, a LoRA with factors that change nothing. The teacher is guided by 3,
and its jump goes a tenth of the way down (`--skip`, 5 levels of a grid of 50). The target is the student itself. All
other numbers of a method are its recipe's in `cmjax/recipes`. Adam's rate is 10 times the recipe's for a LoRA and 3
times for a whole network, since the runs are short; it rises over a twentieth of the run, and falls to a tenth in its
last two thirds. An average of the weights draws.

Each row draws in 1, 2 and 4 steps as its paper does (`PATHS`), the same 100 prompts as `evaluate.py`'s first, half of
them of combinations that training never saw, and 25 of them again for the diversity, from the same noises in all rows.
The row `teacher` is guided, in 25 calls; `teacher-alone` is not, in 1, 2 and 4 calls.

The run of each row is kept in ``FOLDER/ROW``: one that was killed goes on, one that is done is only drawn, and one that
is drawn is left alone. So several processes may train, each with rows of its own. Factors of a LoRA are also written as
a file, at every checkpoint; ``--begin`` starts them from such a file, or with `student` from the factors that come
nearest to the fully trained student (`cmjax.lora.extract`).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import data as emoji
import jax
import jax.numpy as jnp
import numpy as np
from captions import Tokenizer
from evaluate import GUIDANCE, decode, draw_latents, load_teacher, prompts, texts

import cmjax
from cmjax import recipes, training
from cmjax.guidance import WithNull
from cmjax.io import config_dict, read_config
from cmjax.lora import LoRA
from cmjax.published import Published

_HERE = Path(__file__).parent

# Of each method: the sampler, and its settings for each number of steps.
_LAND = {n: ("tcd", {"num_steps": n, "eta": 0.0}) for n in (1, 2, 4)}
_ETA = {n: ("tcd", {"num_steps": n, "eta": 0.3}) for n in (1, 2, 4)}
_NOISE = {n: ("lcm", {"num_steps": n}) for n in (1, 2, 4)}
_DMD = {1: (999,), 2: (999, 499), 4: (999, 749, 499, 249)}
PATHS: dict[str, dict[int, tuple[str, dict[str, Any]]]] = {
    "tcd": _ETA,
    "lcd": _NOISE,
    "pcm": _LAND,
    "tscd": _LAND,
    "dmd": {n: ("lcm", {"timesteps": path}) for n, path in _DMD.items()},
}
ROWS = (*(f"{name}-lora" for name in PATHS), *PATHS)


# ---- training --------------------------------------------------------------------------------------------------------


class Composed:
    """Batches of composed pictures, as latents, and their captions with the empty text beside each; made once."""

    def __init__(self, pipe: Any, data: emoji.Data, batch: int, seed: int):
        self.pipe, self.data, self.key = pipe, data, jax.random.key(seed)
        self.made: list[Any] = []

        def make(pipe: Any, data: emoji.Data, key: jax.Array) -> tuple[jax.Array, WithNull]:
            draw_key, paint_key, text_key, noise_key = jax.random.split(key, 4)
            what = emoji.draw_attributes(draw_key, batch)
            latents = pipe.autoencoder.encode(emoji.pictures(data, what, paint_key), noise_key)
            cond = pipe.encode((emoji.tokens(data, what, text_key, empty=0.0),))
            return latents, WithNull(cond, pipe.without_text(cond))

        self.make = jax.jit(make)

    def starting_at(self, step: int) -> Any:
        """The batches from a step on."""
        while True:
            while len(self.made) <= step:
                key = jax.random.fold_in(self.key, len(self.made))
                self.made.append(self.make(self.pipe, self.data, key))
            yield self.made[step]
            step += 1

    def __iter__(self) -> Any:
        return self.starting_at(0)


def recipe_of(row: str, args: argparse.Namespace) -> training.Recipe:
    """The recipe of a row, for the pictures that there are."""
    name = row.removesuffix("-lora")
    given = recipes.read(f"{name}-lora")  # those of whole networks have an average as the target
    settings = {key: value for key, value in given[name].items() if key != "guidance_range"}
    settings["guidance_scale"] = GUIDANCE
    if name != "dmd":
        settings["skip"] = args.skip
    times = 10 if row != name else 3
    rate = args.rate or times * recipes.read(row)["optimizer"]["learning_rate"]
    steps = args.pictures // args.batch
    optimizer = {"learning_rate": rate, "final_learning_rate": rate / 10, "warmup_steps": max(1, steps // 20)}
    given = {"method": name, name: settings, "optimizer": optimizer, "ema_decays": [0.99]}
    return training.Recipe().changed({**given, "steps": steps, "batch_size": args.batch}, row)


def first_factors(pipe: Any, args: argparse.Namespace) -> LoRA:
    """The factors that a LoRA begins with."""
    lora = cmjax.lora.new(pipe, args.rank)
    if args.begin is None:
        return lora
    if args.begin == "student":
        found = cmjax.lora.extract(pipe.unet, cmjax.text_to_image.load(args.pipeline).unet, args.rank)
    else:
        found = cmjax.lora.resolve(cmjax.lora.read(args.begin), pipe.unet)
        found = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), found)
    return lora.replace(factors={name: found.factors[name] for name in lora.factors})


def train(row: str, pipe: Any, batches: Composed, args: argparse.Namespace) -> Any:
    """Train a row, or go on where it stopped; return the pipeline that it makes."""
    recipe, folder = recipe_of(row, args), args.work / row
    name = row.removesuffix("-lora")
    is_lora = row != name
    config = read_config(config_dict(pipe.config), as_=recipe.method.config_type)
    sampler, settings = PATHS[name][4]
    told = {key: value for key, value in settings.items() if key in ("eta", "timesteps")}
    said = Published(f"{name}, a LoRA of pictograms", "emoji's teacher", "", sampler=sampler, steps=4, **told)
    begun = time.monotonic()
    used = folder / "run.json"
    before = json.loads(used.read_text()) if used.exists() else {}
    started = time.process_time()

    def learned(state: training.TrainState) -> LoRA:
        network = recipe.method.student(state.ema)
        return cmjax.lora.resolve(cmjax.lora.attached(network)[0][0], pipe.unet)

    def keep(state: training.TrainState) -> None:
        so_far = {"seconds": time.monotonic() - begun, "processor_seconds": time.process_time() - started}
        total = {key: round(before.get(key, 0.0) + value, 1) for key, value in so_far.items()}
        used.write_text(json.dumps({**total, "pictures": int(state.step) * args.batch, "recipe": recipe.to_dict()}))
        if is_lora:
            half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16) if leaf.ndim else leaf, learned(state))
            words = {"cmjax.trained_steps": str(int(state.step)), **cmjax.lora.recommend(said)}
            cmjax.lora.write(half, folder / "pytorch_lora_weights.safetensors", metadata=words)

    network = cmjax.lora.attach(pipe, first_factors(pipe, args)).unet if is_lora else pipe.unet
    state = training.train(
        network,
        config,
        batches,
        recipe=recipe,
        teacher=(pipe.unet, pipe.config),
        out=folder,
        resume=(folder / "checkpoints").exists(),
        report_every=args.checkpoint_every,
        checkpoint_every=args.checkpoint_every,
        on_progress=lambda report: print(row, json.dumps(report.entry()), flush=True),
        on_checkpoint=keep,
    )
    if is_lora:
        return cmjax.lora.merge(pipe, learned(state))
    return pipe.replace(unet=recipe.method.student(state.ema))


# ---- pictures --------------------------------------------------------------------------------------------------------


def grey(pictures: np.ndarray) -> np.ndarray:
    """Pictures in [-1, 1] as u8."""
    return np.clip((pictures + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)


def asked(args: argparse.Namespace) -> tuple[list[str], jax.Array]:
    """What is drawn: the prompts, then the first of them again; and a key for each picture."""
    lines = texts(prompts(args.prompts)[0])
    keys = [cmjax.image_keys(seed, np.arange(n)) for seed, n in enumerate((args.prompts, args.again))]
    return lines + lines[: args.again], jnp.concatenate(keys)


def draw(pipe: Any, path: tuple[str, dict[str, Any]], args: argparse.Namespace, guidance: float | None = None) -> Any:
    """Draw what is asked, u8[N, H, W, 3]."""
    sampler, settings = path
    lines, keys = asked(args)
    state = getattr(cmjax, sampler).init(pipe.config, **settings)
    return grey(decode(pipe, draw_latents(pipe, lines, state, guidance, keys)))


def draw_row(row: str, pipe: Any, batches: Composed, args: argparse.Namespace) -> None:
    """Train a row where that is not done, and keep what it draws."""
    file = args.work / row / "pictures.npz"
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    if row == "teacher":
        drawn = {"25": draw(pipe, ("tcd", {"num_steps": 25, "eta": 0.0}), args, GUIDANCE)}
    else:
        paths = _LAND if row == "teacher-alone" else PATHS[row.removesuffix("-lora")]
        if row != "teacher-alone":
            pipe = train(row, pipe, batches, args)
        drawn = {str(n): draw(pipe, path, args) for n, path in paths.items()}
    draft = file.with_suffix(".draft.npz")
    np.savez_compressed(draft, allow_pickle=False, **drawn)
    os.replace(draft, file)
    print(row, "is drawn", flush=True)


def main() -> None:
    """Train and draw the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("rows", nargs="+", choices=("teacher", "teacher-alone", *ROWS))
    add("--data", type=Path, required=True, help="what prepare.py wrote")
    add("--work", type=Path, required=True, help="the folder of the runs")
    add("--pipeline", type=Path, default=_HERE / "pipeline")
    add("--pictures", type=int, default=400, help="that each row is trained on")
    add("--batch", type=int, default=8)
    add("--skip", type=int, default=5)
    add("--rank", type=int, default=28)
    add("--rate", type=float, help="the first learning rate of all, in place of each row's own")
    add("--begin", help="the factors to begin with: `student`, or a file; by default factors that change nothing")
    add("--checkpoint-every", type=int, default=20)
    add("--prompts", type=int, default=100)
    add("--again", type=int, default=25, help="prompts drawn twice, for the diversity")
    args = parser.parse_args()
    pipe, data = load_teacher(args.pipeline), emoji.load(args.data, Tokenizer())
    batches = Composed(pipe, data, args.batch, 0)
    for row in args.rows:
        draw_row(row, pipe, batches, args)


if __name__ == "__main__":
    main()
