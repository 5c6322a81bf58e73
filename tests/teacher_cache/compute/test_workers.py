"""Dask's dashboard: its pages, its port, and what it needs."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bokeh.client import pull_session
from distributed import LocalCluster

from teacher_cache.build import build_cache
from teacher_cache.command_settings import ComputeSettings
from teacher_cache.compute.workers import dask_client
from teacher_cache.errors import UsageError
from teacher_cache.extend import ExtendSettings, extend_cache
from teacher_cache.preflight import require_bokeh
from tests.teacher_cache.inputs import settings

ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/status$")


def address_in(note: str) -> re.Match[str]:
    found = ADDRESS.search(note)
    assert found, note
    return found


@pytest.mark.parametrize("scheduler", [False, True])
def test_the_dashboard_draws_its_pages(scheduler: bool) -> None:
    """Of workers here, and of a cluster."""
    notes: list[str] = []
    if scheduler:
        with LocalCluster(n_workers=0, protocol="tcp://", dashboard_address="127.0.0.1:0") as running:
            asked = ComputeSettings(dashboard=True, scheduler=running.scheduler_address)
            with dask_client(asked, notes.append):
                require_page(notes)
        assert notes[0].startswith("dashboard of the scheduler")
    else:
        with dask_client(ComputeSettings(dashboard=0, device="cpu"), notes.append):
            require_page(notes)


def require_page(notes: list[str]) -> None:
    (note,) = notes
    page = address_in(note)[0].replace("/status", "/individual-task-stream")
    with pull_session(url=page) as session:
        assert session.document.title.startswith("Dask")
        assert session.document.roots


def test_a_port_in_use_is_reported_and_another_taken() -> None:
    notes: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with dask_client(ComputeSettings(dashboard=port, device="cpu"), notes.append):
            first, second = notes
    other = int(address_in(second)[1])
    assert other != port
    assert first == f"port {port} is in use, or reserved by the system: the dashboard has port {other}"


def test_the_dashboard_is_off_by_default_and_shown_to_builds_and_extensions(
    teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    asked, notes = settings(shards, names, tmp_path / "zarr", teacher), list[str]()
    build_cache(asked.model_copy(update={"out": str(tmp_path / "quiet")}), notes.append)
    assert not any("dashboard" in note for note in notes)
    build_cache(asked.model_copy(update={"dashboard": 0}), notes.append)
    address_in(notes[-1])
    notes.clear()
    build_cache(asked.model_copy(update={"dashboard": 0}), notes.append)  # nothing to compute
    assert not any("dashboard" in note for note in notes)
    extended = extend_cache(
        tmp_path / "zarr", ExtendSettings(views=2, device="cpu", dashboard=0), notes.append
    )
    address_in(notes[-1])
    assert extended.pace[0]["parts"] == extended.parts_computed == 4


def test_without_bokeh_a_dashboard_is_refused_with_the_remedy(
    teacher: Path, shards: Path, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bokeh", None)
    asked = settings(shards, names, tmp_path / "zarr", teacher, dashboard=True)
    with pytest.raises(UsageError, match=r"needs the package bokeh: pip install 'rpp-clip\[dashboard\]'"):
        build_cache(asked)
    assert not (tmp_path / "zarr").exists()
    require_bokeh(asked.model_copy(update={"dashboard": False}))
    # the scheduler has its own
    require_bokeh(ComputeSettings(dashboard=True, scheduler="tcp://localhost:8786"))


def test_a_bokeh_that_dask_cannot_use_is_refused(tmp_path: Path) -> None:
    """In a process of its own, whose first bokeh is this one."""
    (tmp_path / "bokeh").mkdir()
    (tmp_path / "bokeh" / "__init__.py").write_text("__version__ = '2.4.3'")
    script = "from teacher_cache.compat.distributed import require_dashboard; require_dashboard()"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    assert re.search(
        r"UsageError: --dashboard needs bokeh \(.+bokeh.+\): pip install 'rpp-clip\[dashboard\]'",
        ended.stderr,
    )


@pytest.mark.parametrize(
    ("values", "port"),
    [
        ({}, None),
        ({"dashboard": False}, None),
        ({"dashboard": True}, 8787),
        ({"dashboard": "true"}, 8787),
        ({"dashboard": "8788"}, 8788),
        ({"dashboard": "0"}, 0),
        ({"dashboard": 0}, 0),
        ({"dashboard": 1}, 1),
        ({"dashboard": True, "scheduler": "tcp://localhost:8786"}, None),
    ],
)
def test_the_port_is_true_or_a_number(values: dict[str, Any], port: int | None) -> None:
    """As TOML has them, or as texts of the command line."""
    found = ComputeSettings(**values).dashboard_port
    assert (found, type(found)) == (port, type(port))


def test_a_port_for_the_dashboard_of_a_scheduler_is_refused() -> None:
    with pytest.raises(
        UsageError, match="chose the port of its dashboard; leave out the port, or --scheduler"
    ):
        ComputeSettings(dashboard=8788, scheduler="tcp://localhost:8786")
