"""What runs of `cmjax train` have in common: the folder, the bar, the sentence that says why a run stopped."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import cmjax
from cmjax import training
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.options import TrainOptions
from cmjax.cli.run_config import RUN
from cmjax.drawing import Hosts
from cmjax.io.atomic import atomic_file, check_writable, sweep
from cmjax.io.configs import write_json

__all__ = ["agree", "begin", "check_out", "console_of", "draw_curves", "train_with_bar"]


def check_out(out: Path, data: Path, *, resume: bool, index: str) -> None:
    """Check the folder of a run before any work.

    Args:
      out: the folder.
      data: of the images.
      resume: whether a run is to go on.
      index: the file by which a model's folder is known.

    Raises:
      UsageError: it is no place for this run.
    """
    if out.is_file():
        raise UsageError(f"--out: {out} is a file, not a folder.")
    if data.is_dir() and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(data)):
        raise UsageError(
            f"--out: {out} lies in the data, {data}, which would then hold its pictures too; choose another folder."
        )
    model = out / "model"
    shown = [path for path in model.glob("*") if path.name[0] != "."]  # a kill leaves hidden ones
    if shown and not (model / index).exists():
        raise UsageError(f"--out: {model} holds other files than a model's; choose another folder.")
    if resume and not _has_run(out):
        raise UsageError(f"--resume: there is no checkpoint to continue from in {out}; leave out --resume to start.")
    if out.is_dir() and any(out.iterdir()) and not (out / RUN).exists():
        raise UsageError(f"--out: {out} holds files that belong to no run; choose another folder.")
    if not resume and _has_run(out):
        raise UsageError(f"--out: {out} already holds a run; add --resume to continue it, or choose another folder.")
    with bad_input("--out"):
        check_writable(out)


def agree(hosts: Hosts, options: TrainOptions, recipe: training.Recipe, about: dict[str, Any]) -> None:
    """Refuse processes that were asked for another run than the first one, or that cannot divide the batch.

    Raises:
      UsageError: so it is, or another process has a mistake of its own.
    """
    if recipe.batch_size // recipe.accumulate % hosts.count:
        raise UsageError(
            f"--batch: batch_size / accumulate must be a multiple of {hosts.count}, the number of processes, got "
            f"{recipe.batch_size // recipe.accumulate}."
        )
    with bad_input("--distributed"):
        hosts.check_same({"run": about, "checkpoint_every": options.checkpoint_every, "resume": options.resume})


def begin(out: Path, about: dict[str, Any], hosts: Hosts) -> None:
    """Make the folder of a run, without what a kill left half-written there, and write what the run is.

    Args:
      out: the folder, which `check_out` found fit.
      about: what run.json says.
      hosts: the processes that train together; the first one writes.

    Raises:
      UsageError: it cannot be written, or this process does not see what the first one wrote.
    """
    with bad_input("--out"):
        if hosts.index == 0:
            (out / "samples").mkdir(parents=True, exist_ok=True)
            for folder in (out, out / "samples", out / "model"):
                sweep(folder)
            write_json(about, out / RUN)
    with bad_input("--distributed"):
        hosts.wait_for_all()
        if not (out / RUN).is_file():
            raise ValueError(
                f"process {hosts.index} does not see {out / RUN}, which process 0 wrote: share the folder."
            )
        hosts.wait_for_all()


def console_of(hosts: Hosts) -> Console:
    """What a run prints on: nothing, but in the first process."""
    return Console(markup=False, highlight=False, quiet=hosts.index > 0)


def _has_run(out: Path) -> bool:
    return training.latest_step(out / "checkpoints") is not None


def train_with_bar(
    console: Console, hosts: Hosts, model: Any, config: Any, *data: Any, recipe: training.Recipe, **options: Any
) -> None:
    """Call `training.train`, with a bar; then let the other processes go.

    Raises:
      UsageError: it cannot begin, it diverged, or files cannot be written. In the first process only where it is so in
        all.
    """
    who = f"process {hosts.index}: " if hosts.index else ""
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=recipe.steps, figures="compiling")

        def on_progress(progress: training.Progress) -> None:
            figures = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in progress.figures.items())
            said = f"loss {progress.loss:.4f}{figures}, {progress.images_per_second:.0f} images/s"
            bar.update(task, completed=progress.step, figures=said)

        try:
            with hosts.in_step():
                training.train(model, config, *data, recipe=recipe, on_progress=on_progress, **options)
            hosts.part()
        except ValueError as error:
            raise UsageError(f"{who}{error}") from error
        except FloatingPointError as error:
            said = f"the run has diverged: {error} The last checkpoint is intact."
            raise UsageError("" if who else said) from error  # all find the same
        except OSError as error:
            raise UsageError(f"{who}--out: {error}") from error
        except KeyboardInterrupt:
            if _has_run(options["out"]):
                console.print("stopped; the same command with --resume goes on from the last checkpoint")
            raise
        if not bar.tasks[task].completed:
            bar.update(task, completed=recipe.steps, figures="nothing to do: the run was finished")


def draw_curves(out: Path) -> None:
    """curves.png, where matplotlib is installed (extra: plots)."""
    if importlib.util.find_spec("matplotlib") is not None:
        figure = cmjax.plots.training_curves(training.read_log(out / "log.jsonl"))
        with atomic_file(out / "curves.png") as temporary:
            figure.savefig(temporary, format="png")
