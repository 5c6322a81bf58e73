"""How often each fuzzer runs: some tens of times, or for RPP_FUZZ_SECONDS seconds in total."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

from teacher_cache.build import build_cache
from tests.hostile import contract
from tests.models import write_model
from tests.teacher_cache.inputs import settings as build_settings
from tests.teacher_cache.inputs import write_names, write_shards

SECONDS = float(os.environ.get("RPP_FUZZ_SECONDS", "0"))
ROUND = 200  # inputs between two checks of the time

_tried: dict[str, tuple[int, int, float]] = {}  # of each fuzzer: inputs read, inputs refused, seconds
_fuzzers = 0


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Decorate a property: the number of inputs, always the same ones; in the long form new ones."""
    bounded = settings(
        max_examples=ROUND if SECONDS else examples,
        derandomize=not SECONDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    return lambda test: pytest.mark.fuzz(bounded(test))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    global _fuzzers
    found = [item for item in items if is_hypothesis_test(getattr(item, "obj", None))]
    here = [item for item in found if Path(__file__).parent in item.path.parents]
    _fuzzers = len(here)
    if SECONDS:
        for item in here:
            item.add_marker(pytest.mark.timeout(SECONDS / _fuzzers + 600))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    if not is_hypothesis_test(pyfuncitem.obj):
        return (yield)
    contract.outcomes.clear()
    started = time.monotonic()
    try:
        result = yield
        names = pyfuncitem._fixtureinfo.argnames
        while time.monotonic() - started < SECONDS / _fuzzers:
            pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
        return result
    finally:
        of_outcome = (contract.outcomes["read"], contract.outcomes["refused"])
        _tried[pyfuncitem.nodeid.rpartition("/")[2]] = (*of_outcome, time.monotonic() - started)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if SECONDS:
        terminalreporter.section("inputs that were tried")
        for name, (read, refused, seconds) in _tried.items():
            terminalreporter.write_line(
                f"{read + refused:8,} in {seconds:6.1f} s: {read:7,} read, {refused:7,} refused  {name}"
            )


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small teacher."""
    return write_model(tmp_path_factory.mktemp("teacher") / "gelu", "gelu")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """A complete cache of twelve samples in two parts; tests must not write to it."""
    folder = tmp_path_factory.mktemp("cache")
    shards, names = write_shards(folder / "shards"), write_names(folder / "animals.txt")
    build_cache(build_settings(shards, names, folder / "zarr", teacher, part_size=6))
    return folder / "zarr"
