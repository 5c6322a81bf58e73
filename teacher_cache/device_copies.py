"""Copy tensors to a GPU while it computes.

A copy from pageable memory, or on the stream that computes, waits for it. These are made from page-locked
memory on a stream of their own: a batch is copied while the GPU still computes with the one before.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor in page-locked memory if it is to be copied to a GPU; otherwise the tensor itself."""
    if device.type != "cuda" or tensor.is_cuda or tensor.is_pinned():
        return tensor
    return tensor.pin_memory()


class DeviceCopies:
    """Copies tensors to one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors on the device; what is there already is returned as it is.

        Only operations that the caller's stream runs later wait for the copies. An event that is recorded on
        that stream afterwards therefore tells when the page-locked memory may be used again.
        """
        if self._stream is None:
            return {name: tensor.to(self.device) for name, tensor in tensors.items()}
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            copied = {
                name: pinned(tensor, self.device).to(self.device, non_blocking=True)
                for name, tensor in tensors.items()
            }
        computing.wait_stream(self._stream)
        for name, tensor in copied.items():
            if tensor is not tensors[name]:
                tensor.record_stream(computing)  # its memory is not reused before the computations end
        return copied
