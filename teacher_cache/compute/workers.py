"""Dask workers: on this machine or at a scheduler, their number, and the threads of each."""

import logging
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

import dask
import torch
from dask.distributed import Client, LocalCluster
from distributed.comm import CommClosedError

from teacher_cache.command_settings import ComputeSettings
from teacher_cache.compat.distributed import LOCALHOST, local_dashboard_link, require_dashboard
from teacher_cache.compat.main_module import main_not_imported
from teacher_cache.cores import usable_cores
from teacher_cache.errors import RppError, UsageError

MOST_DECODING_THREADS = 16
LOCAL_CONFIG = {
    # by default Dask gives up soon when no new worker replaces a lost one; importing torch takes longer
    "distributed.deploy.lost-worker-timeout": "1 hour",
    # It samples stacks with `sys._current_frames`, which can deadlock before Python 3.12 with Python's lock
    # held (python/cpython#106883). The process then hangs, and no signal reaches it.
    "distributed.worker.profile.enabled": False,
}


def cuda_devices(settings: ComputeSettings) -> int:
    """Return the number of CUDA devices that local workers share; 0 if a device is named or there is none."""
    anywhere = settings.device in ("auto", "cuda") and settings.scheduler is None
    return torch.cuda.device_count() if anywhere else 0


def local_workers(settings: ComputeSettings) -> int:
    """Return the number of workers on this machine."""
    return settings.workers or max(1, cuda_devices(settings))


def on_this_machine(settings: ComputeSettings) -> ComputeSettings:
    """Return the settings with the threads of a local worker filled in; workers do not share cores.

    On CUDA processes may decode, which depends on the images: `threads` stays as it is.
    """
    workers = local_workers(settings)
    cores = max(1, usable_cores() // workers)
    on_cuda = settings.device != "cpu" and torch.cuda.is_available()
    in_threads = settings.decode_processes == 0 or (settings.decode_processes is None and not on_cuda)
    return settings.model_copy(
        update={
            "threads": settings.threads or (min(MOST_DECODING_THREADS, cores) if in_threads else None),
            # torch accounts for OMP_NUM_THREADS and for hyper-threads
            "torch_threads": settings.torch_threads or max(1, torch.get_num_threads() // workers),
        }
    )


@contextmanager
def scheduler_needed(kept: str) -> Iterator[None]:
    """Turn the loss of the scheduler, in a block or a decorated function, into one line.

    Args:
        kept: what is not lost, for the message.

    Raises:
        RppError: the scheduler is gone.
    """
    try:
        yield
    except (CommClosedError, CancelledError) as error:
        raise RppError(f"the Dask scheduler is gone; {kept}: run the same command again") from error


def _local_cluster(workers: int, dashboard_port: int | None) -> LocalCluster:
    if dashboard_port is not None:
        require_dashboard()
        # a closed browser window or a page that does not exist is not an error; another port is reported
        for noisy in ("bokeh", "tornado.access", "tornado.application"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", r"Port \d+ is already in use", UserWarning)
    # A closed terminal sends SIGHUP to all processes. Processes that are started here, or later in place of
    # lost ones, inherit a blocked SIGHUP: this process stops them. Without that, multiprocessing's resource
    # tracker dies, and a new one prints a traceback for each semaphore that it does not know.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=workers > 1,
            # None would still take port 8787, and warn if another cluster has it
            dashboard_address=f"{LOCALHOST}:{dashboard_port or 0}",
            scheduler_kwargs={"dashboard": dashboard_port is not None},
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        )
    except RuntimeError as error:  # from Dask: a worker ended before it was connected
        raise RppError(
            f"cannot start the worker processes ({error}); did the memory run out? What is committed is "
            "safe: run the same command again"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def dask_client(
    settings: ComputeSettings, on_note: Callable[[str], None] = lambda note: None
) -> Iterator[Client]:
    """Yield a client of the scheduler, or of workers started here, which end with the block.

    Args:
        on_note: called with the address of the dashboard, if the settings ask for one.

    Raises:
        UsageError: no scheduler answers, or a dashboard cannot be shown.
    """
    # errors reach the user once, as our own messages
    for noisy in ("distributed", "distributed.client"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "Couldn't detect a suitable IP address", RuntimeWarning)
    if settings.scheduler:
        try:
            client = Client(settings.scheduler)  # waits as Dask is configured
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {settings.scheduler}: {error}") from error
        with client:
            if settings.dashboard:
                on_note(f"dashboard of the scheduler: {client.dashboard_link or 'it has none'}")
            yield client
        return
    with (
        main_not_imported(),  # also for workers that replace a lost one
        dask.config.set(LOCAL_CONFIG),
        _local_cluster(local_workers(settings), settings.dashboard_port) as cluster,
        Client(cluster) as client,
    ):
        if settings.dashboard_port is not None:
            port = int(client.scheduler_info()["services"]["dashboard"])
            if settings.dashboard_port not in (0, port):
                on_note(
                    f"port {settings.dashboard_port} is in use, or reserved by the system: the dashboard has "
                    f"port {port}"
                )
            on_note(f"dashboard of the workers, while they compute: {local_dashboard_link(port)}")
        yield client


def number_of_workers(settings: ComputeSettings) -> int:
    """Return how many workers would compute parts now, here or at the scheduler; at least one.

    Raises:
        UsageError: no scheduler answers.
    """
    if settings.scheduler is None:
        return local_workers(settings)
    with dask_client(settings) as client:
        return max(1, len(client.nthreads()))
