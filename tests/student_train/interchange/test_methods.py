"""Each method that can be imported against its authors' forward pass; others are refused by name."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from student_train.interchange.methods import IVLP, published_prompts
from student_train.interchange.published import import_prompts
from student_train.interchange.settings import ImportSettings
from student_train.model.stored import read_student
from student_train.model.student import load_student
from teacher_cache.errors import UsageError
from tests.models import write_model
from tests.student_train.interchange.published_files import (
    BLOCKS,
    NAMES,
    TEXT_WIDTH,
    VISION_WIDTH,
    Learned,
    class_buffers,
    dassl_checkpoint,
    frozen_state,
    image_features,
    ivlp_state,
    learned,
    maple_state,
    open_model,
    text_features,
)

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("published") / "model", "wide-vision")


@pytest.fixture(scope="module")
def opened(folder: Path) -> tuple[Any, Any]:
    return open_model(folder)


def assert_equals(folder: Path, out: Path, state: State, opened: tuple[Any, Any], found: Learned) -> None:
    """Import a state and compare both towers with the authors' forward pass to 1e-5."""
    path = dassl_checkpoint(out.with_suffix(".tar-5"), state)
    import_prompts(ImportSettings(out=out, model=str(folder)), path)
    student = load_student(out)
    model, tokenizer = opened
    plain = text_features(model, tokenizer, found)
    assert plain.std(dim=0).mean() > 0.05, "features that hardly differ would prove nothing"
    torch.testing.assert_close(student.class_features(NAMES), plain, atol=1e-5, rtol=0)
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    expected = image_features(model, pixels, found)
    with torch.no_grad():
        features = student.encode_image(pixels)
    torch.testing.assert_close(features, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def record_of(out: Path) -> tuple[str, int, int]:
    imported = read_student(out).record.imported
    assert imported is not None
    return imported.method, imported.used, imported.redundant


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("text", "vision"),
    [
        ((1, 4), (1, 4)),
        ((2, 4), (2, 4)),
        ((3, 4), (3, 4)),
        ((3, 4), (1, 2)),
        ((1, 2), (3, 5)),
        ((2, 4), (0, 0)),
    ],
)
def test_ivlp(
    folder: Path,
    opened: tuple[Any, Any],
    tmp_path: Path,
    text: tuple[int, int],
    vision: tuple[int, int],
    half: bool,
) -> None:
    """Depths of one block, some and all, lengths of their own, also in text only."""
    found = learned(text, vision, words="of a" if text[1] == 2 else "")
    if half:
        found = Learned(
            *[[x.half().float() for x in tower] for tower in (found.text, found.vision)], found.words
        )
    state = ivlp_state(*opened, found)
    if half:
        state = {name: tensor.half() for name, tensor in state.items()}
    assert_equals(folder, tmp_path / "ivlp", state, opened, found)
    assert record_of(tmp_path / "ivlp")[:2] == (IVLP, text[0] + vision[0])


def test_promptsrc(folder: Path, opened: tuple[Any, Any], tmp_path: Path) -> None:
    """Its file also has a second image encoder, and averages in float16 of all weights."""
    found = learned((3, 4), (2, 4))
    state = ivlp_state(*opened, found)
    copies = frozen_state(opened[0], ("image_encoder",))
    zero_shot = {
        name.replace("image_encoder", "prompt_learner.ZS_image_encoder"): tensor
        for name, tensor in copies.items()
        if name != "logit_scale"
    }
    state |= {n: x if "VPT" in n or "ctx" in n else averaged(x) for n, x in (state | zero_shot).items()}
    assert_equals(folder, tmp_path / "src", state, opened, found)
    method, used, redundant = record_of(tmp_path / "src")
    assert (method, used, used + redundant) == ("PromptSRC", 5, len(state))


def averaged(weights: Tensor) -> Tensor:
    """A Gaussian mean over 20 epochs in float16, as PromptSRC's trainer."""
    shares = torch.exp(-0.5 * (torch.arange(1, 21) - 15.0) ** 2)
    total = torch.zeros_like(weights.half())
    for share in (shares / shares.sum()).tolist():
        total += weights.half() * share
    return total


