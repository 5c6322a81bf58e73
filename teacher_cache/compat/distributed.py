"""Whether the task that a Dask worker runs is still wanted, and the dashboard of a local cluster.

Unstable: `Worker.state.tasks`, `TaskState.state` and `Worker.status`, seen in distributed 2025.1 to 2026.8.
Dask has no public way to ask from within a task. If they are missing, a task counts as wanted: a build that
was stopped then computes the parts that it has started to their end, and commits them.

Unstable: `distributed.dashboard.scheduler`, which Dask itself imports, and which fails without bokeh or with
one that Dask cannot use; Dask then shows pages without content. `distributed.utils.format_dashboard_link`:
`LocalCluster.dashboard_link` names an address of this machine at which a cluster without processes does not
listen.
"""

from importlib import import_module
from typing import Any

from distributed import Status, get_worker

from teacher_cache.errors import UsageError

LOCALHOST = "127.0.0.1"


def require_dashboard() -> None:
    """Refuse a dashboard if bokeh is missing, or of a version that Dask cannot use.

    Raises:
        UsageError: with the reason.
    """
    try:
        import_module("distributed.dashboard.scheduler")
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--dashboard needs bokeh ({reason}): pip install 'rpp-clip[dashboard]'") from error


def local_dashboard_link(port: int) -> str:
    """Return the address of a dashboard on this machine, as `distributed.dashboard.link` of Dask's
    configuration forms it."""
    try:
        from distributed.utils import format_dashboard_link

        return str(format_dashboard_link(LOCALHOST, port))
    except (ImportError, KeyError):  # a template with an environment variable that is not set
        return f"http://{LOCALHOST}:{port}/status"


def is_wanted(worker: Any, key: Any) -> bool:
    """Return whether someone still waits for the task `key` of this worker."""
    try:
        task = worker.state.tasks.get(key)
        gone = task is None or task.state == "cancelled"
        return not gone and worker.status in (Status.running, Status.paused)
    except AttributeError:
        return True


def threads_of_worker() -> int:
    """Return the number of threads of the worker that runs this task: `nthreads` of its state, else one."""
    return int(getattr(get_worker().state, "nthreads", 1))
