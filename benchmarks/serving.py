"""Serving: requests that differ in everything, under an open-loop load, in one batch and one by one.

Requests arrive at random (a Poisson process) and do not wait for one another: 1 to 8 steps of TCD, eta 0 to 1, guidance
for half of them, any scale of a LoRA, a seed and a prompt each. The model is the package's `emoji` with its LoRA
`emoji-ink`, of a twenty-fifth as many numbers. (A scale a request is computed beside the weights: a larger LoRA costs
more.) Latency is from a request's arrival to its picture on the host.

- *slots*: `slots.py`. Requests enter at any step and leave at their own end; at most 8 rows a network call, and a
  program for each of 1, 2, 4 and 8 rows.
- *whole batches*: the same programs, but a batch is filled with who waits and walked to the end of its longest path.
- *one by one*: `cmjax.text_to_image.draw` of a padded path, first come, first served; a program with guidance, and one
  without.
- *diffusers*: `StableDiffusionPipeline` with `TCDScheduler` and peft, eager, one by one.

First all requests are there at once: requests a second. Then they arrive at shares of what slots managed, and latencies
are taken; a row that cannot keep up is left out there, since its queue would grow without end. Rows take turns in each
round, and see the same requests at the same times. Nothing may compile while requests are served.

On a busy machine use `--clock cpu`. Time is then the processor time of this process, and waiting for an arrival skips
ahead: what one idle core would show, but for what others do to its caches.
"""

from __future__ import annotations

import importlib.util
import math
import os
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import conclude, machine, parser, print_table, target
from slots import MOST, Alone, Request, Server

import cmjax

__all__ = ["Clock", "Diffusers", "arrivals", "requests", "serve"]

PRETRAINED = Path(cmjax.__file__).parent / "pretrained"
SLOTS, WHOLE, ALONE, DIFFUSERS = "slots", "whole batches", "one by one", "diffusers, eager"
LOADS = (0.2, 0.5, 0.8)
SHORT = 2  # steps of what counts as a short request
COMPILED = "/jax/core/compile/backend_compile_duration"


# ---- the load --------------------------------------------------------------------------------------------------------


def requests(many: int, seed: int) -> list[Request]:
    """Requests that have nothing in common but the model."""
    rng = np.random.default_rng(seed)
    subjects, colours = ("fox", "crab", "rocket", "snowman", "red apple"), ("blue", "green", "purple", "yellow")
    return [
        Request(
            prompt=f"a {rng.choice(subjects)} on a {rng.choice(colours)} background",
            steps=int(rng.integers(1, MOST + 1)),
            eta=float(rng.uniform()),
            guidance=None if rng.uniform() < 0.5 else float(rng.uniform(1.5, 4.0)),
            scale=float(rng.uniform()),
            seed=1000 * seed + i,
        )
        for i in range(many)
    ]


def arrivals(rate: float, seconds: float, seed: int) -> list[tuple[float, Request]]:
    """Times and requests of a Poisson process, of about rate x seconds requests and at least 4."""
    many = max(4, round(rate * seconds))
    times = np.cumsum(np.random.default_rng(10_000 + seed).exponential(1.0 / rate, many))
    return list(zip(times.tolist(), requests(many, seed), strict=True))


class Clock:
    """The time on the wall; or the processor time of this process, in which waiting takes none."""

    def __init__(self, kind: str):
        self.is_wall, self.skipped = kind == "wall", 0.0

    def now(self) -> float:
        return time.perf_counter() if self.is_wall else time.process_time() + self.skipped

    def wait(self, until: float) -> None:
        left = max(0.0, until - self.now())
        if self.is_wall:
            time.sleep(left)
        else:
            self.skipped += left


def serve(server: Any, load: list[tuple[float, Request]], clock: Clock) -> tuple[list[tuple[Request, float]], float]:
    """Serve requests from their arrivals on: each with its latency, and the time that it took in all, in seconds."""
    start, waiting, latencies = clock.now(), deque(load), []
    arrived = {request: when for when, request in load}
    while waiting or server.is_busy:
        while waiting and start + waiting[0][0] <= clock.now() and server.fits(waiting[0][1]):
            server.enter(waiting.popleft()[1])
        if not server.is_busy:
            clock.wait(start + waiting[0][0])
            continue
        for request, picture in server.tick():
            assert np.isfinite(picture).all()
            latencies.append((request, clock.now() - start - arrived[request]))
    return latencies, clock.now() - start


# ---- who serves ------------------------------------------------------------------------------------------------------


class Diffusers(Alone):
    """One request at a time, by diffusers.

    Args:
        threads: of torch.
    """

    def __init__(self, threads: int):
        import diffusers
        import torch

        torch.set_num_threads(threads)
        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        self.torch, self.request = torch, None
        self.pipe = diffusers.StableDiffusionPipeline.from_pretrained(PRETRAINED / "emoji", low_cpu_mem_usage=False)
        self.pipe.load_lora_weights(str(PRETRAINED / "emoji-ink"))
        self.pipe.to(torch.float32)
        self.pipe.set_progress_bar_config(disable=True)

    def draw(self, request: Request) -> np.ndarray:
        self.pipe.set_adapters(self.pipe.get_active_adapters(), [request.scale])
        drawn: Any = self.pipe(
            request.prompt,
            num_inference_steps=request.steps,
            eta=request.eta,
            guidance_scale=0.0 if request.guidance is None else request.guidance,
            negative_prompt=request.negative,
            generator=self.torch.Generator().manual_seed(request.seed),
            output_type="np",
        )
        return drawn.images[0]


