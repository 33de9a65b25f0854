"""The live parity suite: how many configurations run (`--slow`: all), and the summary of the distances seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

FEW, ALL = 20, 300
LEDGER = pytest.StashKey["list[str]"]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Number the random configurations: 20, or 300 with `--slow`."""
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(ALL if metafunc.config.getoption("--slow", default=False) else FEW))


@pytest.fixture(scope="session")
def ledger(pytestconfig: pytest.Config) -> Iterator[object]:
    """The distances of the whole run."""
    from parity.live import Ledger

    ledger = Ledger()
    yield ledger
    pytestconfig.stash[LEDGER] = ledger.lines()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was compared, and the largest distances."""
    if lines := config.stash.get(LEDGER, []):
        terminalreporter.section("parity with the reference")
        for line in lines:
            terminalreporter.line(line)
