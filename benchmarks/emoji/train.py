"""Train a small text-to-image model in minutes: `train.py --data pictograms.npz --out DIR`, resumed by `--resume DIR`.

Three stages, each within its seconds: an autoencoder; a text encoder and a UNet together, on the autoencoder's latents;
and a student, distilled from the guided UNet by the trajectory loss. A stage's learning rate falls to 0 over the share
of its seconds that is used, so every run ends annealed, however fast the machine is. Pictures and captions are composed
on the device. The folder then holds at most eight files:

    parts.npz, unet.npz, student.npz    the averaged weights in float32: what `--resume` reads
    teacher.tar, student.tar            float16 folders for diffusers
    log.jsonl, stages.png, student.png

`--resume` takes the weights that the folder has and trains on; give a stage 0 seconds to keep it as it is.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import time
from pathlib import Path
from typing import Any

import data as emoji
import grids
import jax
import jax.numpy as jnp
import numpy as np
import optax
from captions import Tokenizer
from flax import nnx
from parts import SCHEDULE, configs, definitions, fresh, save_pipeline

import cmjax

_STAGES = ("autoencoder", "diffusion", "distil")
_MOST_CALLS = 50  # steps of the longest path of a sampler


class Run:
    """What all stages share: arguments, constants on the device, weights, and the log."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.start = args, time.monotonic()
        args.out.mkdir(parents=True, exist_ok=True)
        self.log_file = (args.out / "log.jsonl").open("a")
        self.tokenizer = Tokenizer()
        self.data = emoji.load(args.data, self.tokenizer)
        self.on_cpu = jax.default_backend() == "cpu"
        self.dtype = jnp.float32 if self.on_cpu or args.float32 else jnp.bfloat16
        self.configs = configs(self.tokenizer, tiny=args.tiny)
        self.defs = definitions(self.configs, self.dtype)
        self.params: dict[str, Any] = fresh(self.configs, args.seed)
        self.params["student"] = None
        self.scale = 1.0
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        if args.resume:
            self.read(args.resume)
        sizes = {n: sum(x.size for x in jax.tree.leaves(p)) for n, p in self.params.items()}
        self.log("start", backend=jax.default_backend(), device=jax.devices()[0].device_kind, parameters=sizes)

    def log(self, event: str, **values: Any) -> None:
        """Write a line to the log and to the terminal."""
        line = {"seconds": round(time.monotonic() - self.start, 2), "event": event, **values}
        self.log_file.write(json.dumps(line) + "\n")
        self.log_file.flush()
        print(json.dumps(line), flush=True)

    def left(self) -> float:
        """Seconds that are left of all."""
        return self.args.total_seconds - (time.monotonic() - self.start)

    # ---- files ----

    def read(self, folder: Path) -> None:
        """Take the weights that a folder has."""
        for file, names in _FILES.items():
            if not (folder / file).is_file():
                continue
            with np.load(folder / file) as found:
                for name in names:
                    like = self.params["unet"] if name == "student" else self.params[name]
                    flat = [(path, found[f"{name}.{'.'.join(map(str, path))}"]) for path, _ in _flat(like)]
                    self.params[name] = _unflat(like, flat)
                if "scale" in found:
                    self.scale = float(found["scale"])
            self.log("read", file=file)

    def write(self, file: str) -> None:
        """Write the weights of one file."""
        names = _FILES[file]
        if any(self.params[name] is None for name in names):
            return
        arrays = {
            f"{name}.{'.'.join(map(str, path))}": np.asarray(value, np.float32)
            for name in names
            for path, value in _flat(self.params[name])
        }
        draft = self.args.out / (file + ".draft")
        with draft.open("wb") as out:
            np.savez(out, scale=np.float32(self.scale), **arrays)
        draft.replace(self.args.out / file)

    def export(self, name: str) -> None:
        """Write the tar of the teacher or of the student."""
        unet = self.params["unet" if name == "teacher" else "student"]
        if unet is None:
            return
        given = configs(self.tokenizer, tiny=self.args.tiny, scaling_factor=self.scale)
        params = {part: self.params[part] for part in ("vae", "text_encoder")} | {"unet": unet}
        save_pipeline(self.args.out / f"{name}.tar", given, params, self.tokenizer)

    # ---- training ----

    def compile(self, step: Any, *inputs: Any) -> concurrent.futures.Future:
        """Compile a step in the background, while another stage trains."""

        def work() -> Any:
            before = time.monotonic()
            program = step.lower(*jax.tree.map(_abstract, inputs)).compile()
            self.log("compiled", step=step.__name__, took=round(time.monotonic() - before, 1))
            return program

        return self.pool.submit(work)

    def train(
        self, stage: str, budget: float, rate: float, program: Any, params: Any, average: Any, more: Any, keep: Any
    ) -> Any:
        """Call a compiled step until the seconds are used; returns the averaged weights."""
        args = self.args
        state = (params, average, _zeros(jax.eval_shape(_optimizer().init, params)))
        key, steps, begin, kept = jax.random.key(args.seed + _STAGES.index(stage)), 0, time.monotonic(), 0.0
        losses = None
        while (used := time.monotonic() - begin) < budget:
            share = used / budget
            now = rate * min(1.0, share / 0.03) * 0.5 * (1 + np.cos(np.pi * share))
            key, step_key = jax.random.split(key)
            state, losses = program(state, more, self.data, step_key, np.float32(now), np.int32(steps))
            losses = {name: float(value) for name, value in losses.items()}
            first = steps == 0
            steps += args.steps
            used = time.monotonic() - begin
            if first or used - kept > args.log_seconds or used >= budget:
                kept = used
                pictures = steps * getattr(args, f"{stage}_batch")
                self.log(stage, steps=steps, rate=float(now), a_second=round(pictures / used), **losses)
            if used // 60 > (used - (used / max(steps // args.steps, 1))) // 60:
                keep(state[1])
        return state[1]


