"""What tests of the command share: the complaint of a mistake."""

import os

from cmjax.cli import main


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
