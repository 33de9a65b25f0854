"""Train a TCD-LoRA of the pictogram model's teacher: four steps in place of fifty calls, in a file of 3 MB.

    tcd_lora.py --data pictograms.npz --out DIR [--resume]

The recipe is that of `cmjax train --recipe tcd-lora`: a guided teacher, a student of the teacher's own weights with
factors beside them, of which the factors alone are trained. Pictures and captions are composed as they are needed.
`--begin student` starts from the factors that come nearest to the fully trained student (`cmjax.lora.extract`), which
is what can be done in an hour of a CPU; `--begin nothing` starts from factors that change nothing.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import data as emoji
import jax
import jax.numpy as jnp
from captions import Tokenizer
from evaluate import GUIDANCE, load_teacher

import cmjax
from cmjax import training
from cmjax.guidance import WithNull
from cmjax.published import Published

_HERE = Path(__file__).parent


class Composed:
    """Batches of composed pictures, as latents, and their captions with the empty text beside each."""

    def __init__(self, pipe: Any, data: emoji.Data, batch: int, seed: int):
        self.pipe, self.data, self.key = pipe, data, jax.random.key(seed)

        def make(pipe: Any, data: emoji.Data, key: jax.Array) -> tuple[jax.Array, WithNull]:
            draw_key, paint_key, text_key, noise_key = jax.random.split(key, 4)
            what = emoji.draw_attributes(draw_key, batch)
            latents = pipe.autoencoder.encode(emoji.pictures(data, what, paint_key), noise_key)
            cond = pipe.encode((emoji.tokens(data, what, text_key, empty=0.0),))
            return latents, WithNull(cond, pipe.without_text(cond))

        self.make = jax.jit(make)

    def starting_at(self, step: int) -> Any:
        """The batches from a step on."""
        for i in itertools.count(step):
            yield self.make(self.pipe, self.data, jax.random.fold_in(self.key, i))

    def __iter__(self) -> Any:
        return self.starting_at(0)


def main() -> None:
    """Train, and write the LoRA at every checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="what prepare.py wrote")
    add("--out", type=Path, required=True)
    add("--pipeline", type=Path, default=_HERE / "pipeline")
    add("--begin", choices=("nothing", "student"), default="nothing")
    add("--rank", type=int, default=28)
    add("--steps", type=int, default=400)
    add("--batch", type=int, default=16)
    add("--rate", type=float, default=1e-3)
    add("--skip", type=int, default=5)
    add("--checkpoint-every", type=int, default=20)
    add("--resume", action="store_true")
    args = parser.parse_args()
    pipe = load_teacher(args.pipeline)
    lora = cmjax.lora.new(pipe, args.rank)
    if args.begin == "student":
        student = cmjax.text_to_image.load(args.pipeline)
        found = cmjax.lora.extract(pipe.unet, student.unet, args.rank)
        lora = lora.replace(factors={name: found.factors[name] for name in lora.factors})
    method = training.TrajectoryDistillation(guidance_scale=GUIDANCE, skip=args.skip, decay=0.0, huber_c=0.03)
    recipe = training.Recipe(
        method=method,
        steps=args.steps,
        batch_size=args.batch,
        ema_decays=(0.99,),
        optimizer=training.Optimizer(
            learning_rate=args.rate, final_learning_rate=args.rate / 20, warmup_steps=min(20, args.steps // 4)
        ),
    )

    def keep(state: training.TrainState) -> None:
        learned = cmjax.lora.resolve(cmjax.lora.attached(state.ema)[0][0], pipe.unet)
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16) if leaf.ndim else leaf, learned)
        row = Published("TCD-LoRA of pictograms", "emoji's teacher", "", sampler="tcd", steps=4, eta=0.3)
        said = {"cmjax.trained_steps": str(int(state.step)), **cmjax.lora.recommend(row)}
        cmjax.lora.write(half, args.out / "pytorch_lora_weights.safetensors", metadata=said)
        print(f"step {int(state.step)} is kept", flush=True)

    training.train(
        cmjax.lora.attach(pipe, lora).unet,
        pipe.config,
        Composed(pipe, emoji.load(args.data, Tokenizer()), args.batch, recipe.seed),
        recipe=recipe,
        teacher=(pipe.unet, pipe.config),
        out=args.out,
        resume=args.resume,
        report_every=args.checkpoint_every,
        checkpoint_every=args.checkpoint_every,
        on_progress=lambda report: print(report.entry(), flush=True),
        on_checkpoint=keep,
    )


if __name__ == "__main__":
    main()
