"""Training steps: every method beside the same recipe in plain PyTorch, and what losses and the loop add to them.

Four questions, on the embedded model's network. *Step*: images per second of `cmjax.training.train_step` for every
method, in turn with the step of `training_torch.py` for diffusers' UNet: the same loss, Adam with the gradient clipped,
and one average of the weights (and the average that gives the targets, where a method has one). Curricula stand at
their ends, where the steps are dearest. On a CPU each core is a device and has its part of the batch, as in `cmjax
train`; PyTorch has its default, a thread for each core. *Loss*: the value and the gradient of a loss over the same
calls of the network, forward and backward, and nothing else, compiled as one program; both must have as many
multiplications. *Compilations* of the step over whole runs whose curricula change. *Loop*: `cmjax.training.train` on
bytes in memory, for each step of it, over the step on a batch that lies on the device.

Of the first method also: the same step on one device, which has as many threads, and where the time of a step goes.

Memory is the largest resident set of a fresh process that takes four steps: until the first is done, compilation
included, and over the other three; beside it what the compiled step says of its arguments and its temporary arrays.

On a GPU, PyTorch runs there as well if it can, and everything is timed in bfloat16 too; `--peak-tflops` gives the share
of the peak. (That part has not been run yet.)
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Timing, conclude, interleaved, machine, parser, print_table, ratio, target
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from unet_forward import labelled, multiplications, reference, shares

import cmjax
from cmjax._mesh import batch_mesh
from cmjax.drawing import use_cores_as_devices
from cmjax.io.memory import return_freed_memory
from cmjax.training import METHODS, Learner, Recipe, init, train, train_step

use_cores_as_devices()  # before JAX begins: in this process, and in the fresh ones that import it

FOLDER = Path(cmjax.__file__).parent / "pretrained" / "fashion-mnist-cm"
STEPS = 12_000  # of the recipes; past the end of a run every curriculum stays where it ended
# Calls of the network without a gradient, beside the one with: of the target, and of the teacher.
WITHOUT = {"edm": 0, "vp": 0, "ect": 1, "ict": 1, "ct": 1, "cd": 3, "sct": 0, "scd": 1, "pd": 2, "tcd": 2, "lcd": 2}
FORWARD = ("sct", "scd")  # those whose call with a gradient has a forward derivative as well
CURRICULA = ("ect", "ict", "ct", "sct", "pd")
OURS, ONE, THEIRS, COMPILED = "ours", "ours, one device", "PyTorch", "PyTorch compiled"
KERNELS = {r"f32\[\d+,(3,3|1,1),\d+\]": "convolutions, kernels' gradients"}  # XLA gives these no name
_TIMED = list(WITHOUT)  # the methods that `training_torch.py` has too
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


# ---- the step --------------------------------------------------------------------------------------------------------


def recipe_of(name: str, batch: int, steps: int = STEPS) -> Recipe:
    return Recipe(method=METHODS[name](), steps=steps, batch_size=batch)


def configs(name: str) -> tuple[Any, Any]:
    """The config of a method's model, and that of its teacher."""
    kind = METHODS[name]
    config = kind.config_type()
    taught_by = config if isinstance(config, kind.teacher_type) else kind.teacher_type()
    return config, taught_by if kind.needs_teacher else None


def network(folder: Path, dtype: str = "float32") -> Any:
    return cmjax.io.load_unet(folder, dtype=jnp.dtype(dtype))


