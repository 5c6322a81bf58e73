"""Weights files in the forms that people have, and what is said of those that do not fit."""

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from teacher_cache.model_names import canonical_pretrained
from teacher_cache.teacher.weights_file import load_weights, read_weights, weights_in
from tests.models import CONFIGS, loaded
from tests.teacher_cache.teacher.archives import write_openai

STATE = loaded("gelu").model.state_dict()


def empty(config: str = "gelu") -> nn.Module:
    """Return a model with zeros."""
    model = copy.deepcopy(loaded(config).model)
    for parameter in model.parameters():
        parameter.data.zero_()
    return model


def load(path: Path, config: str = "gelu", notes: list[str] | None = None) -> nn.Module:
    model = empty(config)
    note = load_weights(model, path, read_weights(path))
    (notes if notes is not None else []).append(note)
    return model


def prefixed(prefix: str, state: dict[str, Any] = STATE) -> dict[str, Any]:
    return {prefix + name: x for name, x in state.items()}


def trained(**more: Any) -> dict[str, Any]:
    """Return what a training loop stores beside the weights."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    return {
        "epoch": 3,
        "best": np.float64(0.5),
        "history": np.arange(3),
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "optimizer": optimizer.state_dict(),
        "schedule": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3),
        **more,
    }


COMPILED = {
    name.replace("visual.", "visual._orig_mod.").replace(
        "resblocks.0.", "resblocks.0._fsdp_wrapped_module."
    ): x
    for name, x in STATE.items()
}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": prefixed("module.")},
        {"state_dict": prefixed("model.")},
        {"model": prefixed("_orig_mod.")},
        {"model_state_dict": prefixed("module._orig_mod.")},
        {"module": prefixed("model.clip_model.")},
        prefixed("_orig_mod.module."),
        COMPILED,
        {"model": prefixed("model.", COMPILED)},
        trained(state_dict=prefixed("module.")),
        trained(model=STATE, model_ema=prefixed("module.")),
        {"epoch": 3, **STATE},
        {name: x.half() for name, x in STATE.items()},
        {name if name.startswith(("visual.", "logit_")) else f"text.{name}": x for name, x in STATE.items()},
        {**STATE, "input_resolution": torch.tensor(32), "context_length": torch.tensor(77)},
    ],
)
def test_a_state_dict_of_the_model_is_loaded(content: dict, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    found = load(tmp_path / "weights.pt").state_dict()
    assert all(torch.allclose(found[name], x, atol=2e-3, rtol=1e-3) for name, x in STATE.items())


def test_the_older_format_and_a_blob_without_a_name(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(prefixed("model."), tmp_path / "5f0e3a")
    for name in ("old.pt", "5f0e3a"):
        assert torch.equal(load(tmp_path / name).state_dict()["text_projection"], STATE["text_projection"])


def test_a_link_of_the_hubs_cache_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    save_file(STATE, tmp_path / "blobs" / "5f0e3a")
    link = tmp_path / "snapshots" / "open_clip_model.safetensors"
    link.symlink_to("../blobs/5f0e3a")
    assert canonical_pretrained(str(link)) == str(link)
    assert torch.equal(load(link).state_dict()["text_projection"], STATE["text_projection"])


def test_an_archive_of_openai_is_loaded(tmp_path: Path) -> None:
    path = write_openai(tmp_path / "clip.pt", "gelu")
    found = load(path).state_dict()
    assert all(torch.equal(found[name], x.half().float()) for name, x in STATE.items())


def test_open_clip_still_converts_and_resizes(tmp_path: Path) -> None:
    smaller = open_clip.CLIP(
        **CONFIGS["gelu"] | {"vision_cfg": CONFIGS["gelu"]["vision_cfg"] | {"image_size": 24}}
    )
    torch.save(trained(state_dict=smaller.state_dict()), tmp_path / "smaller.pt")
    notes: list[str] = []
    found = load(tmp_path / "smaller.pt", notes=notes).state_dict()["visual.positional_embedding"]
    assert notes == [
        "smaller.pt is for another size of images or texts; open_clip resized visual.positional_embedding "
        "[10, 64] to [17, 64]"
    ]
    assert found.shape == STATE["visual.positional_embedding"].shape
    assert torch.equal(found[0], smaller.visual.positional_embedding[0])

    layout = loaded("causal-last").model.state_dict()  # a CustomTextCLIP, stored as a CLIP
    older = {name.removeprefix("text."): x for name, x in layout.items()}
    torch.save(older, tmp_path / "older.pt")
    found = load(tmp_path / "older.pt", "causal-last").state_dict()
    assert all(torch.equal(found[name], x) for name, x in layout.items())


TRANSFORMERS = {f"vision_model.encoder.layers.{n}.mlp.fc1.weight": torch.ones(2) for n in range(5)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {"weight": torch.ones(2), "bias": torch.ones(2)},
            rf"expected {len(STATE)} tensors, found 2; missing: \S+, \S+, \S+, \.\.\. \(\d+ in all\); "
            "unexpected: weight, bias; give the model",
        ),
        (
            {"state_dict": prefixed("model.") | {"loss.scale": torch.ones(1)}},
            rf"expected {len(STATE)} tensors, found {len(STATE) + 1}; unexpected: loss.scale; give",
        ),
        (
            {"state_dict": {k: x for k, x in prefixed("model.").items() if "ln_final" not in k}},
            rf"found {len(STATE) - 2}; missing: ln_final.weight, ln_final.bias; give",
        ),
        (TRANSFORMERS, r"layout of the transformers library; take open_clip's file"),
        (
            prefixed("model.") | {"model.text_projection": torch.ones(3, 4)},
            r"another size: expected text_projection \[64, 48\], found \[3, 4\]",
        ),
        ({"model": STATE, "module": prefixed("module.")}, r"several state dicts that fit: model, module"),
        (
            {"model": 3, "state_dict_ema": STATE},
            r"no tensors by name, .* under state_dict, model, .* \(keys found: model, state_dict_ema\); save",
        ),
        ([1, 2], r"no tensors by name, .*\(keys found: none\)"),
        (
            {name: x.to(torch.int8) for name, x in STATE.items()},
            r"integers in place of .* torch.int8, .* in all\)\); quantised weights cannot be loaded",
        ),
        (
            STATE | {"text_projection": torch.full((64, 48), torch.nan)},
            "numbers that are not finite in text_projection: the file is damaged, or its training diverged",
        ),
        (
            {f"student.{n}": x for n, x in STATE.items()} | {f"teacher.{n}": x for n, x in STATE.items()},
            rf"found {2 * len(STATE)}; unexpected: \S+, \S+, \S+, \.\.\. \({len(STATE)} in all\)",
        ),
    ],
)
def test_other_weights_are_refused_with_their_names(content: dict, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=reason) as refused:
        load(tmp_path / "weights.pt")
    assert "\n" not in str(refused.value)


def test_weights_of_another_model_are_refused_where_open_clip_asserts(tmp_path: Path) -> None:
    wider = STATE | {"positional_embedding": torch.ones(77, 80), "visual.extra": torch.ones(1)}
    torch.save(wider, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"unexpected: visual\.extra; give the model they belong to"):
        load(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n",
            "of Git LFS, .* git lfs pull",
        ),
    ],
)
def test_a_file_without_content_is_named(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_weights(tmp_path / name)


def test_a_page_saved_as_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_text("<!DOCTYPE html><html>")
    with pytest.raises(ValueError, match="cannot be read as safetensors or as a checkpoint"):
        read_weights(tmp_path / "weights.pt")


def test_a_torchscript_file_of_another_model_is_refused_with_its_names(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"found 2; missing: .*; unexpected: weight, bias"):
        load(tmp_path / "weights.pt")


def test_the_weights_of_a_folder_are_those_that_open_clip_takes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder has no weights"):
        weights_in(tmp_path)
    for name in ("b.bin", "a.pth", "pytorch_model.bin", "z.safetensors", "open_clip_model.safetensors"):
        (tmp_path / name).touch()
        assert str(weights_in(tmp_path)) == open_clip.factory._find_checkpoint_in_dir(tmp_path)