def servers(*, tiny: bool, threads: int, reference: bool) -> dict[str, Any]:
    """Everyone who serves, ready."""
    if tiny:
        import texts

        warnings.filterwarnings("ignore", "prompts must fit")  # its tokenizer spells
        pipe = texts.text_model()
        lora = cmjax.lora.new(pipe, rank=2)
    else:
        pipe, lora = cmjax.text_to_image.load("emoji"), cmjax.lora.read("emoji-ink")
    sizes = (8,) if tiny else (1, 2, 4, 8)
    found = {
        SLOTS: Server(pipe, lora, sizes),
        WHOLE: Server(pipe, lora, sizes, whole=True),
        ALONE: Alone(pipe, lora),
    }
    if reference and not tiny and all(map(importlib.util.find_spec, ("torch", "diffusers", "peft"))):
        found[DIFFUSERS] = Diffusers(threads)
    for server in found.values():
        server.warm()
    return found


# ---- figures ---------------------------------------------------------------------------------------------------------


def percentiles(latencies: list[tuple[Request, float]]) -> dict[str, Any]:
    """What a client sees: of all requests, and of short ones."""
    all_of_them = [seconds for _, seconds in latencies]
    short = [seconds for request, seconds in latencies if request.steps <= SHORT] or [math.nan]
    found = {f"p{q}": float(np.percentile(all_of_them, q)) for q in (50, 95, 99)}
    short_ones = {f"short_p{q}": float(np.percentile(short, q)) for q in (50, 95)}
    return {**found, **short_ones, "requests": len(latencies)}


def saturate(rows: dict[str, Any], clock: Clock, many: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Requests a second when all are there from the start."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for i in range(rounds):
        for name, server in rows.items():
            start = time.process_time()
            span = serve(server, [(0.0, request) for request in requests(many, i)], clock)[1]
            taken[name].append((span, time.process_time() - start))
    return {
        name: {
            "requests_per_second": many * rounds / sum(span for span, _ in spans),
            "each_round": [many / span for span, _ in spans],
            "cpu_seconds_a_request": sum(cpu for _, cpu in spans) / (many * rounds),
        }
        for name, spans in taken.items()
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what time is; cpu: see above")
    options.add_argument("--many", type=int, default=24, help="requests of a round when all arrive at once")
    options.add_argument("--seconds", type=float, default=6.0, help="how long requests arrive, a row, load and round")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--no-reference", action="store_true", help="without diffusers")
    options.add_argument("--quick", action="store_true", help="a tiny network and short loads: does it run?")
    args = options.parse_args()
    if args.quick:
        args.many, args.seconds, args.rounds = 8, 0.5, 1
    started, began, compiled = machine(), time.perf_counter(), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event == COMPILED else None
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    rows = servers(tiny=args.quick, threads=cores if args.clock == "wall" else 1, reference=not args.no_reference)
    programs = len(compiled)
    print(f"ready after {time.perf_counter() - began:.0f} s, {programs} programs compiled", flush=True)

    clock = Clock(args.clock)
    full = saturate(rows, clock, args.many, args.rounds)
    print_table(
        f"all at once ({args.clock} clock)",
        ["", "requests/s", "cpu s a request"],
        [[name, one["requests_per_second"], one["cpu_seconds_a_request"]] for name, one in full.items()],
    )
    capacity = full[SLOTS]["requests_per_second"]
    loads = []
    for share in LOADS:
        rate = share * capacity
        there = {name: server for name, server in rows.items() if rate < full[name]["requests_per_second"]}
        latencies: dict[str, list[tuple[Request, float]]] = {name: [] for name in there}
        for i in range(args.rounds):
            load = arrivals(rate, args.seconds, 100 + i)
            for name, server in there.items():
                latencies[name] += serve(server, load, clock)[0]
        found = {name: percentiles(taken) for name, taken in latencies.items()}
        loads.append({"share": share, "rate": rate, "load_average": os.getloadavg()[0], "rows": found})
        header = ["seconds", "p50", "p95", "p99", f"up to {SHORT} steps: p50", "p95", "requests"]
        table = [[name, *one.values()] for name, one in found.items()]
        table += [[name, *["cannot keep up", *[""] * 5]] for name in rows if name not in there]
        print_table(f"{rate:.2f} requests/s, {share:g} of what slots manage", header, table)

    ours = {name: loads[0]["rows"].get(name) for name in (SLOTS, ALONE)}
    targets = [target(len(compiled) - programs, 0, "programs compiled while requests were served")]
    for name in list(rows)[1:]:
        ratio = capacity / full[name]["requests_per_second"]
        targets.append(target(ratio, 1.0, f"requests/s: slots over {name}", at_least=True))
    if ours[ALONE]:
        rule = f"95th percentile of latency at {LOADS[0]:g} of capacity: slots over one by one"
        targets.append(target(ours[SLOTS]["p95"] / ours[ALONE]["p95"], 1.0, rule))
    result = {"clock": args.clock, "programs": programs, "all_at_once": full, "loads": loads, "targets": targets}
    conclude(result, args.json, started)
    print(f"({time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
