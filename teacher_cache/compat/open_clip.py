"""What this project uses of open_clip that open_clip does not export.

- `VisionTransformer._embeds` and `._pool`: prompts run between the two. If one is missing or returns
  something else: the tower's `forward` with hooks on its transformer, which embeds the patches twice.
- The order of the steps of the evaluation transform: pixels are taken before the last two, to-tensor and
  normalise. If these are others: the complete transform, inverted, which makes a float copy of each image.
- Its warning that a model without weights is random: weights are loaded afterwards.
- Classes of `open_clip.transformer` and `open_clip.transform`: recognised by name, or not used.

Both ways give the same bits. Seen with open_clip 3.2.0 and 3.3.0. Other files use names that `open_clip`
itself exports.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, ToTensor

# Names in open_clip; tests set others, as a future release might.
EMBEDS, POOL = "_embeds", "_pool"


@dataclass(frozen=True)
class PreprocessCfg:
    """The preprocessing of a model's images; fields as in open_clip's class of this name."""

    size: int | tuple[int, int] = 224
    mode: str = "RGB"
    mean: tuple[float, ...] = open_clip.OPENAI_DATASET_MEAN
    std: tuple[float, ...] = open_clip.OPENAI_DATASET_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0


def preprocessing_of(model: nn.Module) -> PreprocessCfg:
    """Return the preprocessing of a model's images."""
    found = open_clip.get_model_preprocess_cfg(model)
    names = [field.name for field in fields(PreprocessCfg) if field.name in found]
    return PreprocessCfg(**{name: found[name] for name in names})


def evaluation_transform(
    preprocess: PreprocessCfg, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Callable[[Image.Image], Tensor]:
    """Return open_clip's evaluation transform: image to normalised pixels [3, H, W] float32.

    Args:
        mean, std: instead of the model's.
    """
    transform: Callable[[Image.Image], Tensor] = open_clip.image_transform(
        preprocess.size,
        is_train=False,
        mean=mean or preprocess.mean,
        std=std or preprocess.std,
        resize_mode=preprocess.resize_mode,
        interpolation=preprocess.interpolation,
        fill_color=preprocess.fill_color,
    )
    return transform


def evaluation_picture(preprocess: PreprocessCfg) -> Callable[[Image.Image], Image.Image | NDArray[np.uint8]]:
    """Return open_clip's evaluation transform without to-tensor and normalise: image to [H, W, 3] uint8."""
    transform = evaluation_transform(preprocess)
    steps = transform.transforms if isinstance(transform, Compose) else []
    if len(steps) > 2 and isinstance(steps[-2], ToTensor) and isinstance(steps[-1], Normalize):
        picture: Callable[[Image.Image], Image.Image] = Compose(steps[:-2])
        return picture
    return partial(_inverted, evaluation_transform(preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))


def _inverted(transform: Callable[[Image.Image], Tensor], image: Image.Image) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = (transform(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels


@contextmanager
def without_warning() -> Iterator[None]:
    """Drop open_clip's warning about a model that is created without weights."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No pretrained weights loaded")

    root = logging.getLogger()  # open_clip has no logger of its own
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


def is_own(module: object, name: str) -> bool:
    """Return whether an object is of open_clip's class of that name, in any of open_clip's modules."""
    kind = type(module)
    return kind.__name__ == name and kind.__module__.partition(".")[0] == "open_clip"


def embedded_rows(visual: Any, images: Tensor) -> Tensor:
    """Return the input of a VisionTransformer's blocks: class token and patches, [B, T, W].

    Args:
        images: normalised, [B, 3, H, W].
    """
    rows = _call_private(visual, EMBEDS, images)
    if isinstance(rows, Tensor):
        return rows

    def stop(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        raise _RowsFoundError(arguments[0])

    with ExitStack() as hooks:
        hooks.callback(visual.transformer.register_forward_pre_hook(stop).remove)
        try:
            visual(images)
        except _RowsFoundError as found:
            return found.rows
    raise RuntimeError("the vision tower did not call its transformer")


def _call_private(visual: Any, name: str, argument: Tensor) -> Any:
    """Return what a private method returns; None if it is missing or takes other arguments."""
    method = getattr(visual, name, None)
    try:
        return method(argument) if callable(method) else None
    except TypeError:
        return None


class _RowsFoundError(Exception):
    """Ends a forward pass as soon as its rows are known."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows


def pooled_features(visual: Any, images: Tensor, rows_BTW: Tensor) -> Tensor:
    """Return the image features [B, D] of a VisionTransformer from the output of its blocks.

    Args:
        images: the images of the rows; only their number and size matter.
        rows_BTW: output of the last block.
    """
    result = _call_private(visual, POOL, rows_BTW)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor):
        pooled = result[0]
        features: Tensor = pooled if visual.proj is None else pooled @ visual.proj
        return features

    def one_row(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments[0][:, :1], *arguments[1:]  # the blocks' output for it is replaced

    with ExitStack() as hooks:
        hooks.callback(visual.transformer.register_forward_pre_hook(one_row).remove)
        hooks.callback(visual.transformer.register_forward_hook(lambda *_: rows_BTW).remove)
        found = visual(images)
    features = found[0] if isinstance(found, tuple) else found  # with tokens, if the model returns them
    assert isinstance(features, Tensor)
    return features
