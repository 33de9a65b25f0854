"""The whole session at the bench: every program in turn, results in ``benchmarks/results/<program>-<device>.json``.

Run ``python benchmarks/run_all.py`` on an otherwise idle machine; with ``--data FILE.npz`` (Fashion-MNIST) the quality
of samples and edits is measured too. Each program runs in its own process; one that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import jax

__all__ = ["main", "summary"]

HERE = Path(__file__).parent
PROGRAMS = (
    "step_overhead",
    "loop_cost",
    "editing",
    "bandwidth",
    "start_up",
    "compile_time",
    "unet_forward",
    "published_models",
    "text_to_image",
    "lora",
    "lora_training",
    "training",
    "training_memory",
    "roofline",
    "runtime_steps",
    "scaling",
    "precision",
    "throughput",
    "growth",
    "serving",
    "estimate",
    "estimate_texts",
    "sharding",
)
WITH_DATA = ("sample_quality", "editing_quality")


def summary(results: Path) -> str:
    """Return a Markdown page of every target in the result files, beside what was measured."""
    lines = [
        "# Targets",
        "",
        "Made by `run_all.py` from the files beside it; each is described in [the README](../README.md).",
    ]
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        if not result.get("targets"):
            continue
        machine = result["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        lines += ["", f"## {path.stem}", ""]
        lines += [
            f"{machine['processor']}, {machine['cores']} cores, {', '.join(machine['jax_devices'])}; {versions}; "
        ]
        lines += [f"load average {machine['load_average_at_start']} when it began.", ""]
        lines += ["| figure | measured | target | |", "|---|---|---|---|"]
        for line in result["targets"]:
            verdict = "met" if line["met"] else "**missed**"
            lines.append(f"| {line['rule']} | {line['value']:.4g} | {line['kind']} {line['limit']:g} | {verdict} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="fashion-mnist-cm", help="a name or folder that cmjax.load reads")
    options.add_argument("--data", type=Path, help="Fashion-MNIST as .npz, for sample_quality and editing_quality")
    options.add_argument("--only", nargs="+", choices=(*PROGRAMS, *WITH_DATA), help="these programs only")
    options.add_argument("--results", type=Path, default=HERE / "results")
    options.add_argument("--quick", action="store_true", help="few rounds: does it run?")
    args = options.parse_args(arguments)

    device = {"cpu": "cpu", "gpu": "gpu"}.get(jax.default_backend(), jax.default_backend())
    few = {
        "loop_cost": ["--rounds", "3", "--compile-rounds", "1"],
        "editing": ["--rounds", "1", "--batches", "1", "--masks", "4"],
        "start_up": ["--rounds", "1", "--text-rounds", "1", "--import-rounds", "2"],
        "compile_time": ["--models", "tiny", "--pixels", "64"],
        "unet_forward": ["--batches", "1", "--rounds", "1", "--no-compiled"],
        "published_models": ["--batches", "1", "--rounds", "1", "--process-rounds", "1"],
        "text_to_image": ["--tiny"],
        "lora": ["--tiny"],
        "lora_training": ["--tiny"],
        "training": ["--quick"],
        "training_memory": ["--tiny"],
        "runtime_steps": ["--batches", "1", "--rounds", "1", "--process-rounds", "1"],
        "scaling": ["--batch", "8", "--rounds", "1", "--processes", "1", "2", "--seconds", "1"],
        "precision": ["--batch", "10", "--rounds", "1"],
        "throughput": ["--batches", "1", "--rounds", "1", "--no-compiled"],
        "serving": ["--quick"],
        "growth": ["--batches", "1", "2", "--sizes", "64", "128", "--devices", "1", "2", "--rounds", "1"],
        "estimate": ["--batches", "1"],
        "estimate_texts": ["--tiny"],
        "sharding": ["--tiny"],
    }
    commands: dict[str, list[str]] = {name: [] for name in PROGRAMS}
    if device == "gpu":
        commands["step_overhead"] += ["--torch-device", "cuda"]
    for name in ("loop_cost", "editing", "start_up"):
        commands[name] += ["--model", args.model]
    if not args.quick:
        for name in ("precision", "throughput", "estimate"):
            commands[name] += ["--imagenet64"]
        commands["sharding"] += ["--untold"]
    if args.quick:
        for name, extra in commands.items():
            extra += few.get(name, ["--rounds", "3"])
    for name in WITH_DATA if args.data else ():
        commands[name] = ["--model", args.model, "--data", str(args.data), *(["--num", "100"] if args.quick else [])]
    failed = []
    for name in [name for name in commands if not args.only or name in args.only]:
        print(f"\n=== {name} {'=' * (100 - len(name))}", flush=True)
        start, target = time.perf_counter(), args.results / f"{name}-{device}.json"
        call = [sys.executable, str(HERE / f"{name}.py"), *commands[name], "--json", str(target)]
        if subprocess.run(call, check=False).returncode:
            failed.append(name)
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    (args.results / "summary.md").write_text(summary(args.results))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
