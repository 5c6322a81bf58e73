"""Inputs for the tests of every encoding: random features, encoded and read back."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from teacher_cache.encodings import ClassHead, Encoding
from teacher_cache.encodings.dense import Dense
from teacher_cache.encodings.factored import Factored
from teacher_cache.encodings.factored_int8 import FactoredInt8
from teacher_cache.encodings.topk import TopK
from teacher_cache.softlabels import SIGNED

TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
ALL = [Factored(), FactoredInt8(), TopK(k=8), Dense()]


def case(seed: int, scale: float, classes: int = 40, spread: float = 0.3) -> tuple[Tensor, ClassHead]:
    """Seven unit features near 12 of `classes` class features, some of which are equal to others."""
    generator = torch.Generator().manual_seed(seed)
    heads_CD = F.normalize(torch.randn(classes, 48, generator=generator), dim=1)
    heads_CD[classes // 2 : classes // 2 + 3] = heads_CD[0]
    near = heads_CD[torch.randint(0, 12, (7,), generator=generator)]
    features_BD = F.normalize(near + spread * torch.randn(7, 48, generator=generator), dim=1)
    return features_BD, ClassHead(heads_CD, scale)


cases = st.builds(
    case, st.integers(0, 2**31), st.sampled_from([1.0, 17.0, 100.0]), st.integers(12, 60), st.floats(0.0, 1.0)
)


def as_read(encoding: Encoding, features_BD: Tensor, head: ClassHead) -> dict[str, Tensor]:
    """What a cache gives back of what was encoded, with the dtypes and shapes that were promised."""
    specs = encoding.arrays(features_BD.shape[1], len(head.class_features_CD))
    arrays = encoding.encode(features_BD, head)
    assert arrays.keys() == specs.keys()
    for name, values in arrays.items():
        assert values.shape == (len(features_BD), *(size for _, size in specs[name].axes))
        assert values.dtype == specs[name].dtype
    return {
        name: torch.from_numpy(values.astype(SIGNED.get(values.dtype.name, values.dtype)))
        for name, values in arrays.items()
    }