_FILES = {"parts.npz": ("vae", "text_encoder"), "unet.npz": ("unet",), "student.npz": ("student",)}


def _flat(state: Any) -> list[tuple[Any, Any]]:
    return [(path, variable.get_value()) for path, variable in nnx.to_flat_state(state)]


def _unflat(like: Any, flat: list[tuple[Any, Any]]) -> Any:
    values = dict(flat)
    return nnx.from_flat_state([(p, v.replace(np.asarray(values[p], np.float32))) for p, v in nnx.to_flat_state(like)])


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), shapes)


def _abstract(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "dtype") else x


def _optimizer() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.99))


def _update(state: Any, grads: Any, rate: Any, count: Any, *, decay: float, longest: float) -> Any:
    """One step of AdamW, and of the average, whose memory grows with the steps."""
    params, average, optimizer = state
    updates, optimizer = _optimizer().update(grads, optimizer)
    params = jax.tree.map(lambda p, u: p - rate * (u + decay * p), params, updates)
    keep = jnp.minimum(longest, (1.0 + count) / (10.0 + count))
    average = jax.tree.map(lambda a, p: a + (1 - keep) * (p - a), average, params)
    return params, average, optimizer


def _scan(run: Run, one: Any, state: Any, inputs: Any) -> Any:
    """Scan; on a CPU in Python, since XLA's convolutions are slow inside of its loops there (take few --steps)."""
    if not run.on_cpu:
        return jax.lax.scan(one, state, inputs)
    found = []
    for i in range(len(jax.tree.leaves(inputs)[0])):
        state, out = one(state, jax.tree.map(lambda v, i=i: v[i], inputs))
        found.append(out)
    return state, jax.tree.map(lambda *v: jnp.stack(v), *found)


def _mean(losses: Any) -> Any:
    return jax.tree.map(lambda v: v.mean(), losses)


# ---- the stages' steps: each a scan of `args.steps` updates ----------------------------------------------------------


