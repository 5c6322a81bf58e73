"""Copies of frozen models that share their tensors, with the weights of products in half precision.

Under autocast, products read half-precision copies of their weights. Torch keeps these copies only of weights
that require a gradient; it casts frozen ones in every call. A weight that has the half-precision type already
is not cast. The values are the same, because autocast makes the same copy.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from teacher_cache.compat.open_clip import is_own

# Classes whose `forward` passes these tensors to nothing but products. Subclasses with another `forward`,
# such as convolutions that standardise their weights, may compute with them in float32.
PRODUCTS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
READ_BY_PRODUCTS = (
    *("weight", "bias"),
    *("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
)

Model = TypeVar("Model", bound=nn.Module)


def frozen_copy(
    model: Model,
    device: torch.device,
    dtype: torch.dtype | None = None,
    parts: Iterable[nn.Module] = (),
) -> Model:
    """Return a copy of a model with new modules and the same tensors, where they are on the device already.

    Args:
        dtype: of the weights that products read in `parts`; None leaves them.
        parts: modules of the model that are run under autocast to `dtype` only.
    """
    copies: dict[int, Any] = {id(tensor): _moved(tensor, device) for tensor in _tensors(model)}
    if dtype is not None:
        for part in parts:
            for weight in weights_of_products(part, device):
                copies[id(weight)] = nn.Parameter(weight.detach().to(device, dtype), requires_grad=False)
    return copy.deepcopy(model, copies)


def weights_of_products(part: nn.Module, device: torch.device) -> Iterator[nn.Parameter]:
    """Yield the float32 weights and biases that only products under autocast read on a device."""
    float32: set[nn.Module] = set()
    if device.type == "cpu" and torch.backends.mha.get_fastpath_enabled():
        # the fast path of torch's attention asks only for CUDA's autocast, and on a CPU computes in float32
        attention = [module for module in part.modules() if isinstance(module, nn.MultiheadAttention)]
        float32 = {inner for module in attention for inner in module.modules()}
    for module in part.modules():
        plain = any(type(module).forward is kind.forward for kind in PRODUCTS) or is_own(module, "Attention")
        for name in READ_BY_PRODUCTS if plain and module not in float32 else ():
            weight = getattr(module, name, None)
            if isinstance(weight, nn.Parameter) and weight.dtype == torch.float32:
                yield weight


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    moved = tensor.detach().to(device)
    return (
        nn.Parameter(moved, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    )
