"""Which parts of image encoders are compiled, and that features stay those of the uncompiled ones."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch._dynamo.utils import counters

from teacher_cache.compat import dynamo
from teacher_cache.teacher.compiled import _repeated, compile_blocks
from teacher_cache.teacher.frozen_copy import frozen_copy
from teacher_cache.teacher.teacher import Teacher
from tests.models import loaded

PIXELS = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile without a compiler; `test_compiled_towers.py` has one."""
    monkeypatch.setattr(dynamo, "BACKEND", "eager")
    dynamo.require_compiler(torch.device("cpu"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", ["gelu", "custom", "attn-pool", "resnet"])
def test_full_batches_run_compiled_and_others_do_not(config: str, precision: str) -> None:
    teacher = Teacher(loaded(config), torch.device("cpu"), precision)
    plain = teacher.image_features(PIXELS[:4])
    rest = teacher.image_features(PIXELS[4:])
    assert teacher.compile(4) > 0
    assert teacher.compile(4) == 0, "compiled already"
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    bar = 1e-5 if precision == "fp32" else 0.01
    torch.testing.assert_close(teacher.image_features(PIXELS[:4]), plain, atol=bar, rtol=0)
    assert torch.equal(teacher.image_features(PIXELS[4:]), rest)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not any("_compiled_call_impl" in vars(module) for module in loaded(config).model.modules())


def test_twelve_blocks_are_one_graph() -> None:
    Teacher(loaded("deep"), torch.device("cpu")).compile(4)
    assert counters["stats"]["unique_graphs"] == 1


def test_an_encoder_of_timm_is_compiled_by_its_blocks() -> None:
    encoder = timm.create_model("test_vit").eval().requires_grad_(False)
    assert set(_repeated(encoder)) == set(encoder.blocks)
    images = torch.randn(2, 3, 160, 160)
    compiled = frozen_copy(encoder, torch.device("cpu"))
    compile_blocks(compiled)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(images), encoder(images), atol=1e-5, rtol=1e-5)


def test_an_encoder_without_repeated_blocks_is_compiled_as_a_whole() -> None:
    encoder = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).eval()
    with torch.inference_mode():
        expected = encoder(torch.ones(2, 4))
        compile_blocks(encoder)
        torch.testing.assert_close(encoder(torch.ones(2, 4)), expected)
    assert counters["stats"]["unique_graphs"] == 1
