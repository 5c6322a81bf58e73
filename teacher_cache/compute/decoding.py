"""What decodes the images of a worker: threads, or processes."""

from collections.abc import Callable

from teacher_cache.command_settings import ComputeSettings
from teacher_cache.compute.part import VIEWS_AT_A_TIME, part_job
from teacher_cache.compute.workers import MOST_DECODING_THREADS, local_workers
from teacher_cache.cores import usable_cores
from teacher_cache.images.location import ParquetRow
from teacher_cache.images.table import SampleTable
from teacher_cache.pixels.decoders import Decoders, open_decoders
from teacher_cache.store.header import CacheHeader
from teacher_cache.teacher.teacher import Teacher

MOST_DECODING_PROCESSES = 64


def part_decoders(
    settings: ComputeSettings,
    header: CacheHeader,
    samples: SampleTable,
    teacher: Teacher,
    on_note: Callable[[str], None] = lambda note: None,
) -> Decoders:
    """Return what decodes the images of a cache's parts in one worker.

    Args:
        samples: some of the cache's.

    Raises:
        RppError: processes cannot be started.
    """
    job, on_cuda = part_job(header, teacher.renderer), teacher.device.type == "cuda"
    views = max(len(header.views_of(part)) for part in range(0, header.parts, header.parts_per_pass))
    # the workers of a cluster cannot know how many of them share a machine
    cores = max(1, usable_cores() // (1 if settings.scheduler else local_workers(settings)))
    return open_decoders(
        job,
        teacher.renderer.size,
        decoding_processes(settings, samples, cores, on_cuda),
        threads=settings.threads or min(MOST_DECODING_THREADS, cores),
        largest=(min(VIEWS_AT_A_TIME, views), min(settings.batch_size, header.part_size)),
        option="--decode-processes",
        pin=on_cuda,
        register=True,
        on_note=on_note,
    )


def decoding_processes(settings: ComputeSettings, samples: SampleTable, cores: int, on_cuda: bool) -> int:
    """Return the number of processes; 0 for threads.

    Threads share the row groups of Parquet files, each of which every process would read for itself.
    """
    if settings.decode_processes is not None:
        return settings.decode_processes
    in_parquet = len(samples) > 0 and isinstance(samples.locations(slice(0, 1))[0], ParquetRow)
    return min(MOST_DECODING_PROCESSES, cores) if on_cuda and not (settings.threads or in_parquet) else 0
