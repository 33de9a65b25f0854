"""Train a LoRA of one style of the pictogram model's teacher: what no caption names becomes the default.

    style_lora.py train --data pictograms.npz --out DIR [--style classic] [--resume]
    style_lora.py measure --lora DIR

The first is `cmjax train lora` on pictures that are composed as they are needed: all of one style, with captions that
leave the style out. The frozen teacher stays as it is, and learns by the factors alone that pictures look like this.

The second mixes the LoRA with the one that draws in few steps, `tcd-lora`, by several scales, and lets the judge say
which style each picture has. It writes DIR/style.json and DIR/grid.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import data as emoji
import jax
import jax.numpy as jnp
import numpy as np
from captions import STYLES, SUBJECTS, Tokenizer, caption
from evaluate import GUIDANCE, decode, load_teacher
from grids import save_grid
from judge import judge

import cmjax
from cmjax import training
from cmjax.evaluation import PICTOGRAM_CLASSIFIER, read_pictograms
from cmjax.guidance import WithNull

_HERE = Path(__file__).parent
_FILE = "pytorch_lora_weights.safetensors"
_SHOWN = 8  # prompts of the grid


class OneStyle:
    """Batches of composed pictures of one style, as latents, and captions without it, with the empty text beside."""

    def __init__(self, pipe: Any, data: emoji.Data, style: int, batch: int, seed: int):
        self.pipe, self.data, self.key = pipe, data, jax.random.key(seed)

        def make(pipe: Any, data: emoji.Data, key: jax.Array) -> tuple[jax.Array, WithNull]:
            draw_key, paint_key, text_key, noise_key = jax.random.split(key, 4)
            what = emoji.draw_attributes(draw_key, batch)
            one = what._replace(style=jnp.full_like(what.style, style))
            latents = pipe.autoencoder.encode(emoji.pictures(data, one, paint_key), noise_key)
            unsaid = what._replace(style=jnp.full_like(what.style, len(STYLES)))
            cond = pipe.encode((emoji.tokens(data, unsaid, text_key, empty=0.0),))
            return latents, WithNull(cond, pipe.without_text(cond))

        self.make = jax.jit(make)

    def starting_at(self, step: int) -> Any:
        """The batches from a step on."""
        for i in itertools.count(step):
            yield self.make(self.pipe, self.data, jax.random.fold_in(self.key, i))

    def __iter__(self) -> Any:
        return self.starting_at(0)


def train(args: argparse.Namespace) -> None:
    """Train, and write the LoRA at every checkpoint."""
    pipe = load_teacher(args.pipeline)
    recipe = training.Recipe(
        method=training.NoisePrediction(label_dropout=0.1),
        steps=args.steps,
        batch_size=args.batch,
        ema_decays=(0.98,),
        optimizer=training.Optimizer(
            learning_rate=args.rate, final_learning_rate=args.rate / 20, warmup_steps=min(20, args.steps // 4)
        ),
    )

    def keep(state: training.TrainState) -> None:
        learned = cmjax.lora.resolve(cmjax.lora.attached(state.ema)[0][0], pipe.unet)
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16) if leaf.ndim else leaf, learned)
        said = {"cmjax": f"{args.style} style", "cmjax.trained_steps": str(int(state.step))}
        cmjax.lora.write(half, args.out / _FILE, metadata=said)
        print(f"step {int(state.step)} is kept", flush=True)

    data = emoji.load(args.data, Tokenizer())
    training.train(
        cmjax.lora.attach(pipe, cmjax.lora.new(pipe, args.rank)).unet,
        pipe.config,
        OneStyle(pipe, data, STYLES.index(args.style), args.batch, recipe.seed),
        recipe=recipe,
        out=args.out,
        resume=args.resume,
        report_every=args.checkpoint_every,
        checkpoint_every=args.checkpoint_every,
        on_progress=lambda report: print(report.entry(), flush=True),
        on_checkpoint=keep,
    )


def prompts(count: int) -> tuple[list[str], np.ndarray]:
    """Texts that name no style, and the subject of each, i32[count]: every other one a colour, every third two."""
    rng = np.random.default_rng(0)
    subjects = rng.permutation(len(SUBJECTS))[:count]
    lines = [
        caption(int(subject), number=int(i % 3 == 2), colour=int(rng.integers(10)) if i % 2 else None)
        for i, subject in enumerate(subjects)
    ]
    return lines, subjects


def draw(pipe: Any, lines: list[str], steps: int, guidance: float | None) -> np.ndarray:
    """Draw a picture of each prompt, picture i from key i."""
    state = cmjax.tcd.init(pipe.config, num_steps=steps, eta=0.0 if guidance else 0.3)
    cond = pipe.encode(pipe.tokenize(lines))
    model = cmjax.text_to_image.guided(pipe, cond, guidance)
    keys = cmjax.image_keys(0, range(len(lines)))
    return decode(pipe, np.asarray(cmjax.generate(model, state, keys, pipe.latent_shape(len(lines)), cond)))


def measure(args: argparse.Namespace) -> None:
    """Draw with both LoRAs at several scales, and judge."""
    teacher, model = load_teacher(args.pipeline), read_pictograms(PICTOGRAM_CLASSIFIER)
    fast, style = (cmjax.lora.read(folder / _FILE) for folder in (args.fast, args.lora))
    lines, subjects = prompts(args.prompts)
    rows, shown = {}, {}
    for scale in args.scales:
        mixed = cmjax.lora.attach(teacher, [fast, style], [1.0, scale])
        rows[f"4 steps, style {scale:g}"] = draw(mixed, lines, 4, None)
    if args.teacher:
        rows["teacher alone, 25 calls, guidance 3"] = draw(teacher, lines, 25, GUIDANCE)
        alone = cmjax.lora.attach(teacher, style)
        rows["teacher with the style, 25 calls, guidance 3"] = draw(alone, lines, 25, GUIDANCE)
    found = {}
    for name, pictures in rows.items():
        seen = judge(model, pictures)
        styles = np.bincount(seen["style"], minlength=len(STYLES)) / len(lines)
        found[name] = {
            "styles": dict(zip(STYLES, styles.round(3).tolist(), strict=True)),
            "subject": round(float((seen["subject"] == subjects).mean()), 3),
        }
        shown[name] = pictures[:_SHOWN]
        print(name, json.dumps(found[name]), flush=True)
    (args.lora / "style.json").write_text(json.dumps({"prompts": lines, "rows": found}, indent=1) + "\n")
    save_grid(args.lora / "grid.png", shown, lines[:_SHOWN], columns=_SHOWN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True)
    one = tasks.add_parser("train")
    one.set_defaults(run=train)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--style", choices=STYLES, default="classic")
    one.add_argument("--rank", type=int, default=12)
    one.add_argument("--steps", type=int, default=300)
    one.add_argument("--batch", type=int, default=16)
    one.add_argument("--rate", type=float, default=1e-3)
    one.add_argument("--checkpoint-every", type=int, default=25)
    one.add_argument("--resume", action="store_true")
    two = tasks.add_parser("measure")
    two.set_defaults(run=measure)
    two.add_argument("--lora", type=Path, default=_HERE / "style-lora")
    two.add_argument("--fast", type=Path, default=_HERE / "tcd-lora")
    two.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    two.add_argument("--prompts", type=int, default=60)
    two.add_argument(
        "--teacher", action="store_true", help="measure the teacher's guided calls too, which take longest"
    )
    one.add_argument("--data", type=Path, required=True, help="what prepare.py wrote")
    for task in (one, two):
        task.add_argument("--pipeline", type=Path, default=_HERE / "pipeline")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