def autoencoder_step(run: Run) -> Any:
    """The jitted steps of the autoencoder: L1 of pixels and of their differences, and a little KL."""
    args, definition = run.args, run.defs["vae"]

    def loss(params: Any, x: Any, key: Any) -> Any:
        vae = nnx.merge(definition, params)
        mean, log_variance = vae.encode(x)
        z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        y = vae.decode(z)
        pixels = jnp.abs(x - y).mean()
        edges = sum(jnp.abs(jnp.diff(x - y, axis=axis)).mean() for axis in (1, 2))
        coarse = jnp.abs((x - y).reshape(-1, 16, 4, 16, 4, 3).mean((2, 4))).mean()
        kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).mean()
        return pixels + edges + 0.5 * coarse + args.kl * kl, {"pixels": pixels, "kl": kl}

    @functools.partial(jax.jit, donate_argnums=0)
    def autoencoder(state: Any, more: Any, data: Any, key: Any, rate: Any, count: Any) -> Any:
        def one(state: Any, inputs: Any) -> Any:
            key, i = inputs
            draw_key, paint_key, noise_key = jax.random.split(key, 3)
            x = emoji.pictures(data, emoji.draw_attributes(draw_key, args.autoencoder_batch), paint_key)
            (_, losses), grads = jax.value_and_grad(loss, has_aux=True)(state[0], x, noise_key)
            return _update(state, grads, rate, i, decay=0.0, longest=0.998), losses

        keys = jax.random.split(key, args.steps)
        state, losses = _scan(run, one, state, (keys, count + jnp.arange(args.steps)))
        return state, _mean(losses)

    return autoencoder


def measurement(run: Run) -> Any:
    """A jitted look at pictures, their reconstructions, and the latents' spread."""
    definition = run.defs["vae"]

    @jax.jit
    def measure(params: Any, data: Any, key: Any) -> Any:
        vae = nnx.merge(definition, params)
        x = emoji.pictures(data, emoji.draw_attributes(key, run.args.measure), key)
        mean, log_variance = vae.encode(x)
        std = jnp.sqrt(jnp.square(mean).mean() - jnp.square(mean.mean()) + jnp.exp(log_variance).mean())
        return x, vae.decode(mean), std, mean.mean((0, 1, 2)), mean.std((0, 1, 2))

    return measure


def _latents_and_tokens(run: Run, vae_params: Any, scale: Any, data: Any, key: Any, batch: int, empty: float) -> Any:
    draw_key, paint_key, text_key, noise_key = jax.random.split(key, 4)
    what = emoji.draw_attributes(draw_key, batch)
    x = emoji.pictures(data, what, paint_key)
    mean, log_variance = nnx.merge(run.defs["vae"], vae_params).encode(x)
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(noise_key, mean.shape)
    return z * scale, emoji.tokens(data, what, text_key, empty=empty)


def diffusion_step(run: Run) -> Any:
    """The jitted steps of text encoder and UNet: squared error of v, at uniform timesteps."""
    args, defs = run.args, run.defs

    def loss(params: Any, z: Any, tokens: Any, key: Any) -> Any:
        text = nnx.merge(defs["text_encoder"], params["text_encoder"])(tokens).last
        unet = nnx.merge(defs["unet"], params["unet"])
        t_key, noise_key = jax.random.split(key)
        t = jax.random.randint(t_key, z.shape[:1], 0, SCHEDULE.num_train_timesteps)
        rates = cmjax.tcd.trajectory_fn(unet, SCHEDULE).rates(t)
        alpha, sigma = (rate[:, None, None, None] for rate in rates)
        eps = jax.random.normal(noise_key, z.shape)
        v = alpha * eps - sigma * z
        error = jnp.square(unet(alpha * z + sigma * eps, t, text) - v).mean()
        return error, {"v_error": error}

    @functools.partial(jax.jit, donate_argnums=0)
    def diffusion(state: Any, more: Any, data: Any, key: Any, rate: Any, count: Any) -> Any:
        vae_params, scale = more

        def one(state: Any, inputs: Any) -> Any:
            key, i, z, tokens = inputs
            (_, losses), grads = jax.value_and_grad(loss, has_aux=True)(state[0], z, tokens, key)
            return _update(state, grads, rate, i, decay=0.01, longest=0.999), losses

        def reused(state: Any, inputs: Any) -> Any:
            key, i = inputs
            data_key, key = jax.random.split(key)
            z, tokens = _latents_and_tokens(run, vae_params, scale, data, data_key, args.diffusion_batch, 0.1)
            z, tokens = (jnp.broadcast_to(v, (args.reuse, *v.shape)) for v in (z, tokens))
            return _scan(run, one, state, (jax.random.split(key, args.reuse), i + jnp.arange(args.reuse), z, tokens))

        rounds = args.steps // args.reuse
        keys = jax.random.split(key, rounds)
        state, losses = _scan(run, reused, state, (keys, count + args.reuse * jnp.arange(rounds)))
        return state, _mean(losses)

    return diffusion


