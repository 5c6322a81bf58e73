"""What a GPU does during a piece of work: kernels, waits, clocks, arithmetic.

Every function also runs on a CPU, so that tests run the same code; there, torch's operations stand for
kernels. Nothing beyond torch and `nvidia-smi` is needed.
"""

import json
import subprocess
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = tuple(str(ROOT / name) for name in ("teacher_cache", "student_train", "pipeline"))
# torch's counter does not know attention on a CPU
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
    ),
}
# A profile loses its first kernels, one more in each profile of a process (PyTorch's issue 192021). Therefore
# each begins with so many of a kind that nothing else uses, which do not count.
FIRST, FIRST_KIND = 64, "erfinv"
SAMPLES = ("utilization.gpu", "clocks.sm", "power.draw")


@dataclass(frozen=True)
class Kernels:
    """The kernels of a piece of work: their number, and the seconds in which at least one ran."""

    count: int
    seconds: float


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device, calls: int = 10, rounds: int = 3) -> float:
    """Seconds a call of calls in a row, the least of the rounds; two calls before are not counted."""
    taken = []
    work(), work()
    for _ in range(rounds):
        synchronise(device)
        started = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise(device)
        taken.append((time.perf_counter() - started) / calls)
    return min(taken)


def kernels_of(work: Callable[[], Any], device: torch.device) -> Kernels | None:
    """The kernels of a call, of all threads of this process; None if the profiler sees none."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    first = torch.zeros(1, device=device)
    synchronise(device)
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=activities) as profiler:
            for _ in range(FIRST):
                first.erfinv_()
            synchronise(device)
            work()
            synchronise(device)
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8", errors="replace"), strict=False)
    kind = "kernel" if cuda else "cpu_op"
    spans = [
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in trace["traceEvents"]
        if event.get("cat", "").lower() == kind and "dur" in event and FIRST_KIND not in event["name"]
    ]
    return Kernels(len(spans), covered(spans) / 1e6) if spans else None


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans (begin, end)."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def flops_of(work: Callable[[], Any]) -> int:
    """Floating-point operations of a call's products, attention and convolutions, backward pass included."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        work()
    return counter.get_total_flops()


@contextmanager
def waits_of(device: torch.device) -> Iterator[Counter[str]]:
    """Count by line of RPP's code where the block waits for the GPU, as torch's debug mode reports it.

    The debug mode is process-wide: lines of other threads are counted too.
    """
    places: Counter[str] = Counter()

    def note(message: Any, category: Any, filename: str, line: int, *rest: Any) -> None:
        if "called a synchronizing" in str(message):  # not that the mode is a prototype
            ours = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGES)]
            where = (ours[-1].filename, ours[-1].lineno) if ours else (filename, line)
            places[f"{where[0].removeprefix(f'{ROOT}/')}:{where[1]}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def nvidia_smi(fields: Iterable[str], device: torch.device, *options: str) -> subprocess.Popen[str] | None:
    """Start `nvidia-smi` for a GPU; None without it, or without a GPU."""
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    card = [f"--id=GPU-{uuid}"] if uuid else []
    query = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", *card, *options]
    try:
        return subprocess.Popen(
            ["nvidia-smi", *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        return None


@contextmanager
def sampled(device: torch.device) -> Iterator[dict[str, float]]:
    """Sample what `nvidia-smi` reports, four times a second; medians are in the dictionary after the block.

    Its utilisation is the share of time in which any kernel ran in the last fraction of a second.
    """
    found: dict[str, float] = {}
    process = nvidia_smi(SAMPLES, device, "--loop-ms=250")
    try:
        yield found
    finally:
        if process is not None:
            process.terminate()
            found.update(medians(process.communicate()[0]))


def medians(lines: str) -> dict[str, float]:
    """The medians of `nvidia-smi`'s columns `SAMPLES`; a column without numbers is left out."""
    names = ("nvidia_smi_busy_percent", "sm_clock_mhz", "power_watts")
    columns: dict[str, list[float]] = {name: [] for name in names}
    for line in lines.splitlines():
        cells = line.split(",")
        if len(cells) != len(names):
            continue  # the last line may be incomplete
        for name, cell in zip(names, cells, strict=True):
            if cell.strip().replace(".", "", 1).isdigit():
                columns[name].append(float(cell))
    return {name: median(values) for name, values in columns.items() if values}
