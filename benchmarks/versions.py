"""The same programs under several Pythons, with the JAX that each has: newest beside oldest.

    python benchmarks/versions.py OLD/bin/python NEW/bin/python

Each interpreter is a process of its own that compiles everything first, and then answers in turn (A B A B ...), so that
a busy moment of the machine falls on all of them. Each core is a device, as in every command. The programs are the
embedded network's forward calls in float32 and bfloat16, and a training step; ratios are to the first interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from common import Timing, conclude, machine, parser, print_table, ratio

CHILD = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import jax
jax.config.update("jax_enable_compilation_cache", False)
import training  # makes each core a device
from versions import programs
ready = programs(int(sys.argv[2]))
for call in ready.values():
    jax.block_until_ready(call())
    jax.block_until_ready(call())
print(json.dumps({"names": list(ready), "jax": jax.__version__, "python": sys.version.split()[0]}), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(3):
        jax.block_until_ready(ready[line.strip()]())
    print((time.perf_counter() - start) / 3, flush=True)
"""


def programs(batch: int) -> dict[str, Any]:
    """What is timed, in the process of an interpreter."""
    from roofline import Forward
    from training import FOLDER, Step

    ready: dict[str, Any] = {}
    for size in (1, batch):
        for dtype in ("float32", "bfloat16"):
            ready[f"forward call, batch {size}, {dtype}"] = Forward(size, dtype)
    ready[f"training step, ect, batch {batch}, float32"] = Step("ect", FOLDER, batch)
    return ready


class Interpreter:
    """A Python that has compiled the programs and waits to be asked."""

    def __init__(self, python: str, batch: int):
        here = Path(__file__).parent
        base = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])}
        command = [python, "-c", CHILD, str(here), str(batch)]
        self.process = subprocess.Popen(
            command, cwd=here, env=base, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.said = json.loads(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"an interpreter ended with {self.process.wait()}: see above.")
        return line

    def seconds(self, program: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(program + "\n")
        self.process.stdin.flush()
        return float(self._answer())


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("pythons", nargs="+", help="interpreters whose environments have what cmjax needs")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--rounds", type=int, default=15)
    args = options.parse_args(arguments)
    here, asked = machine(), [Interpreter(python, args.batch) for python in args.pythons]
    rows = []
    for name in asked[0].said["names"]:
        seconds = [[] for _ in asked]
        for _ in range(args.rounds):
            for times, interpreter in zip(seconds, asked, strict=True):
                times.append(interpreter.seconds(name))
        over = [ratio(times, seconds[0]) for times in seconds]
        rows.append({"program": name, "seconds": [Timing.of(times) for times in seconds], "over": over})
    titles = [f"jax {each.said['jax']}" for each in asked]
    print_table(
        "Milliseconds (medians), and over the first",
        ["", *titles, *(f"{title} over" for title in titles[1:])],
        [
            [
                row["program"],
                *(f"{timing.median * 1e3:.1f}" for timing in row["seconds"]),
                *(f"{over:.3f}" for over in row["over"][1:]),
            ]
            for row in rows
        ],
    )
    said = [{key: each.said[key] for key in ("jax", "python")} for each in asked]
    conclude({"program": "versions", "interpreters": said, "rows": rows}, args.json, here)


if __name__ == "__main__":
    main()
