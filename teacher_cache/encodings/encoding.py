"""How teacher logits are stored: which arrays, and the way there and back.

Knows nothing of disks: arrays in, logits out. Reading and writing is the store's business.

Shapes: B views, C classes (C' a subset of them), D embedding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ArraySpec:
    """One stored array behind its axes sample and view.

    Attributes:
        axes: names and sizes of the further axes.
        dtype: as numpy names it.
        fill: what rows hold that were never written.
    """

    axes: tuple[tuple[str, int], ...]
    dtype: str
    fill: Any = 0


@dataclass(frozen=True)
class ClassHead:
    """What turns unit image features into teacher logits.

    Attributes:
        class_features_CD: unit class features, float32.
        logit_scale: s in z = s · f·w.
    """

    class_features_CD: Tensor
    logit_scale: float

    def logits(self, features_BD: Tensor, classes: Tensor | None = None) -> Tensor:
        """Teacher logits z = s · f·w, [B, C'] float32, on the features' device.

        Args:
            features_BD: unit image features, any float type.
            classes: indices of the classes wanted, [C'] int64; all without it.
        """
        import torch

        chosen_CD = self.class_features_CD if classes is None else self.class_features_CD[classes]
        # float32 also under autocast: rounding to bfloat16 here would cost a tenth of a logit at scale 100
        with torch.autocast(features_BD.device.type, enabled=False):
            return self.logit_scale * (features_BD.float() @ chosen_CD.T)

    def to(self, device: torch.device) -> ClassHead:
        """The same on another device."""
        return ClassHead(self.class_features_CD.to(device), self.logit_scale)


class Encoding(ABC):
    """One way to store what the teacher said of a view.

    A cache's header records its name and its options, the keyword arguments of its class.
    """

    name: ClassVar[str]
    keeps_image_features: ClassVar[bool] = False

    def notes(self, classes: int) -> list[str]:
        """What a user should know before C = classes are stored this way.

        Raises:
            UsageError: they cannot be.
        """
        return []

    def require_temperature(self, temperature: float) -> None:
        """Refuse a temperature at which this encoding has no soft labels.

        Raises:
            UsageError: naming those that it has.
        """
        if not temperature > 0:
            raise UsageError(f"the temperature must be above zero, not {temperature}")

    def bytes_a_view(self, embedding: int, classes: int) -> int:
        """Bytes that one view takes, for D = embedding and C = classes."""
        arrays = self.arrays(embedding, classes).values()
        return sum(
            np.dtype(spec.dtype).itemsize * math.prod(size for _, size in spec.axes) for spec in arrays
        )

    @abstractmethod
    def arrays(self, embedding: int, classes: int) -> dict[str, ArraySpec]:
        """The stored arrays by name, for D = embedding and C = classes."""

    @abstractmethod
    def encode(self, features_BD: Tensor, head: ClassHead) -> dict[str, NDArray[Any]]:
        """Unit image features [B, D] float32 -> the arrays, each [B, ...]."""

    @abstractmethod
    def logits(
        self,
        stored: dict[str, Tensor],
        head: ClassHead,
        temperature: float = 1.0,
        classes: Tensor | None = None,
    ) -> Tensor:
        """Logits whose softmax at this temperature is the soft label, [B, C'] float32.

        Args:
            stored: the arrays as read, each [B, ...], on one device with `head` and `classes`.
            temperature: T; only an encoding that does not keep every logit needs it.
            classes: indices of the classes wanted, [C'] int64; all without it.

        Raises:
            UsageError: what `require_temperature` refuses.
        """

    def image_features(self, stored: dict[str, Tensor]) -> Tensor:
        """Unit image features [B, D] float16, of an encoding that keeps them."""
        raise TypeError(f"the encoding '{self.name}' keeps no image features")
