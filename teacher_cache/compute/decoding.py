"""What decodes the images of a worker: threads, processes, or a CUDA device."""

from collections.abc import Callable
from dataclasses import replace

import torch

from teacher_cache.command_settings import ComputeSettings
from teacher_cache.compute.part import VIEWS_AT_A_TIME, part_job
from teacher_cache.compute.workers import MOST_DECODING_THREADS, local_workers
from teacher_cache.cores import usable_cores
from teacher_cache.errors import RppError, UsageError
from teacher_cache.images.decode import UnreadableImageError
from teacher_cache.images.location import ParquetRow
from teacher_cache.images.table import SampleTable
from teacher_cache.pixels.decoders import BatchRequest, Decoders, ThreadDecoders, open_decoders
from teacher_cache.pixels.device_decoders import DeviceDecoders, jpeg_size
from teacher_cache.pixels.drawn_views import DrawRequest, DrawViews
from teacher_cache.store.header import CacheHeader
from teacher_cache.teacher.teacher import Teacher

MOST_DECODING_PROCESSES = 64
COMPARED_IMAGES = 64  # whose features are compared between nvJPEG's pixels and Pillow's


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
        UsageError: the cache's images are decoded with nvJPEG, and that is not possible here.
        RppError: processes cannot be started.
    """
    job, on_cuda = part_job(header, teacher.renderer), teacher.device.type == "cuda"
    views = max(len(header.views_of(part)) for part in range(0, header.parts, header.parts_per_pass))
    # the workers of a cluster cannot know how many of them share a machine
    cores = max(1, usable_cores() // (1 if settings.scheduler else local_workers(settings)))
    threads = settings.threads or min(MOST_DECODING_THREADS, cores)
    if header.decoder == "nvjpeg":
        if settings.decode_processes:
            raise UsageError(
                "the cache's images are decoded with nvJPEG (--decode-on-device): leave out "
                "--decode-processes"
            )
        return DeviceDecoders(job, teacher.device, threads, on_note)
    return open_decoders(
        job,
        teacher.renderer.size,
        decoding_processes(settings, samples, cores, on_cuda),
        threads=threads,
        largest=(min(VIEWS_AT_A_TIME, views), min(settings.batch_size, header.part_size)),
        option="--decode-processes",
        pin=on_cuda,
        register=True,
        reply_bytes=job.reply_bytes(min(VIEWS_AT_A_TIME, views)),
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


def decoder_difference(
    settings: ComputeSettings, header: CacheHeader, samples: SampleTable, teacher: Teacher
) -> dict[str, float]:
    """Return how much the teacher's features of view 0 differ between nvJPEG's pixels and Pillow's.

    Returns:
        Of the first `COMPARED_IMAGES` samples that the device decodes: `images`, their number, and
        `cosine_min` and `cosine_mean`, if there are any.

    Raises:
        UsageError, RppError: as `DeviceDecoders`.
    """
    # exact pixels on both sides
    job, size = part_job(replace(header, pixels="none"), teacher.renderer), teacher.renderer.size
    threads = settings.threads or min(MOST_DECODING_THREADS, usable_cores())
    requests = [
        request
        for row, location in enumerate(samples.locations(slice(0, COMPARED_IMAGES)))
        if _is_for_device(job, request := DrawRequest(row, location, (0,)))
    ]

    def features(decoders: Decoders) -> tuple[torch.Tensor, list[bool]]:
        found, readable = [], []
        step = settings.batch_size
        cut = [requests[start : start + step] for start in range(0, len(requests), step)]
        batches = [BatchRequest(1, len(some), list(enumerate(some))) for some in cut]
        with decoders:
            for pixels_VBHWC, drawn in decoders.decode(batches):
                found.append(teacher.image_features(pixels_VBHWC[0].permute(0, 3, 1, 2)))
                readable += [one.reason is None and one.error is None for one in drawn]
        return torch.cat(found), readable

    device_decoders = DeviceDecoders(job, teacher.device, threads)
    if not requests:
        device_decoders.close()
        return {"images": 0}
    ours, readable = features(device_decoders)
    theirs, _ = features(ThreadDecoders(job, size, threads))
    cosines = (ours * theirs).sum(dim=1)[torch.tensor(readable, device=ours.device)].double().clamp(max=1)
    if not len(cosines):
        return {"images": 0}
    return {
        "images": len(cosines),
        "cosine_min": round(float(cosines.min()), 6),
        "cosine_mean": round(float(cosines.mean()), 6),
    }


def _is_for_device(job: DrawViews, request: DrawRequest) -> bool:
    try:
        return jpeg_size(job.read(request)) is not None
    except (UnreadableImageError, RppError):
        return False


def difference_text(difference: dict[str, float] | None) -> str:
    """Return a sentence that tells the user what `decoder_difference` found."""
    text = "JPEG images are decoded with nvJPEG: the teacher sees slightly other pixels than Pillow's"
    if not difference or not difference["images"]:
        return f"{text}; the difference is not known, since none of the first images is decoded so"
    return (
        f"{text}; its features of {difference['images']:.0f} images have a cosine of "
        f"{difference['cosine_mean']:.6f} with those of Pillow's, at least {difference['cosine_min']:.6f}"
    )
