"""Stage two's jobs: read an image, check that it is the sample's, and render the crop that the teacher saw;
or read a rendered view.

Processes that decode import this file, and torch takes seconds: nothing here imports it.
"""

import tarfile
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import CacheDamagedError, RppError, UsageError
from teacher_cache.images.decode import UnreadableImageError, decode_image, decode_picture
from teacher_cache.images.location import ByteRange, Location, ParquetRow, WholeFile
from teacher_cache.images.reader import ImageReader
from teacher_cache.views import Renderer

TAR_BLOCK = 512
FULL_KEY = 90  # characters; a tar header has names of up to 100 bytes untruncated, extension included


@dataclass(frozen=True)
class ViewRequest:
    """A view of a sample to read.

    Attributes:
        key: key of the sample in the sample table.
        location: where the bytes of the image are.
        view, crop: as in the cache; the crop is [5] uint16.
        check: whether to compare the key with the name of what is at the location.
    """

    key: str
    location: Location
    view: int
    crop: NDArray[np.uint16]
    check: bool = False


@dataclass(frozen=True)
class RenderViews:
    """Renders stored crops, one view of an image at a time."""

    renderer: Renderer
    max_pixels: int
    _reader: ImageReader = field(default_factory=ImageReader)

    def __call__(self, request: ViewRequest, into: NDArray[np.uint8]) -> RppError | None:
        """See `PixelJob`. Return why the view cannot be read.

        It is a `UsageError` if another sample is at the location of this one.
        """
        try:
            if request.check:
                check_key(request, self._reader)
            picture = decode_picture(self._reader.read(request.location), max_pixels=self.max_pixels)
            into[0] = self.renderer.draw(picture, request.view, request.crop)
        except UsageError as error:
            return error
        except (UnreadableImageError, RppError) as error:
            return RppError(
                f"{request.key} in {request.location[0]} cannot be read now, although the teacher could read "
                f"it: {error}; if the images moved, give their new place with --images"
            )
        return None


@dataclass(frozen=True)
class DecodeStoredViews:
    """Decodes rendered views: the pixels are taken as they are.

    Attributes:
        size: height and width of a view.
    """

    size: tuple[int, int]
    _reader: ImageReader = field(default_factory=ImageReader)

    def __call__(self, request: ViewRequest, into: NDArray[np.uint8]) -> RppError | None:
        """See `PixelJob`. Return why the view cannot be read.

        It is a `UsageError` if another view is at the location, and a `CacheDamagedError` if the view has
        another size.
        """
        try:
            if request.check:
                check_key(request, self._reader)
            image = decode_image(self._reader.read(request.location))
        except UsageError as error:
            return error
        except (UnreadableImageError, RppError) as error:
            return RppError(
                f"the rendered view {request.key} in {request.location[0]} cannot be read: {error}; run "
                "rpp-cache verify"
            )
        if image.shape[:2] != self.size:
            return CacheDamagedError(
                f"a rendered view has {image.shape[1]} x {image.shape[0]} pixels, expected "
                f"{self.size[1]} x {self.size[0]}; run rpp-cache verify"
            )
        into[0] = image
        return None


def check_key(request: ViewRequest, reader: ImageReader) -> None:
    """Compare a sample's key with the name of the tar member or file at its location.

    If a tar header truncates the name, only the size is compared.

    Raises:
        UsageError: they differ.
    """
    location = request.location
    if isinstance(location, ParquetRow):
        return
    path, length = location.path, location.length
    offset = 0 if isinstance(location, WholeFile) else location.offset
    found = None
    if path.endswith(".tar"):
        try:
            header = tarfile.TarInfo.frombuf(
                reader.read(ByteRange(path, offset - TAR_BLOCK, TAR_BLOCK)), "utf-8", "surrogateescape"
            )
        except (tarfile.HeaderError, UnreadableImageError, ValueError):
            found = "no tar member"
        else:
            folder, _, name = header.name.rpartition("/")
            stem = f"{folder}/{name.partition('.')[0]}".lstrip("/")
            is_full = request.key.isascii() and len(request.key) <= FULL_KEY
            if (is_full and stem != request.key) or header.size != length:
                found = f"{header.name} ({header.size} bytes)"
    elif isinstance(location, WholeFile) and not path.endswith(request.key):
        found = path
    if found is not None:
        raise UsageError(
            f"{path} has {found} at byte {offset}, but the cache has {request.key} ({length} bytes) there: "
            "the images changed since the cache was built; give the original ones with --images"
        )
