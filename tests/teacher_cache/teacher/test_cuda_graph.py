"""A recorded function gives the function's results, and keeps those that it returned."""

import pytest
import torch

from teacher_cache.teacher.cuda_graph import CudaGraph


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_replays_the_function() -> None:
    weight = torch.randn(64, 64, device="cuda")
    arguments = torch.randn(3, 8, 64, device="cuda")
    graph = CudaGraph(lambda x: torch.relu(x @ weight), arguments[0])
    found = [graph(x) for x in arguments]
    for ours, x in zip(found, arguments, strict=True):
        torch.testing.assert_close(ours, torch.relu(x @ weight))
