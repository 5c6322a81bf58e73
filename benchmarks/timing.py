"""Medians of pieces of work that are timed in turn, in one process."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Times:
    """Median seconds by the clock, and CPU seconds of all threads together, which mean more than the clock
    on a machine with other work."""

    seconds: float
    cpu_seconds: float


def timed(work: Callable[[], Any]) -> Times:
    """Of one call."""
    seconds, cpu_seconds = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Times(time.perf_counter() - seconds, time.process_time() - cpu_seconds)


def in_turn(work: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Each piece of work in every round, every second round backwards; one call of each before is not
    counted."""
    for call in work.values():
        call()
    taken: dict[str, list[Times]] = {name: [] for name in work}
    for number in range(rounds):
        for name in list(work)[:: -1 if number % 2 else 1]:
            taken[name].append(timed(work[name]))
    return {
        name: Times(
            statistics.median(times.seconds for times in all_times),
            statistics.median(times.cpu_seconds for times in all_times),
        )
        for name, all_times in taken.items()
    }


def machine() -> dict[str, Any]:
    """The machine of this measurement."""
    name = platform.processor()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": name, "cores": os.cpu_count(), "gpu": gpu, "torch": torch.__version__}


def record(times: Mapping[str, Times]) -> dict[str, dict[str, float]]:
    """As JSON prints it."""
    return {name: asdict(of) for name, of in times.items()}
