"""What tests of the command share: a folder of their own, compiled programs, and the complaint of a mistake."""

import contextlib
import os

import jax
from jax.experimental.compilation_cache import compilation_cache

from cmjax.cli import main


@contextlib.contextmanager
def compiled_programs_kept():
    """What a body turns on when it runs a command: each program is compiled once. Off again after it."""
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def go_to(folder, monkeypatch, cache):
    """Run a test in a folder of its own, with the compiled programs in another."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)


def complaint(capsys, *argv):
    """The one sentence on standard error of a command that must fail with status 2 and leave nothing behind."""
    before = sorted(os.listdir())
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert sorted(os.listdir()) == before
    return lines[0]