@pytest.mark.parametrize("depth", [1, 2, BLOCKS])
def test_vpt(folder: Path, opened: tuple[Any, Any], tmp_path: Path, depth: int) -> None:
    """Vision prompts only; the class texts are 'a photo of a NAME.'."""
    found = learned((0, 0), (depth, 8))
    assert_equals(folder, tmp_path / "vpt", ivlp_state(*opened, found), opened, found)
    assert record_of(tmp_path / "vpt")[:2] == ("VPT", depth)
    assert load_student(tmp_path / "vpt").settings.towers == "vision"


@pytest.mark.parametrize(
    ("depth", "length", "words"), [(1, 4, ""), (2, 2, "of a"), (BLOCKS, 3, "a"), (2, 6, "")]
)
def test_maple(
    folder: Path, opened: tuple[Any, Any], tmp_path: Path, depth: int, length: int, words: str
) -> None:
    """With the published two prompts, 'of a' of CTX_INIT stands between them and the class name."""
    state, found = maple_state(*opened, learned((depth, length), (0, 0), words))
    assert_equals(folder, tmp_path / "maple", state, opened, found)
    assert record_of(tmp_path / "maple")[:2] == ("MaPLe", depth + 2 * depth)
    assert load_student(tmp_path / "maple").settings.fixed_words == words


def coop_like(opened: tuple[Any, Any], method: str, found: Learned) -> State:
    """The state of a prompt learner, without the model."""
    buffers = class_buffers(*opened, len(found.text[0]))
    state = {"ctx": found.text[0], **buffers}
    if method == "POMP":
        return {
            "ctx": found.text[0],
            **{f"{p}_{n}": x for p in ("train", "test") for n, x in buffers.items()},
        }
    if method == "KgCoOp":  # parameters that its forward pass does not use
        more = {"bias_vectors": torch.ones(1, 64), "meta_net.linear1.weight": torch.ones(64, 64)}
        return {**state, **more, "meta_net.linear1.bias": torch.ones(64)}
    return state


@pytest.mark.parametrize(("method", "redundant"), [("CoOp", 2), ("POMP", 4), ("KgCoOp", 5)])
def test_methods_with_a_context_at_the_input(
    folder: Path, opened: tuple[Any, Any], tmp_path: Path, method: str, redundant: int
) -> None:
    found = learned((1, 4), (0, 0))
    assert_equals(folder, tmp_path / method, coop_like(opened, method, found), opened, found)
    assert record_of(tmp_path / method) == (method, 1, redundant)


CONTEXT = {"ctx": torch.zeros(4, TEXT_WIDTH)}
LAYER = {"weight": torch.ones(8, 48), "bias": torch.ones(8)}


@pytest.mark.parametrize(
    ("method", "state"),
    {
        "CoCoOp": {
            "meta_net.linear1.weight": torch.ones(3, 48),
            "meta_net.linear2.weight": torch.ones(TEXT_WIDTH, 3),
        },
        "TCP": {
            "meta_net.linear1.weight": torch.ones(3, 48),
            "meta_net.linear2.weight": torch.ones(4 * TEXT_WIDTH, 3),
        },
        "CoPrompt": {"adapter_image.fc.0.weight": torch.ones(3, 48), "proj.weight": torch.ones(3, 48)},
        "PromptKD": {
            "VPT_image_trans.conv1.0.weight": torch.ones(3, 48),
            "token_prefix2": torch.ones(1, 1, 4),
        },
        "DePT": {"film_lp_img.gain": torch.ones(48)},
        "TaskRes": {"text_feature_residuals": torch.ones(4, 48), "base_text_features": torch.ones(4, 48)},
        "RPO": {"text_prompt": torch.ones(24, TEXT_WIDTH), "img_prompt": torch.ones(24, VISION_WIDTH)},
        "CLIP-Adapter": {"fc.0.weight": torch.ones(12, 48), "fc.2.weight": torch.ones(48, 12)},
    }.items(),
)
def test_methods_that_a_student_cannot_express_are_refused_by_name(method: str, state: State) -> None:
    with pytest.raises(
        UsageError, match=rf"is a checkpoint of {method} \({next(iter(state))}.*cannot be import"
    ):
        published_prompts(Path("file"), {**CONTEXT, **state})