def distil_step(run: Run) -> Any:
    """The jitted steps of the student: the trajectory loss with the guided UNet as teacher."""
    args, defs = run.args, run.defs
    empty = jnp.asarray(run.tokenizer(""))[None]

    def loss(params: Any, more: Any, z: Any, tokens: Any, key: Any) -> Any:
        text_params, unet_params = more
        encode = nnx.merge(defs["text_encoder"], text_params)
        context, null = encode(tokens).last, encode(empty).last[0]
        teacher = cmjax.guidance.classifier_free(nnx.merge(defs["unet"], unet_params), args.guidance, null)
        student = nnx.merge(defs["unet"], params)
        g, step = (cmjax.tcd.trajectory_fn(model, SCHEDULE) for model in (student, teacher))
        error = cmjax.losses.trajectory_distillation(
            # The student is its own target, and the pairs lie two levels apart: what is known at the clean end must
            # reach the noisy end within some hundred steps.
            *(g, g, step, z, key),
            skip=2,
            cond=context,
            metric=functools.partial(cmjax.losses.pseudo_huber, c=0.03),
        ).mean()
        return error, {"trajectory": error}

    @functools.partial(jax.jit, donate_argnums=0)
    def distil(state: Any, more: Any, data: Any, key: Any, rate: Any, count: Any) -> Any:
        vae_params, scale, *teacher = more

        def one(state: Any, inputs: Any) -> Any:
            key, i = inputs
            data_key, key = jax.random.split(key)
            z, tokens = _latents_and_tokens(run, vae_params, scale, data, data_key, args.distil_batch, 0.0)
            grad = jax.value_and_grad(loss, has_aux=True)
            (_, losses), grads = grad(state[0], teacher, z, tokens, key)
            return _update(state, grads, rate, i, decay=0.0, longest=0.98), losses

        keys = jax.random.split(key, args.steps)
        state, losses = _scan(run, one, state, (keys, count + jnp.arange(args.steps)))
        return state, _mean(losses)

    return distil


# ---- drawing ---------------------------------------------------------------------------------------------------------


def drawer(run: Run, *, guided: bool) -> Any:
    """A jitted sampler along a path of up to 50 calls, whose length is an input: one compilation for all lengths."""
    defs, guidance = run.defs, run.args.guidance
    empty = jnp.asarray(run.tokenizer(""))[None]

    @jax.jit
    def draw(unet_params: Any, text_params: Any, vae_params: Any, scale: Any, tokens: Any, key: Any, path: Any) -> Any:
        encode = nnx.merge(defs["text_encoder"], text_params)
        context, null = encode(tokens).last, encode(empty).last[0]
        unet = nnx.merge(defs["unet"], unet_params)
        g = cmjax.tcd.trajectory_fn(cmjax.guidance.classifier_free(unet, guidance, null) if guided else unet, SCHEDULE)
        keys = jax.random.split(key, _MOST_CALLS + 1)

        def step(i: Any, x: Any) -> Any:
            landed = g(x, path["timesteps"][i], path["landings"][i], context)
            return path["kept"][i] * landed + path["fresh"][i] * jax.random.normal(keys[i], x.shape)

        x = jax.random.normal(keys[-1], (len(tokens), 16, 16, 4))
        x = jax.lax.fori_loop(0, path["num"], step, x)
        return nnx.merge(defs["vae"], vae_params).decode(x / scale)

    return draw


