"""How teacher logits are stored: which arrays, how they are encoded and decoded.

Arrays in, logits out; the store reads and writes them.

Shapes: B views, C classes (C' a subset of them), D embedding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from pydantic import BaseModel, ConfigDict

from teacher_cache.errors import UsageError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

StoredArrays: TypeAlias = "dict[str, Tensor]"  # arrays of some views as they were read, by name


@dataclass(frozen=True)
class ArraySpec:
    """One stored array behind its axes sample and view.

    Attributes:
        axes: names and sizes of the further axes.
        dtype: as numpy names it.
        fill: value of rows that were never written.
    """

    axes: tuple[tuple[str, int], ...]
    dtype: str
    fill: Any = 0

    @property
    def bytes(self) -> int:
        """Bytes of one view, or of one sample."""
        import numpy as np

        return np.dtype(self.dtype).itemsize * math.prod(size for _, size in self.axes)


@dataclass(frozen=True)
class ClassHead:
    """Turns unit image features into teacher logits.

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
            classes: indices of the classes, [C'] int64; all classes if None.
        """
        import torch

        chosen_CD = self.class_features_CD if classes is None else self.class_features_CD[classes]
        # float32 also under autocast: rounding to bfloat16 here would cost a tenth of a logit at scale 100
        with torch.autocast(features_BD.device.type, enabled=False):
            return self.logit_scale * (features_BD.float() @ chosen_CD.T)

    def to(self, device: torch.device) -> ClassHead:
        """Return a copy on another device."""
        return ClassHead(self.class_features_CD.to(device), self.logit_scale)


class Encoding(BaseModel, ABC):
    """One way to store the teacher's logits of a view.

    Options of an encoding are fields of its class, each with a default and a description. A cache's header
    records their values; the build command offers each as an option.

    Attributes:
        name: the value of `--encoding`, and the name in a cache's header.
        keeps_image_features: whether `image_features` works.
        option_names: command-line names of options that are not called as their field is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: ClassVar[str]
    keeps_image_features: ClassVar[bool] = False
    option_names: ClassVar[dict[str, str]] = {}

    @property
    def record(self) -> dict[str, Any]:
        """Name and options as a cache's header records them."""
        return {"name": self.name, **self.model_dump(mode="json")}

    def require_classes(self, classes: int) -> None:
        """Refuse a number of classes that this encoding cannot store.

        Raises:
            UsageError: with the encodings that can.
        """

    def defaults(self, classes: int) -> dict[str, Any]:
        """Return the defaults of options, by field, that this many classes require to be lowered."""
        return {}

    def notes(self, classes: int) -> list[str]:
        """Return remarks for a user who is about to store this many classes."""
        return []

    def require_temperature(self, temperature: float) -> None:
        """Refuse a temperature at which this encoding has no soft labels.

        Raises:
            UsageError: with the temperatures that it has.
        """
        if not temperature > 0:
            raise UsageError(f"the temperature must be above zero, not {temperature}")

    def bytes_a_view(self, embedding: int, classes: int) -> int:
        """Return the bytes of one view, for D = embedding and C = classes."""
        return sum(spec.bytes for spec in self.arrays(embedding, classes).values())

    @abstractmethod
    def arrays(self, embedding: int, classes: int) -> dict[str, ArraySpec]:
        """Return the stored arrays by name, for D = embedding and C = classes."""

    @abstractmethod
    def encode(self, features_BD: Tensor, head: ClassHead) -> dict[str, NDArray[Any]]:
        """Encode unit image features [B, D] float32 as the arrays, each [B, ...]."""

    @abstractmethod
    def logits(
        self, stored: StoredArrays, head: ClassHead, temperature: float = 1.0, classes: Tensor | None = None
    ) -> Tensor:
        """Return logits whose softmax at this temperature is the soft label, [B, C'] float32.

        Args:
            stored: the arrays as read, each [B, ...], on one device with `head` and `classes`.
            temperature: T; used only by encodings that do not keep every logit.
            classes: indices of the classes, [C'] int64; all classes if None.

        Raises:
            UsageError: a temperature that `require_temperature` refuses.
        """

    def image_features(self, stored: StoredArrays) -> Tensor:
        """Return unit image features [B, D] float16, if the encoding keeps them."""
        raise TypeError(f"the encoding '{self.name}' keeps no image features")
