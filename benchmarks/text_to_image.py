"""Texts to pictures: Stable Diffusion in its published size, beside diffusers, on the processor of this machine.

Random weights in float32; times do not depend on them. The text encoders, one forward pass of the network, the decoder
(one 512 x 512 picture for Stable Diffusion 1.5), and all of it with four steps of TCD: from tokens to a picture, noise
drawn in the loop. cmjax, diffusers eager, and diffusers compiled (channels last) are measured one after the other, each
in a process of its own, so that each has the whole machine and its memory is known; figures are medians. On a busy
machine, read the processor times (`cpu`, summed over threads), which depend little on other work.

The floor of the picture is its parts: the encoders, four forward passes, the decoder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Timing, conclude, machine, parser, print_table, target

import cmjax

__all__ = ["PARTS", "Torch", "inputs", "programs"]

PARTS = ("text encoder", "network", "decoder", "picture")
OURS, EAGER, COMPILED = "cmjax", "diffusers, eager", "diffusers, compiled"
STEPS = 4


def inputs(name: str, batch: int, size: int | None = None) -> tuple[list[np.ndarray], tuple[int, ...]]:
    """Tokens of each text encoder, i32[B, 77], and the shape of latents."""
    import full_size_texts

    full = full_size_texts.MODELS[name]
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, config.vocab_size - 2, (batch, 77), np.int32) for config in full.encoders]
    for ids, config in zip(tokens, full.encoders, strict=True):
        ids[:, 0], ids[:, 9:] = config.vocab_size - 2, config.vocab_size - 1
    side = full.unet.sample_size if size is None else size // full.autoencoder.downsampling
    return tokens, (batch, side, side, full.unet.in_channels)


# ---- ours ------------------------------------------------------------------------------------------------------------


def programs(pipe: Any, tokens: list[np.ndarray], shape: tuple[int, ...]) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """What is measured of a model, as jitted functions and their arguments: `lower(*arguments)` compiles for them."""
    from cmjax.text_to_image import Prompt, TextToImage, draw_prompt

    state = cmjax.tcd.init(pipe.config, num_steps=STEPS, eta=0.3)
    prompt = Prompt(tuple(map(jnp.asarray, tokens)))
    cond = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype), jax.eval_shape(TextToImage.encode, pipe, prompt.tokens)
    )
    x = jax.random.normal(jax.random.key(1), shape)
    return {
        "text encoder": (jax.jit(TextToImage.encode), (pipe, prompt.tokens)),
        "network": (jax.jit(lambda pipe, *given: pipe.model(*given)), (pipe, x, jnp.int32(999), cond)),
        "decoder": (jax.jit(lambda pipe, x: pipe.autoencoder.decode(x)), (pipe, x)),
        "picture": (
            jax.jit(lambda pipe, state, key, prompt: draw_prompt(pipe, state, key, shape, prompt)),
            (pipe, state, jax.random.key(0), prompt),
        ),
    }


# ---- the reference ---------------------------------------------------------------------------------------------------


class Torch:
    """The same model in PyTorch, with random weights.

    Args:
        name: of `full_size_texts.MODELS`.
        device: where.
        dtype: of weights and arithmetic.
        compiled: whether by `torch.compile`, channels last.
    """

    def __init__(self, name: str, device: str = "cpu", dtype: str = "float32", *, compiled: bool = False):
        import diffusers
        import full_size_texts
        import torch
        import transformers

        full = full_size_texts.MODELS[name]
        self.torch, self.device, self.dtype = torch, device, getattr(torch, dtype)
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel.from_config(full.unet.to_dict())
            vae = diffusers.AutoencoderKL.from_config(full.autoencoder.to_dict())
            encoders = [
                getattr(transformers, config.class_name)(transformers.CLIPTextConfig.from_dict(config.to_dict()))
                for config in full.encoders
            ]
        self.unet, self.vae, *self.encoders = (self._filled(each) for each in (unet, vae, *encoders))
        self.vae.encoder = None
        self.is_xl = full.unet.addition_embed_type is not None
        self.size = full.autoencoder.downsampling * full.unet.sample_size
        self.scheduler = diffusers.TCDScheduler(clip_sample=False)
        if compiled:
            self.unet = torch.compile(self.unet.to(memory_format=torch.channels_last), dynamic=False)
            self.vae.decoder = torch.compile(self.vae.decoder.to(memory_format=torch.channels_last), dynamic=False)
            self.encoders = [torch.compile(encoder, dynamic=False) for encoder in self.encoders]

    def _filled(self, module: Any) -> Any:
        module = module.to(self.dtype).to_empty(device=self.device).eval()
        torch = self.torch
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.fill_(0.5)
            for key, value in module.named_buffers():
                if key.endswith("position_ids"):
                    value.copy_(torch.arange(value.shape[-1]))
        return module

    def encode(self, tokens: list[np.ndarray]) -> dict[str, Any]:
        """What the network is told of tokens."""
        ids = [self.torch.from_numpy(one).long().to(self.device) for one in tokens]
        found = [
            encoder(input_ids=one, output_hidden_states=self.is_xl)
            for encoder, one in zip(self.encoders, ids, strict=True)
        ]
        if not self.is_xl:
            return {"encoder_hidden_states": found[0].last_hidden_state}
        context = self.torch.cat([out.hidden_states[-2] for out in found], dim=-1)
        sizes = self.torch.tensor([[self.size, self.size, 0, 0, self.size, self.size]], device=self.device)
        more = {"text_embeds": found[-1].text_embeds, "time_ids": sizes.repeat(len(context), 1)}
        return {"encoder_hidden_states": context, "added_cond_kwargs": more}

    def noise(self, shape: tuple[int, ...]) -> Any:
        """Latents, f[B, C, h, w]."""
        batch, height, width, channels = shape
        return self.torch.randn(batch, channels, height, width, device=self.device, dtype=self.dtype)

    def decode(self, latents: Any) -> Any:
        """Latents to pictures."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample

    def draw(self, tokens: list[np.ndarray], shape: tuple[int, ...]) -> Any:
        """Tokens to pictures, in four steps."""
        self.scheduler.set_timesteps(STEPS, device=self.device)
        told, x = self.encode(tokens), self.noise(shape)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t, **told).sample, t, x, eta=0.3).prev_sample
        return self.decode(x)

    def programs(self, tokens: list[np.ndarray], shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
        """What is measured, each done when it returns."""
        torch = self.torch
        with torch.no_grad():
            told, x = self.encode(tokens), self.noise(shape)
        t = torch.tensor(999, device=self.device)

        def waited(program: Callable[[], Any]) -> Callable[[], Any]:
            def call() -> None:
                with torch.no_grad():
                    program()
                if self.device == "cuda":
                    torch.cuda.synchronize()

            return call

        return {
            "text encoder": waited(lambda: self.encode(tokens)),
            "network": waited(lambda: self.unet(x, t, **told).sample),
            "decoder": waited(lambda: self.decode(x)),
            "picture": waited(lambda: self.draw(tokens, shape)),
        }


# ---- a process of its own --------------------------------------------------------------------------------------------


def _peak() -> int | None:
    """The largest resident set of this process so far, in bytes."""
    try:
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0])
    except OSError:
        return None


