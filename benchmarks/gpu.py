"""Everything worth measuring on a GPU, in one command that keeps to its time: `gpu.py --minutes 9 --out DIR`.

The parts (`gpu_parts/`) run in order of worth, each in a process of its own, which is killed when its share of the
time is used up; what a part does not use goes to those after it. Every measurement is in DIR/PART.json the moment it is
taken, so neither a failure nor a kill loses any; DIR/summary.json holds all of it together, and a short table is
printed last. A part that fails leaves its traceback there and does not stop the next.

It needs jax, flax and what cmjax needs at run time. PyTorch and diffusers stand beside where they can be imported. With
`--tiny` it runs anywhere in a minute, and says nothing about speed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_parts
from gpu_parts import Part, Run

PACKAGES = (
    "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax", "numpy", "torch", "triton", "diffusers",
    "transformers", "nvidia-cudnn-cu13", "nvidia-cublas",
)  # fmt: skip
SPARE = 4.0  # seconds kept for the summary, and between the end a part is told and its kill
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # two processes and two frameworks share the card
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    "PYTHONUNBUFFERED": "1",
}


def machine() -> dict[str, Any]:
    """The card, its driver and the versions, without touching the device: a part may be measuring on it."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    card: dict[str, str] = {}
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        card = dict(zip(query.split(","), said.splitlines()[0].split(", "), strict=True))
    return {
        "card": card.pop("name", "no NVIDIA card"),
        "driver": card.pop("driver_version", ""),
        **card,
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions,
        "torch": bool(importlib.util.find_spec("torch")),
        "diffusers": bool(importlib.util.find_spec("diffusers")),
    }


# ---- one part --------------------------------------------------------------------------------------------------------


def child(each: Part, folder: Path, tiny: bool) -> int:
    """Measure one part, in a process of its own, as soon as the parent says for how long."""
    import jax

    for name in ("cmjax.io", "cmjax.sampling", *each.warm):  # while the part before is at work
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if each.jax:
        jax.devices()  # starts the runtime, which takes seconds
    said = sys.stdin.readline()
    if not said:
        return 0
    result = gpu_parts.read(folder, each.name)
    run = Run(folder, result, float(said), tiny=tiny)

    def count(event: str, **_: Any) -> None:
        result["compile_cache_hits"] += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_listener(count)
    try:
        each.measure(run)
    except BaseException:
        result["errors"].append({"what": each.name, "traceback": traceback.format_exc()[-6000:]})
        result["status"] = "failed"
    else:
        result["status"] = "done"
    run.save()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads that still compile are of no more use


class Child:
    """The process of a part: it starts up at once, and measures when it is told to."""

    def __init__(self, each: Part, folder: Path, logs: Path, tiny: bool):
        self.part, self.folder, self.log = each, folder, logs / f"{each.name}.log"
        command = [sys.executable, __file__, "--out", str(folder), "--child", each.name, *(["--tiny"] if tiny else [])]
        environment = {**ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR": str(logs / "cache"), **os.environ}
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {each.xla_flags}".strip()
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, text=True, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def measure(self, about: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Let it measure for so many seconds, at most; returns its result."""
        result = {
            "part": self.part.name, "about": self.part.about, "machine": about, "status": "killed",
            "limit_seconds": round(seconds, 1), "seconds": 0.0, "rows": [], "targets": [], "left_out": [],
            "errors": [], "compile_cache_hits": 0,
        }  # fmt: skip
        gpu_parts.write(self.folder, self.part.name, result)
        start = time.monotonic()
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(f"{max(seconds - SPARE / 2, 1.0)}\n")
            self.process.stdin.flush()
            self.process.wait(seconds)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass
        self.kill()
        result = gpu_parts.read(self.folder, self.part.name)
        if result["status"] == "killed":
            spoken = self.log.read_text(errors="replace")[-3000:]
            code = self.process.returncode
            why = "its time was over" if code == -signal.SIGKILL else f"its process ended with {code}"
            result["errors"].append({"what": f"{self.part.name}: {why}", "traceback": spoken})
            result["status"] = "killed" if code == -signal.SIGKILL else "failed"
        result["seconds"] = round(time.monotonic() - start, 2)
        gpu_parts.write(self.folder, self.part.name, result)
        return result

    def kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


# ---- all of them -----------------------------------------------------------------------------------------------------


def measure(parts: Sequence[Part], folder: Path, end: float, tiny: bool) -> list[dict[str, Any]]:
    """Run parts one after the other until `end`; the next one starts up while one measures."""
    about, results = machine(), []
    with tempfile.TemporaryDirectory() as logs:
        current = Child(parts[0], folder, Path(logs), tiny)
        for i, each in enumerate(parts):
            left = end - time.monotonic()
            seconds = left * each.share / sum(later.share for later in parts[i:])
            following = Child(parts[i + 1], folder, Path(logs), tiny) if i + 1 < len(parts) else None
            try:
                result = current.measure(about, max(seconds, 0.1))
            except BaseException:
                for started in (current, following):
                    if started is not None:
                        started.kill()
                raise
            results.append(result)
            print(f"{each.name}: {result['status']} in {result['seconds']:.0f} of {seconds:.0f} s", flush=True)
            if following is None:
                break
            current = following
            summarize(folder, about, results)
    summarize(folder, about, results)
    return results


def summarize(folder: Path, about: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
    """Write summary.json: every row, verdict and failure so far."""
    parts = {each["part"]: {k: v for k, v in each.items() if k not in ("part", "machine")} for each in results}
    gpu_parts.write(folder, "summary", {"program": "gpu", "machine": about, "parts": parts})


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(results: Sequence[dict[str, Any]]) -> None:
    """Print what was measured, a line each: the last lines are the ones that are read."""
    about = results[0]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"\n{about['card']}, driver {about['driver']}; {versions}")
    for each in results:
        print(f"\n{each['part']}: {each['status']} in {each['seconds']:.0f} s of {each['limit_seconds']:.0f} s")
        for row in each["rows"]:
            figures = (f"{k} {_short(v)}" for k, v in row.items() if k != "name" and isinstance(v, (int, float, str)))
            print(f"  {row['name']}: " + ", ".join(figures))
        if each["left_out"]:
            print("  left out for time: " + ", ".join(each["left_out"]))
        for error in each["errors"]:
            last = error["traceback"].strip().splitlines()[-1:] or [""]
            print(f"  FAILED {error['what']}: {last[0][:240]}")
    lines = [line for each in results for line in each["targets"]]
    missed = [line for line in lines if not line["met"]]
    print(f"\n{len(lines) - len(missed)} of {len(lines)} targets met")
    for line in missed:
        print(f"  MISSED {line['value']:.4g} ({line['kind']} {line['limit']:g})  {line['rule']}")


def main(arguments: list[str] | None = None) -> None:
    start = time.monotonic()
    parts = gpu_parts.find()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=9.0, help="all of it takes at most so long")
    options.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    options.add_argument("--tiny", action="store_true", help="tiny sizes: does it run?")
    names = [each.name for each in parts]
    options.add_argument("--only", nargs="+", metavar="PART", choices=names, help=f"of {', '.join(names)}")
    options.add_argument("--child", choices=names, help=argparse.SUPPRESS)
    args = options.parse_args(arguments)
    if args.child:
        raise SystemExit(child(gpu_parts.PARTS[args.child], args.out, args.tiny))
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [each for each in parts if not args.only or each.name in args.only]
    results = measure(chosen, args.out, start + 60 * args.minutes - SPARE, args.tiny)
    report(results)
    if args.tiny and any(each["errors"] for each in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
