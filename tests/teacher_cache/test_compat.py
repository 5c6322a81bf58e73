"""Behind each fence the private way and the public one give the same."""

from types import SimpleNamespace
from typing import Any, cast

import fsspec
import pytest
import torch
from fsspec import AbstractFileSystem
from torch import nn

from student_train import towers
from student_train.settings import PromptSettings
from student_train.student import PromptedCLIP
from teacher_cache.compat import distributed as dask_fence
from teacher_cache.compat import open_clip as tower_fence
from teacher_cache.compat.fsspec import path_in
from teacher_cache.openclip import vision_transformer
from tests.models import loaded


@pytest.mark.parametrize("config", ["gelu", "quickgelu", "custom", "attn-pool"])
def test_the_vision_tower_in_pieces(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = loaded(config)
    visual = vision_transformer(base.model)
    size = base.preprocess.size
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        private = tower_fence.embed(visual, images)
        public = tower_fence.embed_by_hook(visual, images)
        assert torch.equal(private, public)
        x = torch.randn(private.shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(tower_fence.pool(visual, x, images), tower_fence.pool_by_hook(visual, x, images))
    assert not visual.transformer._forward_hooks
    assert not visual.transformer._forward_pre_hooks

    def run() -> list[torch.Tensor]:
        student = PromptedCLIP(base, PromptSettings(towers="vision", prompt_length=2), seed=3)
        features = student.encode_image(images)
        features.square().sum().backward()
        return [features.detach(), *(p.grad for p in student.parameters() if p.grad is not None)]

    expected = run()
    monkeypatch.setattr(towers, "embed", tower_fence.embed_by_hook)
    monkeypatch.setattr(towers, "pool", tower_fence.pool_by_hook)
    found = run()
    assert len(found) > 1
    assert all(map(torch.equal, found, expected))


class Renamed(nn.Module):
    """A tower whose pieces have other names."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual, self.transformer, self.proj = visual, visual.transformer, visual.proj

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.visual(images)


def test_a_tower_without_the_private_names_is_run_by_hooks() -> None:
    visual = vision_transformer(loaded("gelu").model)
    images, other = torch.randn(2, 3, 32, 32), cast(Any, Renamed(visual))
    with torch.no_grad():
        x = tower_fence.embed(other, images)
        assert torch.equal(x, tower_fence.embed(visual, images))
        assert torch.equal(tower_fence.pool(other, x, images), tower_fence.pool(visual, x, images))


@pytest.mark.parametrize("url", ["memory://a/b/c.tar", "file:///a/b", "https://host/a.tar?version=1"])
def test_the_path_of_a_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fsspec.url_to_fs(url)[0]
    private = path_in(found, url)
    assert private == path_in(SimpleNamespace(), url)
    assert issubclass(type(found), AbstractFileSystem)


def test_a_task_that_nobody_can_ask_about_is_wanted() -> None:
    running, closing = dask_fence.Status.running, dask_fence.Status.closing
    tasks = {"a": SimpleNamespace(state="executing"), "b": SimpleNamespace(state="cancelled")}

    def worker(status: Any) -> Any:
        return SimpleNamespace(state=SimpleNamespace(tasks=tasks), status=status)

    assert dask_fence.is_wanted(worker(running), "a")
    assert not dask_fence.is_wanted(worker(running), "b")
    assert not dask_fence.is_wanted(worker(running), "gone")
    assert not dask_fence.is_wanted(worker(closing), "a")
    assert dask_fence.is_wanted(SimpleNamespace(), "a")
