"""Decode JPEG images on the teacher's CUDA device, with the nvJPEG that torchvision contains.

The pixels differ from Pillow's: nvJPEG interpolates the colour of subsampled images by its nearest neighbour,
and rounds differently. Images that are not JPEG, and JPEG images that a device could read otherwise than
Pillow, are decoded with Pillow. Crops, the evaluation view and the reasons of unreadable images are those of
`DrawViews`.

Shapes: V views, B images of a batch, H and W pixels.
"""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import functional

from teacher_cache.errors import RppError, UsageError
from teacher_cache.images.decode import UnreadableImageError
from teacher_cache.images.pillow import MOST_SCANS
from teacher_cache.pixels.decoders import BATCHES_AHEAD, BatchRequest, Decoders
from teacher_cache.pixels.drawn_views import Drawn, DrawRequest, DrawViews
from teacher_cache.views import PillowRenderer, crop_box

DEVICES = ("cuda",)  # types of devices that are used; tests add the CPU
GROUP_PIXELS = 1 << 26  # of the images that are on the device in full size: 200 MB
INTERPOLATION = {
    Image.Resampling.BILINEAR: functional.InterpolationMode.BILINEAR,
    Image.Resampling.BICUBIC: functional.InterpolationMode.BICUBIC,
}
# Markers of a JPEG file.
END, SCAN, ADOBE = 0xD9, 0xDA, 0xEE
READ_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, with Huffman codes
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
LUMINANCE = (0x11, 0x21, 0x12, 0x22, 0x41)  # samples of luminance for one of colour, horizontal and vertical


