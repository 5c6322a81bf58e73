"""Model folders and weights files with invalid configurations and weights."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from teacher_cache.errors import UsageError
from teacher_cache.teacher.openclip import load_model
from tests.hostile.contract import bounded, is_one_line, watched
from tests.hostile.mutations import DEEP
from tests.models import CONFIGS


@pytest.fixture(scope="module")
def model(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration; each test writes the weights."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "open_clip_config.json").write_bytes((teacher / "open_clip_config.json").read_bytes())
    return folder


def refused(folder: Path) -> str:
    """Return the one line with which a model folder is refused."""
    with bounded(), watched(), pytest.raises(UsageError, match="cannot load") as error:
        load_model(str(folder))
    assert is_one_line(str(error.value))
    return str(error.value)


@pytest.mark.parametrize(
    "weights", [{}, [], 3, {"state_dict": {}}, {"a": 3}, {"text_projection": torch.ones(1).expand(1 << 40)}]
)
def test_invalid_weights(weights: Any, model: Path) -> None:
    torch.save(weights, model / "open_clip_pytorch_model.bin")
    assert "cannot load" in refused(model)


def test_compressed_weights_are_not_unpacked(model: Path) -> None:
    path = model / "open_clip_pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"")
        archive.writestr("archive/data/0", bytes(1 << 20))
    assert "its entries are compressed" in refused(model)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[]",
        "{}",
        DEEP,
        json.dumps({"model_cfg": 3}),
        json.dumps({"model_cfg": {"embed_dim": 48}}),
        json.dumps({"model_cfg": {**CONFIGS["gelu"], "embed_dim": "x"}}),
        json.dumps({"model_cfg": {**CONFIGS["gelu"], "embed_dim": 10**12}}),
        json.dumps({"model_cfg": {**CONFIGS["gelu"], "text_cfg": {"width": 0}}}),
        json.dumps({"model_cfg": {**CONFIGS["gelu"], "vision_cfg": {"image_size": 32, "patch_size": 0}}}),
        json.dumps({"model_cfg": {**CONFIGS["gelu"], "vision_cfg": []}}),
    ],
)
def test_an_invalid_configuration(config: str, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(config)
    assert "cannot load" in refused(tmp_path)
