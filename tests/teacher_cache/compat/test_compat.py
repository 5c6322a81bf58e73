"""The private way and the public one give the same result."""

from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem

from teacher_cache.compat import distributed as dask_fence
from teacher_cache.compat.fsspec import path_in


@pytest.mark.parametrize("url", ["memory://a/b/c.tar", "file:///a/b", "https://host/a.tar?version=1"])
def test_the_path_of_a_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fsspec.url_to_fs(url)[0]
    private = path_in(found, url)
    assert private == path_in(SimpleNamespace(), url)
    assert issubclass(type(found), AbstractFileSystem)


def test_a_task_is_wanted_if_its_state_is_unknown() -> None:
    running, closing = dask_fence.Status.running, dask_fence.Status.closing
    tasks = {"a": SimpleNamespace(state="executing"), "b": SimpleNamespace(state="cancelled")}

    def worker(status: Any) -> Any:
        return SimpleNamespace(state=SimpleNamespace(tasks=tasks), status=status)

    assert dask_fence.is_wanted(worker(running), "a")
    assert not dask_fence.is_wanted(worker(running), "b")
    assert not dask_fence.is_wanted(worker(running), "gone")
    assert not dask_fence.is_wanted(worker(closing), "a")
    assert dask_fence.is_wanted(SimpleNamespace(), "a")
