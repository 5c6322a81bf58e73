"""Views of an image: crops that are drawn once, stored, and rendered again exactly.

View 0 is open_clip's evaluation preprocessing. Views 1, 2, ... are random resized crops with flips. Their
boxes are stored in units of 1/65535 of the image; both stages render a stored box with the same function.
Processes that decode import this file, and torch takes seconds: only what needs it imports it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teacher_cache.images.decode import MAX_PIXELS, UnreadableImageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device

    from teacher_cache.command_settings import ViewPolicy
    from teacher_cache.compat.open_clip import PreprocessCfg

FULL = 65535  # a side of the image in units of a stored crop
RATIO = (3 / 4, 4 / 3)  # bounds of a random crop's width / height
# Pictures on which `plain` is compared with open_clip: width and height.
COMPARED_SIZES = ((97, 64), (48, 131), (9, 7))


class RandomCrops(NamedTuple):
    """How random views are drawn: the fields of `ViewPolicy` that a process that decodes needs."""

    view_seed: int
    view_scale_min: float
    view_flip: float


def draw_crop(
    policy: "ViewPolicy | RandomCrops", row: int, view: int, width: int, height: int
) -> NDArray[np.uint16]:
    """Draw the random resized crop of one view: a function of (seed, row, view) and the image's size only.

    Area and aspect ratio are drawn as in torchvision's RandomResizedCrop. View 0 is not drawn.

    Args:
        width, height: size of the image in pixels.

    Returns:
        [5] uint16: left, top, width, height in 1/65535 of the image, and 0 or 1 for the flip.
    """
    random = np.random.Generator(np.random.Philox(key=policy.view_seed, counter=[0, 0, view, row]))
    for _ in range(10):
        area = width * height * random.uniform(policy.view_scale_min, 1.0)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = random.uniform(0, width - w), random.uniform(0, height - h)
            break
    else:  # an extreme aspect ratio: the largest centred box within the bounds
        w, h = min(width, height * RATIO[1]), min(height, width / RATIO[0])
        left, top = (width - w) / 2, (height - h) / 2
    box = np.array([left / width, top / height, w / width, h / height])
    flip = random.random() < policy.view_flip
    return np.append(np.round(box * FULL), flip).astype(np.uint16)


def evaluation_crop(like: "PreprocessCfg | Renderer", width: int, height: int) -> NDArray[np.uint16]:
    """Return the box that the evaluation view covers, in the form of `draw_crop`, for readers of the cache.
    View 0 itself is rendered as open_clip does: resized first, then cropped."""
    crop_height, crop_width = _height_width(like.size)
    if like.resize_mode != "shortest":
        return np.array([0, 0, FULL, FULL, 0], dtype=np.uint16)
    scale = min(width / crop_width, height / crop_height)
    w, h = crop_width * scale / width, crop_height * scale / height
    return np.round(np.array([(1 - w) / 2, (1 - h) / 2, w, h, 0]) * FULL).astype(np.uint16)


def crop_box(crop: NDArray[np.uint16], width: int, height: int) -> tuple[int, int, int, int]:
    """Return the pixels of a stored box in an image of this size: left, top, right, bottom."""
    left, top, w, h = (int(value) for value in crop[:4])
    x0, y0 = round(left * width / FULL), round(top * height / FULL)
    x1, y1 = round((left + w) * width / FULL), round((top + h) * height / FULL)
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


class Renderer(ABC):
    """Turns a picture into the pixels of a view that a model reads.

    Attributes:
        size: height and width of a view.
        resize_mode, interpolation: as in `PreprocessCfg`.
    """

    def __init__(self, size: tuple[int, int], resize_mode: str, interpolation: str) -> None:
        self.size, self.resize_mode, self.interpolation = size, resize_mode, interpolation

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's filter of `interpolation`."""
        is_bilinear = self.interpolation == "bilinear"
        return Image.Resampling.BILINEAR if is_bilinear else Image.Resampling.BICUBIC

    def draw(self, picture: Image.Image, view: int, crop: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Return the pixels of a view, channels last: [H, W, 3] uint8, perhaps read-only.

        Args:
            picture: of mode RGB.
            view: 0 for the evaluation view, which ignores `crop`.
            crop: [5] as `draw_crop` returns it.

        Raises:
            UnreadableImageError: the image is so long and narrow that resizing it for the evaluation view
                would fill the memory.
        """
        return self._checked_evaluation_view(picture) if view == 0 else self._cropped_view(picture, crop)

    def is_too_narrow(self, width: int, height: int) -> bool:
        """Return whether the evaluation view of a picture of this size cannot be rendered."""
        # 60,000 x 1 pixels become a large image when the short side is resized to 224
        scale = max(self.size[0] / height, self.size[1] / width)
        return self.resize_mode == "shortest" and width * height * scale**2 > MAX_PIXELS

    def _checked_evaluation_view(self, picture: Image.Image) -> NDArray[np.uint8]:
        width, height = picture.size
        if self.is_too_narrow(width, height):
            raise UnreadableImageError(f"{width} x {height} pixels are too long and narrow to be resized")
        return np.asarray(self._evaluation_view(picture), dtype=np.uint8)

    @abstractmethod
    def _evaluation_view(self, picture: Image.Image) -> Image.Image | NDArray[np.uint8]:
        """Return the evaluation view, [H, W, 3]."""

    def _cropped_view(self, picture: Image.Image, crop: NDArray[np.uint16]) -> NDArray[np.uint8]:
        # by a pixel of a very large image, rounding puts the box outside: Pillow makes that black
        view = picture.crop(crop_box(crop, *picture.size)).resize(self.size[::-1], self.resampling)
        return np.asarray(
            view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop[4] else view, dtype=np.uint8
        )


class ViewRenderer(Renderer):
    """Renders the evaluation view by open_clip's own transform."""

    def __init__(self, preprocess: "PreprocessCfg") -> None:
        from teacher_cache.compat.open_clip import evaluation_picture

        super().__init__(_height_width(preprocess.size), preprocess.resize_mode, preprocess.interpolation)
        self.preprocess = preprocess
        # to-tensor and normalise run on the device, on complete batches (`normalise`)
        self._evaluation = evaluation_picture(preprocess)

    @cached_property
    def plain(self) -> Renderer:
        """A renderer of the same pixels that does not import open_clip and torch in the process that decodes.

        It is this one if the pixels of some pictures differ, which a later version of open_clip may cause.
        """
        found = PillowRenderer(self.size, self.resize_mode, self.interpolation, self.preprocess.fill_color)
        random, crop = np.random.default_rng(0), np.zeros(5, dtype=np.uint16)
        for width, height in COMPARED_SIZES:
            picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
            if not np.array_equal(found.draw(picture, 0, crop), self.draw(picture, 0, crop)):
                return self
        return found

    def render(self, image: NDArray[np.uint8], view: int, crop: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Return the pixels of a view, [3, H, W] uint8, of an RGB image [height, width, 3]; see `draw`."""
        drawn = self.draw(Image.fromarray(image), view, crop)
        return np.ascontiguousarray(drawn.transpose(2, 0, 1))

    def render_evaluation(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the pixels of the evaluation view, [3, H, W] uint8; as `render`."""
        drawn = self._checked_evaluation_view(Image.fromarray(image))
        return np.ascontiguousarray(drawn.transpose(2, 0, 1))

    def _evaluation_view(self, picture: Image.Image) -> Image.Image | NDArray[np.uint8]:
        return self._evaluation(picture)


class PillowRenderer(Renderer):
    """Renders the evaluation view as open_clip 3.2 does, with Pillow only; `ViewRenderer.plain` compares."""

    def __init__(
        self, size: tuple[int, int], resize_mode: str, interpolation: str, fill_color: int = 0
    ) -> None:
        super().__init__(size, resize_mode, interpolation)
        self.fill = fill_color if resize_mode == "longest" else 0

    def evaluation_size(self, width: int, height: int) -> tuple[int, int, Image.Resampling]:
        """Return the width and height that the evaluation view resizes a picture to, and its filter. The
        middle of the result is cut out; where it is too small, it is padded with `fill`."""
        to_height, to_width = self.size
        if self.resize_mode == "squash":
            return to_width, to_height, self.resampling
        if self.resize_mode == "longest":
            ratio = max(height / to_height, width / to_width)
            return round(width / ratio), round(height / ratio), self.resampling
        if to_height == to_width:
            short, long = sorted((width, height))
            longer = int(to_height * long / short)
            return *((to_height, longer) if width <= height else (longer, to_height)), self.resampling
        ratio = min(height / to_height, width / to_width)
        # open_clip ignores the interpolation here
        return round(width / ratio), round(height / ratio), Image.Resampling.BICUBIC

    def _evaluation_view(self, picture: Image.Image) -> Image.Image:
        return self._centred(self._resized(picture, *self.evaluation_size(*picture.size)), self.fill)

    @staticmethod
    def _resized(picture: Image.Image, width: int, height: int, by: Image.Resampling) -> Image.Image:
        return picture if picture.size == (width, height) else picture.resize((width, height), by)

    def _centred(self, picture: Image.Image, fill: int) -> Image.Image:
        """Cut out the middle; where the picture is too small, pad it first."""
        height, width = self.size
        if picture.size == (width, height):
            return picture
        more = max(0, width - picture.width), max(0, height - picture.height)
        if any(more):
            padded = Image.new("RGB", (picture.width + more[0], picture.height + more[1]), (fill,) * 3)
            padded.paste(picture, (more[0] // 2, more[1] // 2))
            picture = padded
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        return picture.crop((left, top, left + width, top + height))


def normalise(pixels_BCHW: "Tensor", mean: Sequence[float], std: Sequence[float]) -> "Tensor":
    """uint8 pixels -> float32 model input, on the pixels' device: (x / 255 - mean) / std."""
    import torch

    pixels = pixels_BCHW.to(torch.float32).div_(255)
    return pixels.sub_(_by_channel(tuple(mean), pixels.device)).div_(_by_channel(tuple(std), pixels.device))


@cache  # each copy to a GPU would wait for it
def _by_channel(values: tuple[float, ...], device: "Device") -> "Tensor":
    import torch

    with torch.inference_mode(False):  # used with gradients too
        return torch.tensor(values, device=device).view(1, -1, 1, 1)