def plan(num: int, eta: float) -> dict[str, np.ndarray]:
    """A path of some steps, padded to 50."""
    state = cmjax.tcd.init(SCHEDULE, num_steps=num, eta=eta)
    found = {"num": np.int32(num)}
    for name in ("timesteps", "landings", "kept", "fresh"):
        value = np.asarray(getattr(state, name))
        found[name] = np.pad(value, (0, _MOST_CALLS - num))
    return found


def draw_prompts(run: Run, program: Any, unet: Any, num: int, eta: float) -> np.ndarray:
    """Draw the fixed prompts."""
    tokens = np.stack([run.tokenizer(text) for text in grids.PROMPTS])
    params = run.params
    return np.asarray(
        program(
            unet,
            params["text_encoder"],
            params["vae"],
            np.float32(run.scale),
            tokens,
            jax.random.key(5),
            plan(num, eta),
        )
    )


# ---- the whole run ---------------------------------------------------------------------------------------------------


def budgets(args: argparse.Namespace, left: float) -> dict[str, float]:
    """The stages' seconds, shrunk where all of them no longer fit into what is left."""
    wanted = {stage: float(getattr(args, f"{stage}_seconds")) for stage in _STAGES}
    shrink = min(1.0, max(left - args.reserve_seconds, 1.0) / max(sum(wanted.values()), 1e-9))
    return {stage: seconds * shrink for stage, seconds in wanted.items()}


def train_autoencoder(run: Run, budget: float, program: Any, measure: Any) -> None:
    """Train it, measure the latents' spread, and draw reconstructions."""

    def keep(average: Any) -> None:
        run.params["vae"] = jax.device_get(average)
        run.write("parts.npz")

    params = run.params["vae"]
    average = run.train(
        "autoencoder",
        budget,
        run.args.autoencoder_rate,
        program,
        jax.device_get(params),
        jax.device_get(params),
        (),
        keep,
    )
    run.params["vae"] = average
    x, y, std, means, stds = measure(average, run.data, jax.random.key(99))
    run.scale = float(1 / std)
    run.log("latents", scale=run.scale, means=means.tolist(), stds=stds.tolist(), l1=float(jnp.abs(x - y).mean()))
    run.write("parts.npz")
    grids.save_pairs(run.args.out / "stages.png", np.asarray(x[:32]), np.asarray(y[:32]))


def train_diffusion(run: Run, budget: float, program: Any) -> None:
    """Train text encoder and UNet, and draw with the guided teacher."""

    def keep(average: Any) -> None:
        run.params |= jax.device_get(average)
        run.write("parts.npz")
        run.write("unet.npz")

    if budget > 0:
        both = {name: run.params[name] for name in ("text_encoder", "unet")}
        more = (run.params["vae"], np.float32(run.scale))
        average = run.train(
            "diffusion",
            budget,
            run.args.diffusion_rate,
            program,
            jax.device_get(both),
            jax.device_get(both),
            more,
            keep,
        )
        keep(average)
    run.export("teacher")


def train_student(run: Run, budget: float, program: Any) -> None:
    """Distil the student."""

    def keep(average: Any) -> None:
        run.params["student"] = jax.device_get(average)
        run.write("student.npz")

    if budget > 0:
        begin = run.params["student"] or run.params["unet"]
        params = run.params
        more = (params["vae"], np.float32(run.scale), params["text_encoder"], params["unet"])
        average = run.train(
            "distil",
            budget,
            run.args.distil_rate,
            program,
            jax.device_get(begin),
            jax.device_get(begin),
            more,
            keep,
        )
        keep(average)
    run.export("student")


