"""Which crop of which image a model sees: drawn once, stored, replayed exactly.

View 0 is open_clip's evaluation preprocessing. Views 1, 2, ... are random resized crops with flips whose
boxes are stored in 1/65535 of the image; both stages turn a stored box into pixels by the same function.
"""

import math
from collections.abc import Sequence

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


RATIO = (3 / 4, 4 / 3)


def draw_crop(policy: ViewPolicy, row: int, view: int, width: int, height: int) -> NDArray[np.uint16]:
    """The random resized crop of one view: a function of (seed, row, view) and the image's size alone.

    Area and aspect ratio are drawn as in torchvision's RandomResizedCrop; view 0 is not drawn.

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
    else:  # an extreme aspect: the largest centred box within the ratio's bounds
        w, h = min(width, height * RATIO[1]), min(height, width / RATIO[0])
        left, top = (width - w) / 2, (height - h) / 2
    box = np.array([left / width, top / height, w / width, h / height])
    flip = random.random() < policy.view_flip
    return np.append(np.round(box * FULL), flip).astype(np.uint16)


def evaluation_crop(preprocess: PreprocessCfg, width: int, height: int) -> NDArray[np.uint16]:
    """The box that the evaluation view shows, in the form of `draw_crop`. For readers of the cache:
    view 0 itself is made by resizing first and cropping then, as open_clip does."""
    crop_height, crop_width = _size(preprocess)
    if preprocess.resize_mode != "shortest":
        return np.array([0, 0, FULL, FULL, 0], dtype=np.uint16)
    scale = min(width / crop_width, height / crop_height)
    w, h = crop_width * scale / width, crop_height * scale / height
    return np.round(np.array([(1 - w) / 2, (1 - h) / 2, w, h, 0]) * FULL).astype(np.uint16)


def enough_pixels(crops_V5: NDArray[np.uint16], height: int, width: int) -> tuple[int, int]:
    """The smallest (width, height) that a picture may be decoded at for crops to be shown at a size without
    being enlarged: `decode_image(content, at_least=...)`.

    Args:
        crops_V5: [V, 5] or [5] as `draw_crop` and `evaluation_crop` give them.
        height, width: of what is shown.
    """
    w, h = np.maximum(crops_V5[..., 2:4].reshape(-1, 2).min(axis=0), 1).astype(np.int64)
    return math.ceil(width * FULL / w), math.ceil(height * FULL / h)


def _size(preprocess: PreprocessCfg) -> tuple[int, int]:
    size = preprocess.size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


class ViewRenderer:
    """Turns (image, view, stored crop) into the pixels that a model with this preprocessing reads."""

    def __init__(self, preprocess: PreprocessCfg) -> None:
        self.preprocess = preprocess
        self.size = _size(preprocess)
        # to-tensor and normalise run on the device, on whole batches (`normalise`)
        self._evaluation = evaluation_picture(preprocess)
        self._interpolation = InterpolationMode(
            "bilinear" if preprocess.interpolation == "bilinear" else "bicubic"
        )

    def render(self, image: Image.Image, view: int, crop: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Pixels of one view, [3, H, W] uint8; the arguments are those of `picture`."""
        return np.ascontiguousarray(self.picture(image, view, crop).transpose(2, 0, 1))

    def picture(self, image: Image.Image, view: int, crop: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """One view as Pillow holds it, [H, W, 3] uint8; to be copied, not to be written to.

        Args:
            image: RGB.
            view: 0 for the evaluation view (then `crop` is not read).
            crop: [5] as `draw_crop` gives it.

        Raises:
            UnreadableImageError: so long and narrow that open_clip's resizing would fill the memory.
        """
        if view == 0:
            self._require_a_moderate_shape(image)
            shown = self._evaluation(image)
        else:
            left, top, w, h = (int(value) for value in crop[:4])
            x0, y0 = round(left * image.width / FULL), round(top * image.height / FULL)
            x1, y1 = round((left + w) * image.width / FULL), round((top + h) * image.height / FULL)
            x0, y0 = min(x0, image.width - 1), min(y0, image.height - 1)
            box = (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))
            shown = transforms.resize(image.crop(box), list(self.size), self._interpolation)
            if crop[4]:
                shown = transforms.hflip(shown)
        return np.asarray(shown, dtype=np.uint8)

    def _require_a_moderate_shape(self, image: Image.Image) -> None:
        # 60,000 x 1 pixels are no large image until the short side is made 224
        if self.preprocess.resize_mode == "shortest":
            scale = max(self.size[0] / image.height, self.size[1] / image.width)
            if image.width * image.height * scale**2 > MAX_PIXELS:
                raise UnreadableImageError(
                    f"{image.width} x {image.height} pixels are too long and narrow to be resized"
                )


def normalise(pixels_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 pixels -> float32 model input, on the pixels' device: (x / 255 - mean) / std."""
    pixels = pixels_BCHW.to(torch.float32).div_(255)
    shape = (1, -1, 1, 1)
    mean_C = torch.tensor(mean, device=pixels.device).view(shape)
    std_C = torch.tensor(std, device=pixels.device).view(shape)
    return pixels.sub_(mean_C).div_(std_C)
