"""Views of an image: crops that are drawn once, stored, and rendered again exactly.

View 0 is open_clip's evaluation preprocessing. Views 1, 2, ... are random resized crops with flips. Their
boxes are stored in units of 1/65535 of the image; both stages render a stored box with the same function.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from teacher_cache.command_settings import ViewPolicy
from teacher_cache.compat.open_clip import PreprocessCfg, evaluation_picture
from teacher_cache.images.decode import MAX_PIXELS, UnreadableImageError

FULL = 65535  # a side of the image in units of a stored crop
RATIO = (3 / 4, 4 / 3)  # bounds of a random crop's width / height


def draw_crop(policy: ViewPolicy, row: int, view: int, width: int, height: int) -> NDArray[np.uint16]:
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


def evaluation_crop(preprocess: PreprocessCfg, width: int, height: int) -> NDArray[np.uint16]:
    """Return the box that the evaluation view covers, in the form of `draw_crop`, for readers of the cache.
    View 0 itself is rendered as open_clip does: resized first, then cropped."""
    crop_height, crop_width = _size(preprocess)
    if preprocess.resize_mode != "shortest":
        return np.array([0, 0, FULL, FULL, 0], dtype=np.uint16)
    scale = min(width / crop_width, height / crop_height)
    w, h = crop_width * scale / width, crop_height * scale / height
    return np.round(np.array([(1 - w) / 2, (1 - h) / 2, w, h, 0]) * FULL).astype(np.uint16)


def _size(preprocess: PreprocessCfg) -> tuple[int, int]:
    size = preprocess.size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


class ViewRenderer:
    """Turns the pixels of an image into those of a view that a model with this preprocessing reads."""

    def __init__(self, preprocess: PreprocessCfg) -> None:
        self.preprocess = preprocess
        self.size = _size(preprocess)
        # to-tensor and normalise run on the device, on complete batches (`normalise`)
        self._evaluation = evaluation_picture(preprocess)
        self._interpolation = InterpolationMode(
            "bilinear" if preprocess.interpolation == "bilinear" else "bicubic"
        )

    def render(self, image: NDArray[np.uint8], view: int, crop: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Return the pixels of a view, [3, H, W] uint8; arguments and errors as for `render_last`."""
        return np.ascontiguousarray(self.render_last(image, view, crop).transpose(2, 0, 1))

    def render_evaluation(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the pixels of the evaluation view, [3, H, W] uint8; raises as `render_last`."""
        return np.ascontiguousarray(self._evaluation_view(image).transpose(2, 0, 1))

    def render_last(self, image: NDArray[np.uint8], view: int, crop: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Return the pixels of a view, channels last: [H, W, 3] uint8, perhaps read-only.

        Args:
            image: RGB, [height, width, 3].
            view: 0 for the evaluation view, which ignores `crop`.
            crop: [5] as `draw_crop` returns it.

        Raises:
            UnreadableImageError: the image is so long and narrow that resizing it for the evaluation view
                would fill the memory.
        """
        return self._evaluation_view(image) if view == 0 else self._cropped_view(image, crop)

    def _evaluation_view(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        # 60,000 x 1 pixels become a large image when the short side is resized to 224
        if self.preprocess.resize_mode == "shortest":
            scale = max(self.size[0] / height, self.size[1] / width)
            if width * height * scale**2 > MAX_PIXELS:
                raise UnreadableImageError(f"{width} x {height} pixels are too long and narrow to be resized")
        return np.asarray(self._evaluation(Image.fromarray(image)), dtype=np.uint8)

    def _cropped_view(self, image: NDArray[np.uint8], crop: NDArray[np.uint16]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        left, top, w, h = (int(value) for value in crop[:4])
        x0, y0 = round(left * width / FULL), round(top * height / FULL)
        x1, y1 = round((left + w) * width / FULL), round((top + h) * height / FULL)
        x0, y0 = min(x0, width - 1), min(y0, height - 1)
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        box = image[y0:y1, x0:x1]
        if x1 > width or y1 > height:  # by a pixel of a very large image, from rounding: black, as in Pillow
            box = np.pad(box, ((0, max(0, y1 - height)), (0, max(0, x1 - width)), (0, 0)))
        view = transforms.resize(Image.fromarray(box), list(self.size), self._interpolation)
        return np.asarray(transforms.hflip(view) if crop[4] else view, dtype=np.uint8)


def normalise(pixels_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 pixels -> float32 model input, on the pixels' device: (x / 255 - mean) / std."""
    pixels = pixels_BCHW.to(torch.float32).div_(255)
    return pixels.sub_(_by_channel(tuple(mean), pixels.device)).div_(_by_channel(tuple(std), pixels.device))


@cache  # each copy to a GPU would wait for it
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # used with gradients too
        return torch.tensor(values, device=device).view(1, -1, 1, 1)
