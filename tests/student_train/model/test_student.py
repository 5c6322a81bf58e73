"""PromptedCLIP as a module: what learns, how names become tokens, how it is stored."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from student_train import load_student
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP, save_student
from student_train.runs.record import STUDENT
from teacher_cache.errors import UsageError
from teacher_cache.teacher.openclip import load_model
from tests.models import loaded, write_model

NAMES = ["cat", "grand piano", "emu"]


def changed(student: PromptedCLIP) -> PromptedCLIP:
    with torch.no_grad():
        for parameter in student.prompts.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return student


def test_only_prompts_learn() -> None:
    student = PromptedCLIP(loaded("gelu"), PromptSettings(prompt_depth=2, prompt_length=3)).train()
    learnable = {name: tuple(p.shape) for name, p in student.named_parameters() if p.requires_grad}
    assert learnable == {f"prompts.{tower}.{s}": (2, 3, 64) for tower in ("text", "vision") for s in "qkv"}
    assert not student.clip.training
    shared = PromptedCLIP(loaded("gelu"), PromptSettings(prompt_structure="shared", towers="text"))
    assert [name for name, p in shared.named_parameters() if p.requires_grad] == ["prompts.text.q"]


def test_random_values_follow_the_seed_and_not_the_other_tower() -> None:
    def vision_prompts(seed: int, towers: str) -> torch.Tensor:
        return PromptedCLIP(loaded("gelu"), PromptSettings(towers=towers), seed).prompts["vision"].k.detach()

    assert torch.equal(vision_prompts(1, "both"), vision_prompts(1, "vision"))
    assert not torch.equal(vision_prompts(1, "both"), vision_prompts(2, "both"))


def test_names_become_tokens_as_in_coop() -> None:
    student = PromptedCLIP(loaded("gelu"), PromptSettings(towers="text"))
    tokenizer = student.base.tokenizer
    assert torch.equal(student.tokenize_names(NAMES), tokenizer([f"{name}." for name in NAMES]))
    without = PromptedCLIP(loaded("gelu"), PromptSettings(towers="vision"))
    expected = tokenizer([f"a photo of a {name}." for name in NAMES])
    assert torch.equal(without.tokenize_names(NAMES), expected)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("cat", r"class names must be a list of texts: \['cat'\], not 'cat'"),
        (["cat", 3], "class names must be texts; 1 of 2 are not, first 3"),
        ([], "expected at least one of class names, found none"),
    ],
)
def test_what_is_not_a_list_of_names_is_refused(names: Any, reason: str) -> None:
    student = PromptedCLIP(loaded("gelu"), PromptSettings(towers="text"))
    for method in (student.class_features, student.tokenize_names):
        with pytest.raises(UsageError, match=reason):
            method(names)


def test_names_and_tokens_are_taken_in_any_form() -> None:
    student = PromptedCLIP(loaded("gelu"), PromptSettings(towers="text"))
    expected = student.class_features(NAMES)
    for names in (tuple(NAMES), np.array(NAMES), iter(NAMES)):
        torch.testing.assert_close(student.class_features(names), expected)
    tokens = student.tokenize_names(NAMES)
    for form in (tokens.int(), tokens.numpy(), tokens.tolist(), tokens.numpy().astype(np.uint16)):
        with torch.no_grad():
            torch.testing.assert_close(student.encode_text(form, normalize=True), expected)
    for wrong in ("cat", NAMES, tokens[0], tokens.float()):
        with pytest.raises(UsageError, match="expected tokens, integers"):
            student.encode_text(wrong)


@pytest.mark.parametrize("words", [70, 71, 72, 75, 90])
def test_a_name_that_is_too_long_keeps_full_stop_and_end(
    words: int, caplog: pytest.LogCaptureFixture
) -> None:
    """77 positions: SOT, 4 prompts, at most 70 tokens of a name, '.', EOT."""
    student = PromptedCLIP(loaded("gelu"), PromptSettings(towers="text"))
    name = " ".join(["cat"] * words)
    tokens = student.tokenize_names([name, "cat"])[0]
    sot, cat, full_stop, eot = student.tokenizer(["cat."])[0, :4].tolist()
    assert tokens.tolist() == [sot, *[cat] * min(words, 70), full_stop, eot, *[0] * (77 - 3 - min(words, 70))]
    assert student.class_features([name]).isfinite().all()
    assert ("1 of 2 class names are too long" in caplog.text) == (words > 70)


def test_forward_is_open_clips() -> None:
    student = PromptedCLIP(loaded("quickgelu"), PromptSettings(prompt_depth=0))
    images, tokens = torch.randn(2, 3, 32, 32), student.tokenizer(NAMES)
    for ours, theirs in zip(student(images, tokens), student.clip(images, tokens), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("structure", ["qkv", "shared"])
@pytest.mark.parametrize("carry", ["replace", "residual"])
@pytest.mark.parametrize("towers", ["both", "text", "vision"])
def test_a_stored_student_comes_back_the_same(
    tmp_path: Path, structure: str, carry: str, towers: str
) -> None:
    base = load_model(str(write_model(tmp_path / "model", "gelu")))
    settings = PromptSettings(
        towers=towers, prompt_structure=structure, carry=carry, prompt_depth=2, prompt_length=6
    )
    student = changed(PromptedCLIP(base, settings, seed=3))
    save_student(student, tmp_path)
    again = load_student(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert again.settings == settings
    assert torch.equal(again.encode_image(images), student.encode_image(images))
    assert torch.equal(again.class_features(NAMES), student.class_features(NAMES))
    assert not list(tmp_path.glob("*.tmp"))
    tensors = load_file(tmp_path / STUDENT)
    stored = {"q"} if structure == "shared" else {"q", "k", "v"}
    stored |= {"start"} if carry == "residual" else set()
    assert {name.split(".")[1] for name in tensors} == stored


@pytest.mark.parametrize("carry", ["replace", "residual"])
@pytest.mark.parametrize(
    ("text", "vision"), [((1, 2), (3, 5)), ((3, 4), (1, 1)), ((2, 3), (0, 3)), ((0, 3), (2, 3))]
)
def test_towers_have_their_own_depth_and_length(
    tmp_path: Path, carry: str, text: tuple[int, int], vision: tuple[int, int]
) -> None:
    """Each tower is that of a student with prompts in this tower only; depth 0 is the frozen tower."""
    base = load_model(str(write_model(tmp_path / "model", "gelu")))
    settings = PromptSettings(
        carry=carry,
        prompt_depth=text[0],
        prompt_length=text[1],
        vision_prompt_depth=vision[0],
        vision_prompt_length=vision[1],
    )
    save_student(changed(PromptedCLIP(base, settings, seed=3)), tmp_path)
    student = load_student(tmp_path)
    assert student.settings == settings
    images = torch.randn(2, 3, 32, 32)
    found = {"text": student.class_features(NAMES), "vision": student.encode_image(images)}
    for tower, (depth, length) in {"text": text, "vision": vision}.items():
        own = PromptSettings(towers=tower, carry=carry, prompt_depth=depth, prompt_length=length)
        alone = PromptedCLIP(base, own)
        with torch.no_grad():
            for name, tensor in alone.prompt_tensors().items():
                tensor.copy_(student.prompt_tensors()[name])
        assert own.has_prompts(tower) == settings.has_prompts(tower) == (tower in student.prompts)
        assert len(alone.prompts) == (depth > 0)
        expected = alone.class_features(NAMES) if tower == "text" else alone.encode_image(images)
        assert torch.equal(found[tower], expected)


def test_fixed_words_stand_between_prompts_and_name() -> None:
    base = loaded("gelu")
    student = changed(PromptedCLIP(base, PromptSettings(towers="text", prompt_length=2, fixed_words="of a")))
    plain = PromptedCLIP(base, PromptSettings(towers="text", prompt_length=2))
    plain.load_state_dict(student.state_dict())
    expected = plain.class_features([f"of a {name}" for name in NAMES])
    assert torch.equal(student.class_features(NAMES), expected)
    assert not torch.allclose(student.class_features(NAMES), plain.class_features(NAMES), atol=1e-3)
    tokens = student.tokenizer([f"a photo of a {name}." for name in NAMES])
    assert torch.equal(student.encode_text(tokens, normalize=True), expected)


class TestWrongStudents:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        base = load_model(str(write_model(tmp_path / "model", "gelu")))
        save_student(PromptedCLIP(base, PromptSettings(towers="text", prompt_depth=1)), tmp_path)
        return tmp_path

    def test_other_weights_are_refused(self, run: Path) -> None:
        write_model(run / "model", "gelu", seed=9)
        with pytest.raises(UsageError, match=r"trained on weights blake2b:\w+, but local-dir:.* has blake2b"):
            load_student(run)

    def test_a_moved_model_is_found_where_it_is_named(self, run: Path) -> None:
        shutil.move(run / "model", run / "elsewhere")
        with pytest.raises(UsageError, match="no model folder"):
            load_student(run)
        assert load_student(run / STUDENT, model=str(run / "elsewhere")).settings.prompt_depth == 1

    def test_no_student(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no student at"):
            load_student(tmp_path)
        with pytest.raises(UsageError, match="no student at"):
            load_student(tmp_path / "nothing")

    def test_an_unfinished_run_says_how_to_resume(self, tmp_path: Path) -> None:
        (tmp_path / "settings.json").write_text("{}")
        with pytest.raises(UsageError, match=r"not finished.*--resume"):
            load_student(tmp_path)

    def test_a_damaged_file(self, run: Path) -> None:
        (run / STUDENT).write_bytes((run / STUDENT).read_bytes()[:100])
        with pytest.raises(UsageError, match="damaged or not a student"):
            load_student(run)

    def test_another_safetensors_file(self, run: Path) -> None:
        save_file({"q": torch.zeros(1)}, run / STUDENT)
        with pytest.raises(UsageError, match="is not a student"):
            load_student(run)

    @pytest.mark.parametrize(
        ("stored", "said"),
        [
            ("rpp-student-2", r"has student format 2; rpp 0\.\S+ reads format 1: install a newer rpp-clip$"),
            ("rpp-student-0", r"is not a student \(format rpp-student-0, not rpp-student-N\)"),
            ("rpp-student-x", "is not a student"),
            ("rpp-cache-1", "is not a student"),
            (None, "is not a student"),
        ],
    )
    def test_a_student_of_another_format(self, run: Path, stored: str | None, said: str) -> None:
        """What else such a file holds does not matter: a newer format may hold anything."""
        save_file({"q": torch.zeros(1)}, run / STUDENT, {"student": json.dumps({"format": stored})})
        with pytest.raises(UsageError, match=said):
            load_student(run)

    def test_tensors_that_do_not_fit_the_settings(self, run: Path) -> None:
        base = load_model(str(run / "model"))
        record = {
            "format": "rpp-student-1",
            "prompts": PromptSettings(towers="text", prompt_depth=2).model_dump(),
            "model": base.name,
            "pretrained": None,
            "weights_digest": base.digest,
        }
        metadata = {"student": json.dumps(record)}
        save_file(load_file(run / STUDENT), run / STUDENT, metadata=metadata)
        with pytest.raises(UsageError, match="does not have the prompts of its own settings"):
            load_student(run)


def test_prompts_without_room_for_a_name_are_refused() -> None:
    with pytest.raises(UsageError, match="leaves no room for a name"):
        PromptedCLIP(loaded("gelu"), PromptSettings(towers="text", prompt_length=75))