def main() -> None:
    """Run the stages."""
    args = arguments()
    run = Run(args)
    give = budgets(args, run.left())
    state = lambda params: (params, params, jax.eval_shape(_optimizer().init, params))  # noqa: E731
    rest = (run.data, jax.random.key(0), np.float32(0), np.int32(0))
    p, scale = run.params, np.float32(1)
    both = {name: p[name] for name in ("text_encoder", "unet")}
    steps: dict[str, Any] = {}
    if give["autoencoder"]:
        steps["autoencoder"] = run.compile(autoencoder_step(run), state(p["vae"]), (), *rest)
        steps["measure"] = run.compile(measurement(run), p["vae"], run.data, jax.random.key(99))
    if give["diffusion"]:
        steps["diffusion"] = run.compile(diffusion_step(run), state(both), (p["vae"], scale), *rest)
    if give["distil"]:
        more = (p["vae"], scale, p["text_encoder"], p["unet"])
        steps["distil"] = run.compile(distil_step(run), state(p["unet"]), more, *rest)
    teacher, student = drawer(run, guided=True), drawer(run, guided=False)
    tokens = np.stack([run.tokenizer(text) for text in grids.PROMPTS])
    inputs = (p["unet"], p["text_encoder"], p["vae"], scale, tokens, jax.random.key(5), plan(1, 0.0))
    draw_teacher, draw_student = run.compile(teacher, *inputs), run.compile(student, *inputs)

    if give["autoencoder"]:
        program = steps["autoencoder"].result()
        train_autoencoder(run, give["autoencoder"], program, lambda *inputs: steps["measure"].result()(*inputs))
    program = steps["diffusion"].result() if give["diffusion"] else None
    give = {**give, "diffusion": budgets(args, run.left() + give["autoencoder"])["diffusion"]}
    train_diffusion(run, give["diffusion"], program)
    program = steps["distil"].result() if give["distil"] else None
    distil = min(give["distil"], max(run.left() - args.reserve_seconds, 1.0)) if give["distil"] else 0.0
    train_student(run, distil, program)
    rows = {f"teacher, 50 calls, guidance {args.guidance}": draw_prompts(run, draw_teacher.result(), p["unet"], 50, 0)}
    if p["student"] is not None:
        for num in (1, 2, 4):
            rows[f"student, {num} steps"] = draw_prompts(run, draw_student.result(), p["student"], num, 0.3)
    grids.save_grid(args.out / "student.png", rows, grids.PROMPTS)
    run.log("end")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="what prepare.py wrote")
    add("--out", type=Path, required=True)
    add("--resume", type=Path, help="a folder of an earlier run")
    add("--autoencoder-seconds", type=float, default=55)
    add("--diffusion-seconds", type=float, default=200)
    add("--distil-seconds", type=float, default=60)
    add("--total-seconds", type=float, default=430, help="of the whole run, compilation and files included")
    add("--reserve-seconds", type=float, default=20, help="of these, for drawing and files")
    add("--autoencoder-batch", type=int, default=256)
    add("--diffusion-batch", type=int, default=512)
    add("--distil-batch", type=int, default=256)
    add("--autoencoder-rate", type=float, default=1e-3)
    add("--diffusion-rate", type=float, default=1e-3)
    add("--distil-rate", type=float, default=4e-4)
    add("--kl", type=float, default=3e-4)
    add("--guidance", type=float, default=3.0)
    add("--steps", type=int, default=24, help="updates in one call, a multiple of --reuse")
    add("--reuse", type=int, default=3, help="noise draws for each picture that the diffusion stage composes")
    add("--measure", type=int, default=1024, help="pictures whose latents are measured")
    add("--log-seconds", type=float, default=5)
    add("--seed", type=int, default=0)
    add("--float32", action="store_true")
    add("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
