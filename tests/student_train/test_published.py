"""CoOp's and POMP's checkpoints, made here in their layout, against the forward pass that CoOp publishes."""

import pickle
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from pipeline.cli import main
from student_train.published import ImportSettings, import_prompts
from student_train.student import load_student
from teacher_cache.errors import UsageError
from tests.models import write_model

NAMES = ["cat", "grand piano", 'n\'t "quoted", name', "hündchen"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "quickgelu")


def checkpoint(path: Path, context: torch.Tensor, **others: Any) -> Path:
    """As Dassl's trainer writes it for `prompt_learner`: buffers of the class names beside the context."""
    state = {
        "ctx": context,
        "token_prefix": torch.zeros(len(NAMES), 1, context.shape[-1]),
        "token_suffix": torch.zeros(len(NAMES), 76 - context.shape[-2], context.shape[-1]),
    }
    scheduler = {"last_epoch": 5, "base_lrs": [0.002]}
    torch.save(
        {"state_dict": state, "epoch": 5, "optimizer": {"state": {}}, "scheduler": scheduler, **others}, path
    )
    return path


@torch.no_grad()
def as_coop(model: Any, tokenizer: Any, context_nW: torch.Tensor) -> torch.Tensor:
    """CoOp's `PromptLearner` (class token at the end) and `TextEncoder`, on open_clip's model."""
    n = len(context_nW)
    prompts = tokenizer([" ".join(["X"] * n) + f" {name}." for name in NAMES])
    embedded = model.token_embedding(prompts)
    x = torch.cat([embedded[:, :1], context_nW.expand(len(NAMES), -1, -1), embedded[:, 1 + n :]], dim=1)
    x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
    x = model.ln_final(x)
    return x[torch.arange(len(x)), prompts.argmax(-1)] @ model.text_projection


@pytest.mark.parametrize("n", [4, 16])
@pytest.mark.parametrize("half", [False, True])
def test_a_student_of_published_prompts_is_what_its_authors_compute(
    model: Path, tmp_path: Path, n: int, half: bool
) -> None:
    context = 0.05 * torch.randn(n, 64, generator=torch.Generator().manual_seed(n))
    context = context.half() if half else context
    path = checkpoint(tmp_path / "model.pth.tar-5", context)
    out = tmp_path / "coop"
    import_prompts(ImportSettings(out=out, model=str(model)), path)
    student = load_student(out)
    assert (student.settings.prompt_structure, student.settings.prompt_depth) == ("shared", 1)
    plain = open_clip.create_model(f"local-dir:{model}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{model}")
    expected = torch.nn.functional.normalize(as_coop(plain, tokenizer, context.float()), dim=-1)
    torch.testing.assert_close(student.class_features(NAMES), expected, atol=2e-6, rtol=1e-5)


def test_the_command(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "best", torch.zeros(4, 64))
    arguments = ["rpp", "import", str(path), "--model", str(model), "--out", str(tmp_path / "out")]
    for code in (0, 2):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "out" / "student.safetensors")
    assert "holds a student already" in said.err


def test_what_cannot_be_imported_is_named(model: Path, tmp_path: Path) -> None:
    asked = ImportSettings(out=tmp_path / "out", model=str(model))
    (tmp_path / "text").write_text("nothing")
    torch.save({"state_dict": {"visual.proj": torch.zeros(2)}}, tmp_path / "other")
    (tmp_path / "code").write_bytes(pickle.dumps({"state_dict": Path}))
    cases = {
        tmp_path / "nowhere": r"cannot be read: No such file",
        tmp_path / "text": r"not a checkpoint that can be read without running its code",
        tmp_path / "code": r"not a checkpoint that can be read without running its code",
        tmp_path / "other": r"holds no context vectors \(ctx\)",
        checkpoint(tmp_path / "csc", torch.zeros(4, 4, 64)): r"of shape \[4, 4, 64\]; those of one context",
        checkpoint(tmp_path / "wide", torch.zeros(4, 512)): r"vectors of 512 numbers, .* takes 64",
        checkpoint(tmp_path / "nan", torch.full((4, 64), torch.nan)): r"not finite",
    }
    for path, line in cases.items():
        with pytest.raises(UsageError, match=line):
            import_prompts(asked, path)
    assert not (tmp_path / "out").exists()