def test_an_unknown_tensor_is_refused_with_the_method(opened: tuple[Any, Any]) -> None:
    """Whatever it is, it may be part of what was learned."""
    ivlp = {
        n.removeprefix("prompt_learner."): x for n, x in ivlp_state(*opened, learned((2, 4), (2, 4))).items()
    }
    maple, _ = maple_state(*opened, learned((2, 4), (0, 0)))
    maple = {n.removeprefix("prompt_learner."): x for n, x in maple.items()}
    deep = "image_encoder.transformer.resblocks.1.VPT_shallow"
    cases: list[tuple[str, State, list[str]]] = [
        ("CoOp", dict(CONTEXT), ["gate"]),
        ("CoOp", dict(CONTEXT), ["a.b", "c.d", "e.f", "g.h"]),
        (IVLP, ivlp, ["text_encoder.transformer.resblocks.0.VPT_shallow"]),
        (IVLP, ivlp, ["image_encoder.VPT_2"]),
        ("MaPLe", maple, [deep]),
        ("MaPLe", maple, ["compound_prompts_text.01"]),
    ]
    for method, state, names in cases:
        shown = re.escape(", ".join(names[:3])) + (r", \.\.\. \(4 in all\)" if len(names) == 4 else ";")
        with pytest.raises(UsageError, match=f"of {method}, but also has {shown}"):
            published_prompts(Path("file"), {**state, **{name: torch.ones(4, 64) for name in names}})


def test_a_missing_tensor_is_refused_with_its_name(opened: tuple[Any, Any]) -> None:
    ivlp = {
        n.removeprefix("prompt_learner."): x for n, x in ivlp_state(*opened, learned((3, 4), (3, 4))).items()
    }
    maple, _ = maple_state(*opened, learned((3, 4), (0, 0)))
    maple = {n.removeprefix("prompt_learner."): x for n, x in maple.items()}
    for method, state, name in [
        ("MaPLe", maple, "ctx"),
        ("MaPLe", maple, "proj.bias"),
        ("MaPLe", maple, "compound_prompts_text.0"),
        ("MaPLe", maple, "compound_prompt_projections.1.weight"),
        (IVLP, ivlp, "ctx"),
        (IVLP, ivlp, "image_encoder.VPT"),
        (IVLP, ivlp, "text_encoder.transformer.resblocks.1.VPT_shallow"),
    ]:
        with pytest.raises(UsageError, match=f"of {method}, but lacks {re.escape(name)}: "):
            published_prompts(Path("file"), {n: x for n, x in state.items() if n != name})


def test_prompts_of_other_shapes_are_refused(opened: tuple[Any, Any]) -> None:
    ivlp = {
        n.removeprefix("prompt_learner."): x for n, x in ivlp_state(*opened, learned((2, 4), (2, 4))).items()
    }
    maple, _ = maple_state(*opened, learned((2, 4), (0, 0)))
    maple = {n.removeprefix("prompt_learner."): x for n, x in maple.items()}
    deep = "text_encoder.transformer.resblocks.1.VPT_shallow"
    for state, name, tensor, message in [
        (ivlp, deep, torch.zeros(3, 64), r"prompts of several shapes in one tower: \[4, 64\], \[3, 64\]"),
        (ivlp, deep, torch.zeros(64), rf"has {deep} of shape \[64\]; expected \[n, width\]"),
        (ivlp, deep, torch.full((4, 64), torch.inf), rf"has {deep} with numbers that are not finite"),
        (ivlp, "image_encoder.VPT", torch.zeros(4, 96, dtype=torch.int32), "of floating point numbers"),
        (ivlp, "ctx", torch.zeros(5000, 64), r"of shape \[5000, 64\]; at most 4096"),
        (maple, "proj.weight", torch.zeros(96, 63), r"proj.weight of shape \[96, 63\]; expected \[96, 64\]"),
        (maple, "proj.bias", torch.zeros(96, 1), r"proj.bias of shape \[96, 1\]; expected \[width\]"),
        (
            maple,
            "proj.weight",
            torch.zeros(1).expand(1 << 20, 1 << 20),
            "has proj.weight that is not a dense CPU tensor",
        ),
    ]:
        with pytest.raises(UsageError, match=message):
            published_prompts(Path("file"), {**state, name: tensor})
