"""Train the last level of the autoencoder's decoder on, for sharper edges, in minutes of one CPU core.

    sharpen.py --data pictograms.npz --pipeline pipeline --out vae.safetensors --seconds 2400

All before that level stays as it is: latents mean what they did, and the UNet needs no training. So the inputs of the
level (32 x 32 x 64) are computed once, for some thousand pictures, and a step costs half of a whole decoder's. The rate
falls to 0 over the seconds; the averaged weights are written every two minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import data as emoji
import jax
import jax.numpy as jnp
import numpy as np
import optax
from captions import Tokenizer
from flax import nnx
from judge import sharpness
from safetensors.numpy import save_file

import cmjax
from cmjax.io.weights import file_tensors

_TEST = 96


def level_inputs(vae: Any, z: jax.Array) -> jax.Array:
    """What the decoder's last level is given: f[B, 32, 32, 64], before it is doubled."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(z)))
    x = decoder.up_blocks[0](x)
    for resnet in decoder.up_blocks[1].resnets:
        x = resnet(x)
    return x


def last_level(vae: Any, x: jax.Array) -> jax.Array:
    """From there to pictures, f[B, 64, 64, 3]."""
    decoder = vae.decoder
    for upsampler in decoder.up_blocks[1].upsamplers:
        x = upsampler(x)
    x = decoder.up_blocks[2](x)
    return decoder.conv_out(jax.nn.silu(decoder.conv_norm_out(x)))


def in_last_level(path: tuple[Any, ...], _: Any) -> bool:
    """Whether a weight belongs to it."""
    name = ".".join(map(str, path))
    return name.startswith(("decoder.up_blocks.1.upsamplers", "decoder.up_blocks.2", "decoder.conv_"))


def losses(x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """L1 of pixels, of their differences, and of the lengths of gradients, which blur makes small."""

    def length(x: jax.Array) -> jax.Array:
        dy, dx = x[:, 1:, :-1] - x[:, :-1, :-1], x[:, :-1, 1:] - x[:, :-1, :-1]
        return jnp.sqrt(dy**2 + dx**2 + 1e-6)

    d = x - y
    return {
        "pixels": jnp.abs(d).mean(),
        "edges": jnp.abs(jnp.diff(d, axis=1)).mean() + jnp.abs(jnp.diff(d, axis=2)).mean(),
        "lengths": jnp.abs(length(x) - length(y)).mean(),
    }


def main() -> None:
    """Train, and measure before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="what prepare.py wrote")
    add("--pipeline", type=Path, required=True, help="the folder whose vae/ is trained on")
    add("--out", type=Path, required=True, help="the weights of vae/ (.safetensors, float16)")
    add("--seconds", type=float, default=2400)
    add("--pictures", type=int, default=2496, help="how many to keep in memory, a multiple of 32; 150 KB each")
    add("--made", type=Path, help="a file for these pictures (.npz): made once, then read")
    add("--batch", type=int, default=8)
    add("--rate", type=float, default=5e-4)
    add("--lengths", type=float, default=1.0, help="weight of the lengths of gradients")
    args = parser.parse_args()

    data = emoji.load(args.data, Tokenizer())
    vae = cmjax.text_to_image.load(args.pipeline).autoencoder.network.module
    graph, params, fixed = nnx.split(vae, nnx.All(nnx.Param, in_last_level), ...)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))

    @jax.jit
    def make(data: emoji.Data, params: Any, fixed: Any, key: jax.Array, noise: jax.Array) -> Any:
        """Pictures, and what the level is given, with some of the noise that the encoder would add to latents."""
        what_key, paint_key, noise_key, share_key = jax.random.split(key, 4)
        x = emoji.pictures(data, emoji.draw_attributes(what_key, 32), paint_key)
        vae = nnx.merge(graph, params, fixed)
        mean, log_variance = vae.encode(x)
        share = noise * jax.random.uniform(share_key, (32, 1, 1, 1))
        z = mean + share * jnp.exp(0.5 * log_variance) * jax.random.normal(noise_key, mean.shape)
        return x.astype(jnp.float16), level_inputs(vae, z).astype(jnp.float16)

    @jax.jit
    def step(params: Any, average: Any, opt_state: Any, fixed: Any, x: Any, h: Any, rate: Any, keep: Any) -> Any:
        x, h = x.astype(jnp.float32), h.astype(jnp.float32)

        def loss(params: Any) -> Any:
            found = losses(x, last_level(nnx.merge(graph, params, fixed), h))
            return found["pixels"] + 2 * found["edges"] + args.lengths * found["lengths"], found

        (_, found), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        average = jax.tree.map(lambda a, p: a + (1 - keep) * (p - a), average, params)
        return params, average, opt_state, found

    @jax.jit
    def decode(params: Any, fixed: Any, h: jax.Array) -> jax.Array:
        return last_level(nnx.merge(graph, params, fixed), h.astype(jnp.float32))

    def many(seed: int, count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
        key, strength = jax.random.key(seed), np.float32(noise)
        parts = [make(data, params, fixed, jax.random.fold_in(key, i), strength) for i in range(count // 32)]
        return np.concatenate([np.asarray(x) for x, _ in parts]), np.concatenate([np.asarray(h) for _, h in parts])

    def report(event: str, params: Any, **more: Any) -> None:
        y = np.concatenate([np.asarray(decode(params, fixed, test_h[i : i + 32])) for i in range(0, _TEST, 32)])
        x = test_x.astype(np.float32)
        of_real, own = sharpness(x), sharpness(y)
        shares = {name: round(own[name] / of_real[name], 3) for name in own}
        print(json.dumps({"event": event, **more, "l1": round(float(np.abs(x - y).mean()), 5), **shares}), flush=True)

    def write(average: Any) -> None:
        tensors = file_tensors(nnx.merge(graph, average, fixed))
        draft = args.out.with_suffix(".draft")
        halves = {name: np.ascontiguousarray(value, np.float16) for name, value in tensors.items()}
        save_file(halves, draft, metadata={"format": "pt"})
        draft.replace(args.out)

    begin = time.monotonic()
    test_x, test_h = many(2, _TEST, 0.0)
    report("before", params)
    if args.made and args.made.is_file():
        with np.load(args.made) as file:
            x, h = file["x"], file["h"]
    else:
        x, h = many(1, args.pictures, 1.0)
        if args.made:
            np.savez(args.made, x=x, h=h)
    sizes = {"weights": sum(v.size for v in jax.tree.leaves(params)), "pictures": len(x)}
    print(json.dumps({"event": "made", "seconds": round(time.monotonic() - begin), **sizes}), flush=True)

    average, opt_state, shuffle = params, optimizer.init(params), np.random.default_rng(0)
    steps, written, started = 0, 0.0, time.monotonic() - begin
    while (used := time.monotonic() - begin) < args.seconds:
        share = (used - started) / (args.seconds - started)
        rate = args.rate * min(1.0, share / 0.03) * 0.5 * (1 + np.cos(np.pi * share))
        keep = min(0.98, (1 + steps) / (10 + steps))
        pick = shuffle.integers(0, len(x), args.batch)
        params, average, opt_state, found = step(
            params, average, opt_state, fixed, x[pick], h[pick], np.float32(rate), np.float32(keep)
        )
        jax.block_until_ready(found)
        steps += 1
        if used - written > 120:
            written = used
            write(average)
            now = {name: round(float(value), 4) for name, value in found.items()}
            report("measure", average, seconds=round(used), steps=steps, loss=now)
    write(average)
    report("after", average, steps=steps)


if __name__ == "__main__":
    main()