def require_device_decoder(device: torch.device) -> None:
    """Decode a tiny JPEG on a device.

    Raises:
        UsageError: the device has no JPEG decoder, or this torchvision cannot use it.
    """
    if device.type not in DEVICES:
        raise UsageError(
            f"nvJPEG (--decode-on-device) needs a CUDA device, and the teacher runs on {device}: choose one "
            "with --device, or build the cache without nvJPEG"
        )
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    try:
        _decode_jpegs([buffer.getvalue()], device)
    except (RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"this torchvision cannot decode JPEG images on {device} ({reason}): install one with nvJPEG, or "
            "build the cache without --decode-on-device"
        ) from error


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Return the width and height of a JPEG image that nvJPEG reads as Pillow does, up to rounding.

    It has 8 bits, gray or YCbCr, a usual subsampling, and its end, which a file that is cut off lacks. None
    for all others.
    """
    if not (content.startswith(b"\xff\xd8\xff") and content.endswith(bytes((0xFF, END)))):
        return None
    at, size = 2, None
    try:
        while content[at] == 0xFF:
            marker = content[at + 1]
            if marker == 0xFF:  # a fill byte
                at += 1
                continue
            if marker == SCAN:
                return size if content.count(bytes((0xFF, SCAN))) <= MOST_SCANS else None
            body = content[at + 4 : at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")]
            if marker in OTHER_FRAMES:
                return None
            if marker == ADOBE and body.startswith(b"Adobe") and body[11] != 1:  # RGB, or CMYK
                return None
            if marker in READ_FRAMES:
                if size is not None or not _is_usual(body):
                    return None
                size = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
            at += 4 + len(body)
    except IndexError:
        pass
    return None


def _is_usual(frame: bytes) -> bool:
    """Return whether a frame header is that of 8 bits, gray or YCbCr, in a usual subsampling."""
    bits, components = frame[0], [frame[at : at + 3] for at in range(6, 6 + 3 * frame[5], 3)]
    names, sampling = bytes(c[0] for c in components), [c[1] for c in components]
    if bits != 8 or 0 in (int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")):
        return False
    if len(components) == 1:
        return sampling == [0x11]
    return (
        len(components) == 3 and names != b"RGB" and sampling[0] in LUMINANCE and sampling[1:] == [0x11] * 2
    )


def _decode_jpegs(contents: Sequence[bytes], device: torch.device) -> list[Tensor]:
    """Return RGB pixels [3, height, width] uint8 on the device."""
    encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    decoded: list[Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return decoded


@dataclass
class _Read:
    """An image as a thread left it: its bytes for the device, or its pixels [V, H, W, 3] by Pillow."""

    content: bytes
    size: tuple[int, int] | None
    seconds: float
    by_pillow: tuple[NDArray[np.uint8], Drawn] | None = None


class DeviceDecoders(Decoders):
    """Reads on threads and decodes JPEG images in batches on a device. Yields pixels on that device.

    Decoding and resizing have a stream of their own, on which all memory of pixels is allocated. It is idle
    before each call of the decoder: torchvision's decoder writes to new tensors from another stream without
    waiting for what their memory was used for before.
    """

    def __init__(
        self,
        job: DrawViews,
        device: torch.device,
        threads: int,
        on_note: Callable[[str], None] = lambda note: None,
    ) -> None:
        """Args:
        threads: that read, and decode what the device does not.
        on_note: called at the end with the number of images that Pillow decoded.

        Raises:
            UsageError: see `require_device_decoder`.
            RppError: the installed open_clip renders another evaluation view.
        """
        require_device_decoder(device)
        if not isinstance(job.renderer, PillowRenderer):
            raise RppError(
                "the installed open_clip renders the evaluation view in another way than --decode-on-device: "
                "install open_clip 3.2, or build the cache without --decode-on-device"
            )
        super().__init__(job.renderer.size, BATCHES_AHEAD, threads)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._job, self._renderer, self._device, self._on_note = job, job.renderer, device, on_note
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._images = self._by_pillow = 0
        self._readers = ThreadPoolExecutor(threads)
        self._decoder = ThreadPoolExecutor(1)

    def _start(self, batch: BatchRequest) -> Callable[[], tuple[Tensor, list[Any]]]:
        reading = [self._readers.submit(self._read, request) for _, request in batch.requests]
        decoding = self._decoder.submit(self._decoded, batch, reading)

        def finish() -> tuple[Tensor, list[Any]]:
            pixels, drawn = decoding.result()
            if pixels.is_cuda:  # the caller's stream uses memory of this one
                pixels.record_stream(torch.cuda.current_stream(pixels.device))
            return pixels, drawn

        return finish

    def _read(self, request: DrawRequest) -> _Read:
        started = time.perf_counter()
        try:
            content = self._job.read(request)
        except (UnreadableImageError, RppError):
            return _Read(b"", None, 0.0, self._with_pillow(request, None))
        read = _Read(content, jpeg_size(content), time.perf_counter() - started)
        if read.size is None or not self._is_resizable(*read.size):
            read.by_pillow = self._with_pillow(request, content)
        return read

    def _is_resizable(self, width: int, height: int) -> bool:
        return (
            width * height <= self._job.max_pixels
            and not self._renderer.is_too_narrow(width, height)
            and min(self._renderer.evaluation_size(width, height)[:2]) > 0
        )

    def _with_pillow(self, request: DrawRequest, content: bytes | None) -> tuple[NDArray[np.uint8], Drawn]:
        pixels = np.zeros((len(request.views), *self._size, 3), dtype=np.uint8)
        return pixels, self._job(request, pixels, content)

    def _decoded(self, batch: BatchRequest, reading: "list[Future[_Read]]") -> tuple[Tensor, list[Any]]:
        images = [future.result() for future in reading]
        started, busy = time.perf_counter(), time.thread_time()
        shape = (batch.views, batch.images, *self._size, 3)
        drawn: list[Any] = [None] * len(images)
        crops: dict[int, list[list[int]]] = {}
        encoded: dict[int, list[tuple[bytes, float | None]]] = {}
        with self._on_stream():
            pixels = torch.zeros(shape, dtype=torch.uint8, device=self._device)
            for group in _groups(images):
                decoded = self._decode([images[number].content for number in group])
                for number, image in zip(group, decoded, strict=True):
                    place, request = batch.requests[number]
                    if image is not None and image.shape[2:] + image.shape[1:2] == images[number].size:
                        crops[number], encoded[number] = self._draw(image, request, pixels[:, place])
                    else:
                        images[number].by_pillow = self._with_pillow(request, images[number].content)
                del decoded
            for number, read in enumerate(images):
                if read.by_pillow is not None:
                    found, one = read.by_pillow
                    times = (one.read + read.seconds, one.decode, one.elapsed)
                    drawn[number] = Drawn(one.crops, one.reason, one.error, *times, one.encoded)
                    pixels[:, batch.requests[number][0]] = torch.from_numpy(found).to(self._device)
        if self._stream is not None:
            self._stream.synchronize()
        on_device = [number for number, image in enumerate(images) if image.by_pillow is None]
        if on_device:
            # one thread decodes for all: as if each of the decoders were busy for that time
            elapsed = (time.perf_counter() - started) * self.number / len(on_device)
            busy = (time.thread_time() - busy) / len(on_device)
            for number in on_device:
                seconds = images[number].seconds
                drawn[number] = Drawn(crops[number], None, None, seconds, busy, elapsed, encoded[number])
        self._images += len(images)
        self._by_pillow += sum(image.by_pillow is not None for image in images)
        return pixels, drawn

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _decode(self, contents: list[bytes]) -> list[Tensor | None]:
        """Return the pixels of each image, None for those that the device refuses."""
        if self._stream is not None:
            self._stream.synchronize()
        try:
            return [*_decode_jpegs(contents, self._device)]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # the decoder names neither the image nor the reason
            if len(contents) == 1:
                return [None]
            half = len(contents) // 2
            return self._decode(contents[:half]) + self._decode(contents[half:])

    def _draw(
        self, image: Tensor, request: DrawRequest, into: Tensor
    ) -> tuple[list[list[int]], list[tuple[bytes, float | None]]]:
        """Fill `into` [V, H, W, 3] with the views of an image [3, height, width]; return their crops,
        and what is stored of them."""
        height, width = image.shape[1:]
        crops, encoded = [], []
        for number, view in enumerate(request.views):
            crop = self._job.crop(request, view, width, height)
            drawn = self._cropped_view(image, crop) if view else self._evaluation_view(image)
            into[number] = drawn.permute(1, 2, 0)
            if self._job.codec is not None:
                stored, kept = self._job.stored(request, into[number].cpu().numpy())
                into[number] = torch.tensor(stored, device=into.device)
                encoded += kept
            crops.append(crop.tolist())
        return crops, encoded

    def _cropped_view(self, image: Tensor, crop: NDArray[np.uint16]) -> Tensor:
        x0, y0, x1, y1 = crop_box(crop, image.shape[2], image.shape[1])
        view = _resized(image[:, y0:y1, x0:x1], *self._size, self._renderer.resampling)
        return view.flip(2) if crop[4] else view

    def _evaluation_view(self, image: Tensor) -> Tensor:
        width, height, resampling = self._renderer.evaluation_size(image.shape[2], image.shape[1])
        view = _resized(image, height, width, resampling)
        x, y = max(0, self._size[1] - width), max(0, self._size[0] - height)
        if x or y:
            view = functional.pad(view, [x // 2, y // 2, x - x // 2, y - y // 2], self._renderer.fill)
        centred: Tensor = functional.center_crop(view, list(self._size))
        return centred

    def close(self) -> None:
        """See `Decoders`."""
        self._decoder.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        if self._by_pillow:
            self._on_note(
                f"{self._by_pillow:,} of {self._images:,} images were decoded with Pillow in place of "
                "nvJPEG: not JPEG, of a kind that nvJPEG does not read as Pillow does, or damaged"
            )
        self._images = self._by_pillow = 0


def _resized(image: Tensor, height: int, width: int, resampling: Image.Resampling) -> Tensor:
    resized: Tensor = functional.resize(image, [height, width], INTERPOLATION[resampling], antialias=True)
    return resized


def _groups(images: list[_Read]) -> Iterator[list[int]]:
    """Divide what the device decodes into groups of at most `GROUP_PIXELS`, or of one image."""
    group: list[int] = []
    total = 0
    for number, image in enumerate(images):
        if image.by_pillow is not None or image.size is None:
            continue
        pixels = image.size[0] * image.size[1]
        if group and total + pixels > GROUP_PIXELS:
            yield group
            group, total = [], 0
        group.append(number)
        total += pixels
    if group:
        yield group
