"""Train a LoRA of the pictogram model that draws in ink, on a CPU, without data: the model is its own teacher.

    python benchmarks/emoji/ink_lora.py --out ink.safetensors

The model draws while an edit turns every estimate gray: encode(gray(decode(x0))). Then it learns with a LoRA to
estimate that at once, at every step of its own four-step path. The weights are frozen; the factors of
`cmjax.lora.attach` are all that is trained, by a few lines of optax.
"""

from __future__ import annotations

import argparse
import time

import captions
import jax
import jax.numpy as jnp
import numpy as np
import optax

import cmjax
from cmjax.lora import Factors, LoRA, Product
from cmjax.models import combine, lora, partition

STEPS = 4
_TARGETS = ("conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out", "proj_in", "proj_out", "0", "2", "proj")


def first_lora(pipe, rank: int, seed: int) -> LoRA:
    """Make factors for the layers that colour pictures, with the second factor 0, so that nothing changes at first."""
    rng, factors = np.random.default_rng(seed), {}
    for name, shape in lora.kernels(pipe.unet).items():
        if name.rpartition(".")[2] in _TARGETS:
            down = rng.normal(size=(*shape[:-1], rank)) / np.sqrt(np.prod(shape[:-1]))
            product = Product(jnp.asarray(down, jnp.float32), jnp.zeros((rank, shape[-1])))
            factors[f"unet.{name}"] = Factors(product, jnp.float32(rank))
    return LoRA(factors)


def gray(images):
    """Pictures without colour: the luminance of ITU-R BT.601."""
    return jnp.broadcast_to((images @ jnp.array([0.299, 0.587, 0.114]))[..., None], images.shape)


@jax.jit
def walk(pipe, tokens, key):
    """Draw in gray by the edit: for each step the noisy latents, the estimates wanted there, and the condition."""

    def ink(x0):
        return pipe.autoencoder.encode(gray(pipe.autoencoder.decode(x0)))

    cond, state = pipe.encode(tokens), cmjax.tcd.init(pipe.config, STEPS, eta=0.3)
    k_x, k_z = jax.random.split(key)

    def step(carry, key):
        state, x = carry
        x_in, t = cmjax.model_input(state, x)
        out = pipe.model(x_in, t, cond)
        return cmjax.step(state, out, x, key, edit=ink), (x, ink(state.predict(out, x).x0))

    start = state, cmjax.prior(state, k_x, pipe.latent_shape(len(tokens[0])))
    return jax.lax.scan(step, start, jax.random.split(k_z, STEPS))[1], cond


def loss_of(trained, rest, state, x, target, cond):
    """The squared distance of the estimate at one step of the path."""
    x_in, t = cmjax.model_input(state, x)
    return jnp.mean((state.predict(combine(trained, rest)(x_in, t, cond), x).x0 - target) ** 2)


def prompts(rng: np.random.Generator, number: int) -> list[str]:
    """Captions of the model's grammar."""
    found = []
    for _ in range(number):
        word, plural, _ = captions.SUBJECTS[rng.integers(len(captions.SUBJECTS))]
        count = ("a", "two", "three")[rng.integers(3)] if rng.random() < 0.4 else "a"
        colour = [*captions.COLOURS][rng.integers(len(captions.COLOURS))]
        style = f", {captions.STYLES[rng.integers(4)]} style" if rng.random() < 0.5 else ""
        found.append(f"{count} {word if count == 'a' else plural} on a {colour} background{style}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    pipe, rng = cmjax.text_to_image.load("emoji"), np.random.default_rng(0)
    trained, rest = partition(cmjax.lora.attach(pipe, first_lora(pipe, options.rank, 0)).unet)
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 20, options.steps, 0.0)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    momentum, path = optimizer.init(trained), cmjax.tcd.init(pipe.config, STEPS, eta=0.3)

    @jax.jit
    def update(trained, rest, momentum, state, x, target, cond):
        loss, grads = jax.value_and_grad(loss_of)(trained, rest, state, x, target, cond)
        updates, momentum = optimizer.update(grads, momentum, trained)
        return optax.apply_updates(trained, updates), momentum, loss

    start = time.perf_counter()
    for i in range(options.steps):
        if i % STEPS == 0:
            key = jax.random.fold_in(jax.random.key(1), i)
            (xs, targets), cond = walk(pipe, pipe.tokenize(prompts(rng, options.batch)), key)
        k = i % STEPS
        trained, momentum, loss = update(
            trained, rest, momentum, path.replace(index=jnp.int32(k)), xs[k], targets[k], cond
        )
        if i % 40 < STEPS:
            print(f"step {i}  loss {float(loss):.4f}  {time.perf_counter() - start:.0f} s", flush=True)
        if i % 100 == 99 or i == options.steps - 1:
            learned = cmjax.lora.resolve(cmjax.lora.attached(combine(trained, rest))[0][0], pipe)
            half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16) if leaf.ndim else leaf, learned)
            cmjax.lora.write(half, options.out, metadata={"cmjax": "ink, a style of the pictogram model"})


if __name__ == "__main__":
    main()
