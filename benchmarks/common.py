"""The workbench: clocks, the machine's description, tables and result files that all benchmark programs share."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

__all__ = ["Timing", "interleaved", "machine", "parser", "print_table", "ratio", "conclude", "target"]

PACKAGES = ("cmjax", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "diffusers")

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))  # for `full_size`, which the tests use too


class Timing(dict[str, Any]):
    """Wall times of one call in seconds: ``median``, ``best``, ``quartiles``; ``cpu``, its processor time; ``rounds``.

    Processor time adds up all threads of the process and hardly sees what else runs on the machine.
    """

    @classmethod
    def of(cls, seconds: Sequence[float], cpu_seconds: Sequence[float] = ()) -> Timing:
        low, median, high = np.percentile(seconds, [25, 50, 75])
        timing = cls(median=float(median), best=float(min(seconds)), quartiles=[float(low), float(high)])
        if cpu_seconds:
            timing["cpu"] = statistics.median(cpu_seconds)
        timing["rounds"] = len(seconds)
        return timing

    @property
    def median(self) -> float:
        """Return the median in seconds."""
        return self["median"]


def interleaved(
    programs: Mapping[str, Callable[[], Any]], *, rounds: int = 15, min_seconds: float = 0.02
) -> tuple[dict[str, Timing], dict[str, list[float]]]:
    """Time programs in turn (A B C A B C ...), so that a busy moment of the machine falls on all of them.

    Every program runs twice beforehand (compilation, caches). A round calls each program as often as it takes to fill
    `min_seconds`, and waits for what each call returns with `block_until_ready` inside the clock.

    Args:
        programs: name -> a function of no arguments that returns its arrays (JAX) or anything else (the reference).
        rounds: rounds of the whole set.
        min_seconds: time that one program takes per round, at least.

    Returns:
        The timings of a single call, and the seconds of each round by name: ratios of two programs are best taken
        round by round (`ratio`).
    """
    calls = {}
    for name, program in programs.items():
        jax.block_until_ready(program())
        start = time.perf_counter()
        jax.block_until_ready(program())
        calls[name] = max(1, round(min_seconds / max(time.perf_counter() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    cpu: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            count, start, cpu_start = calls[name], time.perf_counter(), time.process_time()
            for _ in range(count):
                jax.block_until_ready(program())
            seconds[name].append((time.perf_counter() - start) / count)
            cpu[name].append((time.process_time() - cpu_start) / count)
    return {name: Timing.of(seconds[name], cpu[name]) for name in programs}, seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median over rounds of one program's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Describe the machine and the versions: what a reader needs to judge a time, and no names of hosts or paths."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": _processor(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "jax_backend": jax.default_backend(),
        "jax_devices": sorted({device.device_kind for device in jax.devices()}),
        "load_average_at_start": None if load is None else round(load, 2),
        "versions": versions,
    }


def target(value: float, limit: float, rule: str, *, at_least: bool = False) -> dict[str, Any]:
    """One line of a verdict: the figure, the limit it must not exceed (or fall below), and whether it keeps to that."""
    met = value >= limit if at_least else value <= limit
    kind = "at least" if at_least else "at most"
    return {"rule": rule, "value": round(value, 4), "kind": kind, "limit": limit, "met": bool(met)}


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return an argument parser with the options that every program has."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="also write the result here")
    return options


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under a title, the first column left and the others right aligned."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        columns = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "   ".join(columns), flush=True)


def conclude(result: Mapping[str, Any], path: Path | None, started: Mapping[str, Any] | None = None) -> None:
    """Print the verdicts and write the result with the machine's description."""
    for line in result.get("targets", ()):
        verdict = "met   " if line["met"] else "MISSED"
        print(f"  {verdict}  {line['value']:.4g} ({line['kind']} {line['limit']:g})  {line['rule']}")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": dict(started or machine()), **result}, indent=2) + "\n")
