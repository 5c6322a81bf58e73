"""Stage one's job: draw the crops of an image's views and render them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import RppError
from teacher_cache.images.decode import UnreadableImageError, decode_picture
from teacher_cache.images.location import Location
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.view_codecs import most_bytes, pixel_difference, stored_view
from teacher_cache.views import RandomCrops, Renderer, draw_crop, evaluation_crop


class DrawRequest(NamedTuple):
    """Views of an image: its row in the cache, where its bytes are, and the numbers of the views.

    `compare` asks how much stored pixels differ from the exact ones.
    """

    row: int
    location: Location
    views: tuple[int, ...]
    compare: bool = False


class Drawn(NamedTuple):
    """How an image was decoded.

    Attributes:
        crops: of the views, [V][5], as `draw_crop` returns them.
        reason: why the image cannot be read; None if it can.
        error: what concerns more than this image, such as a missing shard.
        read, decode: seconds of reading, and processor time of decoding and resizing.
        elapsed: seconds of decoding and resizing.
        encoded: image file of each view, and its `pixel_difference` if asked for; none without a codec.
    """

    crops: list[list[int]]
    reason: str | None
    error: RppError | None
    read: float
    decode: float
    elapsed: float
    encoded: Sequence[tuple[bytes, float | None]] = ()


@dataclass(frozen=True)
class DrawViews:
    """Draws and renders views by a cache's view policy.

    Attributes:
        codec: what the cache stores views with, name in `VIEW_CODECS`; None if it stores none.
    """

    renderer: Renderer
    crops: RandomCrops
    max_pixels: int
    codec: str | None = None
    _reader: ImageReader = field(default_factory=ImageReader)

    def read(self, request: DrawRequest) -> bytes:
        """Return the bytes of an image; raises as `ImageReader.read`."""
        return self._reader.read(request.location)

    def crop(self, request: DrawRequest, view: int, width: int, height: int) -> NDArray[np.uint16]:
        """Return the crop of a view of an image of this size, [5] as `draw_crop` returns it."""
        if view:
            return draw_crop(self.crops, request.row, view, width, height)
        return evaluation_crop(self.renderer, width, height)

    def stored(
        self, request: DrawRequest, pixels_HWC: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], list[tuple[bytes, float | None]]]:
        """Return the pixels that the teacher sees, which are those that are stored, and what is stored."""
        if self.codec is None:
            return pixels_HWC, []
        content, found = stored_view(pixels_HWC, self.codec)
        return found, [(content, pixel_difference(found, pixels_HWC) if request.compare else None)]

    def reply_bytes(self, views: int) -> int:
        """Return the most bytes of the encoded views of an image."""
        return 0 if self.codec is None else views * most_bytes(self.renderer.size)

    def __call__(self, request: DrawRequest, into: NDArray[np.uint8], content: bytes | None = None) -> Drawn:
        """See `PixelJob`.

        Args:
            content: the bytes of the image, if they have been read.
        """
        started = time.perf_counter()
        crops, reason, error = [], None, None
        encoded: list[tuple[bytes, float | None]] = []
        try:
            content = self.read(request) if content is None else content
            decoding, busy = time.perf_counter(), time.thread_time()
            picture = decode_picture(content, max_pixels=self.max_pixels)
            width, height = picture.size
            for number, view in enumerate(request.views):
                crop = self.crop(request, view, width, height)
                into[number], kept = self.stored(request, self.renderer.draw(picture, view, crop))
                encoded += kept
                crops.append(crop.tolist())
        except UnreadableImageError as unreadable:
            reason = str(unreadable)
        except RppError as raised:
            error = raised
        if reason is not None or error is not None:
            into[:] = 0
            return Drawn([], reason, error, time.perf_counter() - started, 0.0, 0.0)
        elapsed = time.perf_counter() - decoding
        return Drawn(crops, None, None, decoding - started, time.thread_time() - busy, elapsed, encoded)
