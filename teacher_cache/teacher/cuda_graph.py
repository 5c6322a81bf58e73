"""Replay a function's CUDA kernels with one launch."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP_CALLS = 3  # kernels are chosen, and compiled, before the recording


class CudaGraph:
    """A function of one tensor, recorded for a shape.

    The function must not copy from the CPU or wait for the GPU, and each call must launch the same kernels.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], example: Tensor) -> None:
        """Args:
        example: an argument on the GPU; others need its shape and type.
        """
        self._argument = example.clone()
        self._graph = torch.cuda.CUDAGraph()
        computing, warming = torch.cuda.current_stream(), torch.cuda.Stream()
        warming.wait_stream(computing)
        with torch.cuda.stream(warming):
            for _ in range(WARM_UP_CALLS):
                function(self._argument)
        computing.wait_stream(warming)
        # other threads decode images into page-locked memory, which they may allocate
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = function(self._argument)

    def __call__(self, argument: Tensor) -> Tensor:
        """Return the function's result for an argument; the next call does not overwrite it."""
        self._argument.copy_(argument, non_blocking=True)
        self._graph.replay()
        return self._result.clone()
