"""Train a LoRA of the pictogram model that draws in ink, on a CPU, without data: the model is its own teacher.

    python benchmarks/emoji/ink_lora.py --out ink.safetensors

At every step of its own four-step path, the model with the LoRA learns what the model alone estimates there, with the
picture turned gray: encode(gray(decode(x0))). The weights are frozen; the factors of `cmjax.lora.attach` are all that
is trained, by six lines of optax.
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


def make_step(optimizer, steps: int):
    """Make the training step, (trained, rest, momentum, pipe, tokens, key) -> (trained, momentum, loss)."""

    def loss_of(trained, rest, pipe, tokens, key):
        k_x, k_z = jax.random.split(key)
        network, cond = combine(trained, rest), pipe.encode(tokens)
        state = cmjax.tcd.init(pipe.config, steps, eta=0.3)
        x, total = cmjax.prior(state, k_x, pipe.latent_shape(len(tokens[0]))), 0.0
        for k in jax.random.split(k_z, steps):
            x_in, t = cmjax.model_input(state, x)
            plain = state.predict(jax.lax.stop_gradient(pipe.model(x_in, t, cond)), x).x0
            target = jax.lax.stop_gradient(pipe.autoencoder.encode(gray(pipe.autoencoder.decode(plain))))
            out = network(x_in, t, cond)
            total += jnp.mean((state.predict(out, x).x0 - target) ** 2)
            state, x = cmjax.step(state, jax.lax.stop_gradient(out), x, k)
        return total / steps

    @jax.jit
    def step(trained, rest, momentum, pipe, tokens, key):
        loss, grads = jax.value_and_grad(loss_of)(trained, rest, pipe, tokens, key)
        updates, momentum = optimizer.update(grads, momentum, trained)
        return optax.apply_updates(trained, updates), momentum, loss

    return step


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
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    pipe = cmjax.text_to_image.load("emoji")
    attached = cmjax.lora.attach(pipe, first_lora(pipe, options.rank, 0)).unet
    trained, rest = partition(attached)
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 20, options.steps, 0.0)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    step, momentum, rng = make_step(optimizer, 4), optimizer.init(trained), np.random.default_rng(0)
    start = time.perf_counter()
    for i in range(options.steps):
        tokens = pipe.tokenize(prompts(rng, options.batch))
        trained, momentum, loss = step(trained, rest, momentum, pipe, tokens, jax.random.fold_in(jax.random.key(1), i))
        if i % 20 == 0 or i == options.steps - 1:
            print(f"step {i}  loss {float(loss):.4f}  {time.perf_counter() - start:.0f} s", flush=True)
        if i % 100 == 99 or i == options.steps - 1:
            learned = cmjax.lora.attached(pipe.replace(unet=combine(trained, rest)))[0][0]
            half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16) if leaf.ndim else leaf, learned)
            cmjax.lora.write(half, options.out, metadata={"cmjax": "ink, a style of the pictogram model"})


if __name__ == "__main__":
    main()