def measure(kind: str, name: str, size: int | None, rounds: int) -> None:
    """Measure one framework, and print what was found as a line of JSON."""
    tokens, shape = inputs(name, 1, size)
    first: dict[str, float] = {}
    calls: dict[str, Callable[[], Any]] = {}
    if kind == OURS:
        import full_size_texts

        pipe = full_size_texts.random(name)
        for part, (function, arguments) in programs(pipe, tokens, shape).items():
            start = time.perf_counter()
            compiled = function.lower(*arguments).compile()
            first[part] = time.perf_counter() - start
            calls[part] = lambda compiled=compiled, arguments=arguments: jax.block_until_ready(compiled(*arguments))
        assert bool(jnp.isfinite(calls["network"]()).all()), "what the network predicts must be finite"
    else:
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        calls = Torch(name, compiled=kind == COMPILED).programs(tokens, shape)
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    cpu: dict[str, list[float]] = {part: [] for part in PARTS}
    for part in PARTS[: 2 if kind != COMPILED else 3]:  # the picture's parts are warm then, and compiled
        start = time.perf_counter()
        calls[part]()
        first.setdefault(part, time.perf_counter() - start)
    for _ in range(rounds):
        for part in PARTS:
            start, cpu_start = time.perf_counter(), time.process_time()
            calls[part]()
            seconds[part].append(time.perf_counter() - start)
            cpu[part].append(time.process_time() - cpu_start)
    times = {part: Timing.of(values, cpu[part]) for part, values in seconds.items()}
    print(json.dumps({"times": times, "first_seconds": first, "peak_bytes": _peak()}))


