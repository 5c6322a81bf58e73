"""Whether the task that a Dask worker runs is still wanted.

Unstable: `Worker.state.tasks`, `TaskState.state` and `Worker.status`, seen in distributed 2025.1 to 2026.8.
Dask has no public way to ask from within a task. If they are missing, a task counts as wanted: a build that
was stopped then computes the parts that it has started to their end, and commits them.
"""

from typing import Any

from distributed import Status, get_worker


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