def batch_of(model: Any, size: int) -> tuple[jax.Array, jax.Array]:
    """Images as bytes, and labels, on the device."""
    config = model.config
    shape = (size, config.sample_size, config.sample_size, config.in_channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return jnp.asarray(images), jnp.arange(size) % config.num_class_embeds


class Step:
    """A compiled training step and all that it is given. A call takes one step, waits, and returns the loss."""

    def __init__(self, name: str, folder: Path, batch: int, dtype: str = "float32", *, alone: bool = False):
        recipe, model, (config, teacher_config) = recipe_of(name, batch), network(folder, dtype), configs(name)
        teacher = None if teacher_config is None else network(folder, dtype)
        mesh = batch_mesh(1 if alone else batch)
        state, key = init(model, recipe).replace(step=jnp.int32(STEPS)), jax.random.key(0)
        self.state, key, teacher = jax.device_put((state, key, teacher), NamedSharding(mesh, P()))
        self.given = (*jax.device_put(batch_of(model, batch), NamedSharding(mesh, P("batch"))), key, teacher)
        static = {"recipe": recipe, "config": config, "teacher_config": teacher_config}
        with labelled():
            self.compiled = train_step.lower(self.state, *self.given, **static).compile()
        return_freed_memory()  # as `train` does after its first step

    def __call__(self) -> jax.Array:
        self.state, loss = self.compiled(self.state, *self.given)
        return jax.block_until_ready(loss)

    @property
    def figures(self) -> dict[str, float]:
        """What the compiler says: bytes of the arguments and of the temporary arrays, operations."""
        memory, cost = self.compiled.memory_analysis(), self.compiled.cost_analysis()
        return {
            "arguments": memory.argument_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "operations": cost.get("flops", float("nan")),
        }


def steps(
    name: str, batch: int, dtype: str, torch_on: str | None, rounds: int, peak: float | None,
    *, compiled: bool, closely: bool,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Time a step of a method beside that of its recipe in PyTorch; closely: on one device too, and with a profile."""
    ours = Step(name, FOLDER, batch, dtype)
    programs: dict[str, Callable[[], Any]] = {OURS: ours}
    if closely and len(jax.devices()) > 1:
        programs[ONE] = Step(name, FOLDER, batch, dtype, alone=True)
    if torch_on is not None:
        import training_torch

        for kind in (THEIRS, COMPILED) if compiled and name not in training_torch.FORWARD else (THEIRS,):
            programs[kind] = training_torch.make_step(
                name, FOLDER, batch, device=torch_on, dtype=dtype, compiled=kind == COMPILED
            )
    timing, seconds = interleaved(programs, rounds=rounds)
    row: dict[str, Any] = {"method": name, "batch": batch, "dtype": dtype, "seconds": timing, **ours.figures}
    row["images_per_second"] = {kind: batch / timing[kind].median for kind in programs}
    row["over"] = {kind: ratio(seconds[OURS], seconds[kind]) for kind in programs if kind != OURS}
    if peak is not None:
        row["share_of_peak"] = row["operations"] / timing[OURS].median / (peak * 1e12)
    if closely:
        row["shares"] = shares(ours.compiled, ours, KERNELS)
    rule = f"{name}, batch {batch}, {dtype}: a training step over that of"
    return row, [target(value, 1.0, f"{rule} {kind}") for kind, value in row["over"].items() if kind != ONE]


# ---- memory ----------------------------------------------------------------------------------------------------------

FRESH = """
import json, re, sys
from pathlib import Path
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
from %s as make_step
said = {"imports": peak()}
step = make_step(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
step()
said["first step"] = peak()
Path("/proc/self/clear_refs").write_text("5")
for _ in range(3):
    step()
print(json.dumps(said | {"later steps": peak()}))
"""


def memory(name: str, batch: int, kinds: list[str]) -> dict[str, dict[str, int]]:
    """The largest resident sets of fresh processes that take a few steps, phase by phase."""
    found, base = {}, {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    for kind in kinds:
        program = FRESH % {OURS: "training import Step", THEIRS: "training_torch import make_step"}[kind]
        command = [sys.executable, "-c", program, name, str(FOLDER), str(batch)]
        child = subprocess.run(command, cwd=Path(__file__).parent, env=base, capture_output=True, text=True)
        if child.returncode:
            raise SystemExit(f"a measured process failed:\n{child.stderr}")
        found[kind] = json.loads(child.stdout.splitlines()[-1])
    return found


# ---- the loss --------------------------------------------------------------------------------------------------------


def loss_over_calls(name: str, batch: int, dtype: str, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time the value and gradient of a loss against its calls of the network alone."""
    model, (config, teacher_config), method = network(FOLDER, dtype), configs(name), METHODS[name]()
    images, labels = batch_of(model, batch)
    x = images.astype(jnp.float32) / 127.5 - 1.0
    t = jnp.linspace(-1e3, 1e3, batch) if isinstance(config, cmjax.cm.CMConfig) else jnp.arange(batch) * 1000 // batch
    given = model, model, x, labels  # and all else is an argument too: what is constant would be computed beforehand

    @jax.jit
    def loss(model: Any, other: Any, x: jax.Array, labels: jax.Array, key: jax.Array, step: jax.Array) -> Any:
        def objective(model: Any) -> jax.Array:
            target = model if method.target_decay(step, STEPS) is None else other
            learner = Learner(model, target, config, None if teacher_config is None else (other, teacher_config))
            return method.loss(learner, x, labels, key, step, STEPS).mean()

        return jax.value_and_grad(objective)(model)

    @jax.jit
    def calls(model: Any, other: Any, x: jax.Array, labels: jax.Array, t: jax.Array) -> Any:
        def objective(model: Any) -> jax.Array:
            frozen = x
            for _ in range(WITHOUT[name]):
                frozen = other(frozen, t, labels)
            if name in FORWARD:
                out, frozen = jax.jvp(lambda x, t: model(x, t, labels), (x, t), (frozen, jnp.ones_like(t)))
            else:
                out = model(x, t, labels)
            return (out * jax.lax.stop_gradient(frozen)).sum()

        return jax.value_and_grad(objective)(model)

    programs = {
        "loss": functools.partial(loss, *given, jax.random.key(0), jnp.int32(STEPS)),
        "calls": functools.partial(calls, *given, t),
    }
    of_loss, of_calls = (multiplications(jax.make_jaxpr(p.func)(*p.args).jaxpr) for p in programs.values())
    if of_loss != of_calls:
        raise SystemExit(f"{name}: the loss has {of_loss:,} multiplications, its calls of the network {of_calls:,}")
    timing, seconds = interleaved(programs, rounds=rounds)
    quotient = ratio(seconds["loss"], seconds["calls"])
    row = {"method": name, "batch": batch, "dtype": dtype, "multiplications": of_loss, "ratio": quotient, **timing}
    row["cpu_ratio"] = timing["loss"]["cpu"] / timing["calls"]["cpu"]
    return row, target(quotient, 1.05, f"{name}, batch {batch}, {dtype}: value and gradient over the network's calls")


# ---- compilations ----------------------------------------------------------------------------------------------------


def linear(weight: jax.Array, x: jax.Array, t: jax.Array, cond: Any = None, **options: Any) -> jax.Array:
    return weight * x


def compilations(name: str, steps: int = 64) -> dict[str, Any]:
    """Count how often the step is compiled in a whole run, and how many values its curriculum goes through."""
    recipe, (config, teacher_config), count = recipe_of(name, 4, steps), configs(name), 0
    if name == "pd":
        recipe = dataclasses.replace(recipe, method=METHODS[name](stages=(1.0, 1.0, 1.0)))

    def listen(event: str, seconds: float, **about: Any) -> None:
        nonlocal count
        count += event == COMPILE_EVENT and "train_step" in str(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        model = jax.tree_util.Partial(linear, jnp.zeros(()))
        teacher = None if teacher_config is None else (model, teacher_config)
        train(model, config, np.zeros((8, 4, 4, 1), np.uint8), recipe=recipe, teacher=teacher)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    if not count:
        raise SystemExit("this version of jax does not say what it compiles: nothing was counted")
    values = {tuple(recipe.method.figures(step, steps).values()) for step in range(steps)}
    return {"method": name, "steps": steps, "values": len(values), "compilations": count}


# ---- the loop --------------------------------------------------------------------------------------------------------


def loop_over_steps(batch: int, steps: int, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time a run, its start and its end included, against as many steps on one batch that lies on the device.

    It learns to denoise: that step is the shortest, so that waiting for data would show the most.
    """
    recipe, model, (config, _) = recipe_of("edm", batch, steps), network(FOLDER), configs("edm")
    mesh = batch_mesh(batch)
    resident = jax.device_put(batch_of(model, batch), NamedSharding(mesh, P("batch")))
    key, state = jax.device_put((jax.random.key(0), init(model, recipe)), NamedSharding(mesh, P()))
    images = np.random.default_rng(0).integers(0, 256, (60_000, *resident[0].shape[1:]), np.uint8)
    labels = np.arange(len(images)) % model.config.num_class_embeds

    def loop() -> Any:
        return train(model, config, images, labels, recipe=recipe, report_every=steps)

    def alone() -> Any:
        nonlocal state
        for _ in range(steps):
            state, loss = train_step(state, *resident, key, recipe=recipe, config=config)
        return loss

    timing, seconds = interleaved({"loop": loop, "alone": alone}, rounds=rounds)
    quotient = ratio(seconds["loop"], seconds["alone"])
    result = {"batch": batch, "steps": steps, "ratio": quotient, **timing}
    return result, target(quotient, 1.02, f"edm, batch {batch}: a step of the whole loop over a step alone")


# ---- all of it -------------------------------------------------------------------------------------------------------


def _ms(timing: Timing) -> str:
    return f"{timing.median * 1e3:.1f}"


def report(rows: list[dict[str, Any]], memories: list[dict[str, Any]], losses: list[dict[str, Any]]) -> None:
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["seconds"]))
    others = [kind for kind in kinds if kind != OURS]
    print_table(
        "Training steps: images per second (medians), ours over theirs in time, MiB of arguments and temporary arrays",
        ["", *kinds, *(f"over {kind}" for kind in others), "arguments", "temporary", "of the peak"],
        [
            [
                f"{row['method']}, batch {row['batch']}, {row['dtype']}",
                *(f"{row['images_per_second'][k]:.1f}" if k in row["images_per_second"] else "" for k in kinds),
                *(f"{row['over'][k]:.3f}" if k in row["over"] else "" for k in others),
                *(f"{row[k] / 2**20:.0f}" for k in ("arguments", "temporary")),
                f"{row['share_of_peak']:.1%}" if "share_of_peak" in row else "",
            ]
            for row in rows
        ],
    )
    for row in rows:
        if "shares" in row:
            print_table(
                f"{row['method']}: shares of the time of all operations",
                ["", "share"],
                [[part, f"{share:.1%}"] for part, share in row["shares"].items()],
            )
    if memories:
        columns = [(kind, phase) for kind in memories[0]["peaks"] for phase in ("first step", "later steps")]
        print_table(
            "Largest resident sets of fresh processes, MiB",
            ["", *(f"{kind}, {phase}" for kind, phase in columns)],
            [[m["method"], *(f"{m['peaks'][kind][phase] / 2**20:.0f}" for kind, phase in columns)] for m in memories],
        )
    print_table(
        "The value and gradient of a loss over its calls of the network, milliseconds (medians)",
        ["", "loss", "calls", "ratio", "of processor time"],
        [
            [
                f"{row['method']}, {row['dtype']}",
                _ms(row["loss"]),
                _ms(row["calls"]),
                f"{row['ratio']:.3f}",
                f"{row['cpu_ratio']:.3f}",
            ]
            for row in losses
        ],
    )


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", choices=_TIMED, default=_TIMED)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--loop-steps", type=int, default=100, help="of the run that the loop is timed over")
    options.add_argument("--compiled", action="store_true", help="PyTorch through torch.compile as well")
    options.add_argument("--no-memory", action="store_true", help="leave the fresh processes out")
    options.add_argument("--peak-tflops", type=float, help="of the device in bfloat16: the share of it is given")
    options.add_argument("--quick", action="store_true", help="a few methods, small and once: does it run?")
    args = options.parse_args(arguments)
    if args.quick:
        args.methods, args.batch, args.rounds, args.loop_steps = ["edm", "sct"], 4, 1, 3
    jax.config.update("jax_enable_compilation_cache", False)
    here, on_gpu = machine(), jax.default_backend() == "gpu"
    torch, device = reference(on_gpu)
    torch_on = None if torch is None else device
    rows, losses, targets = [], [], []
    for dtype in ("float32", "bfloat16") if on_gpu else ("float32",):
        peak = args.peak_tflops if dtype == "bfloat16" else None
        for name in args.methods:
            row, verdicts = steps(
                name, args.batch, dtype, torch_on, args.rounds, peak,
                compiled=args.compiled, closely=name == args.methods[0],
            )  # fmt: skip
            rows.append(row)
            targets += verdicts
            row, verdict = loss_over_calls(name, args.batch, dtype, args.rounds)
            losses.append(row)
            targets.append(verdict)
    memories = []
    if not (args.no_memory or on_gpu) and Path("/proc/self/clear_refs").exists():
        kinds = [OURS] if torch is None else [OURS, THEIRS]
        names = args.methods[:1] if args.quick else args.methods
        memories = [{"method": name, "peaks": memory(name, args.batch, kinds)} for name in names]
    report(rows, memories, losses)
    counts = [compilations(name) for name in CURRICULA]
    print_table("Compilations of the step in a whole run", list(counts[0]), [list(count.values()) for count in counts])
    targets += [target(c["compilations"], 1, f"{c['method']}: compilations over its curriculum") for c in counts]
    loop, verdict = loop_over_steps(args.batch, args.loop_steps, -(-args.rounds // 3))
    print_table(
        f"{loop['steps']} steps, milliseconds (medians)",
        ["", "in the loop", "alone", "ratio"],
        [["edm", _ms(loop["loop"]), _ms(loop["alone"]), f"{loop['ratio']:.4f}"]],
    )
    result = {"program": "training", "steps": rows, "memory": memories, "loss": losses, "compilations": counts}
    conclude({**result, "loop": loop, "targets": [*targets, verdict]}, args.json, here)


if __name__ == "__main__":
    main()