def fresh(kind: str, name: str, size: int | None, rounds: int) -> dict[str, Any]:
    """Measure one framework in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, "--model", name, "--rounds", str(rounds)]
    command += [] if size is None else ["--size", str(size)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"the process of {kind} failed:\n{ran.stderr[-6000:]}")
    return json.loads(ran.stdout.strip().splitlines()[-1])


def report(name: str, found: Mapping[str, Any]) -> None:
    """Print a table of seconds and memory."""
    kinds = list(found)
    rows = [[part, *(f"{found[kind]['times'][part]['median']:.3f}" for kind in kinds)] for part in PARTS]
    rows += [[f"{part}, cpu", *(f"{found[kind]['times'][part]['cpu']:.3f}" for kind in kinds)] for part in PARTS]
    rows.append(["peak memory, GB", *(f"{(found[kind]['peak_bytes'] or 0) / 1e9:.2f}" for kind in kinds)])
    rows.append(["compiled in, s", *(f"{sum(found[kind]['first_seconds'].values()):.1f}" for kind in kinds)])
    print_table(f"{name}, one picture, seconds (medians)", ["", *kinds], rows)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="sd15", choices=("sd15", "sdxl", "tiny", "tiny-xl"))
    options.add_argument("--tiny", action="store_true", help="tiny networks, one round: does it run?")
    options.add_argument("--size", type=int, help="pixels a side; default: the native size")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--compiled", action="store_true", help="diffusers through torch.compile too")
    options.add_argument("--child", choices=(OURS, EAGER, COMPILED), help="measure this one, here")
    args = options.parse_args(arguments)
    if args.tiny:
        args.model, args.rounds = "tiny", 1
    jax.config.update("jax_enable_compilation_cache", False)
    if args.child:
        measure(args.child, args.model, args.size, args.rounds)
        return
    here, kinds = machine(), [OURS]
    if all(importlib.util.find_spec(package) for package in ("torch", "diffusers", "transformers")):
        kinds += [EAGER, *([COMPILED] if args.compiled else [])]
    else:
        print("torch, diffusers or transformers is not installed: cmjax alone is measured")
    found, result = {}, {}
    for kind in kinds:
        found[kind] = fresh(kind, args.model, args.size, args.rounds)
        print(f"{kind}: measured", flush=True)
        result = {"program": "text_to_image", "model": args.model, "size": args.size, "steps": STEPS, "found": found}
        conclude(result, args.json, here)  # it stays if what comes next takes too long
    report(args.model, found)
    targets = []
    for kind in kinds[1:]:
        for part in PARTS:
            over = found[OURS]["times"][part]["median"] / found[kind]["times"][part]["median"]
            targets.append(target(over, 1.0, f"{args.model}, {part}: our time over {kind}"))
        if found[OURS]["peak_bytes"]:
            over = found[OURS]["peak_bytes"] / found[kind]["peak_bytes"]
            targets.append(target(over, 1.15, f"{args.model}: peak memory over {kind}"))
    conclude({**result, "targets": targets}, args.json, here)


if __name__ == "__main__":
    main()
