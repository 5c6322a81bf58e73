"""Checkpoints in the layout of CoOp and POMP, compared with the forward pass that CoOp publishes."""

import hashlib
import pickle
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from pipeline.cli import main
from student_train.interchange.huggingface import export_huggingface
from student_train.interchange.published import import_prompts, import_summary
from student_train.interchange.settings import HuggingFaceSettings, ImportSettings
from student_train.model.settings import PromptSettings
from student_train.model.stored import ImportRecord, read_student
from student_train.model.student import load_student
from teacher_cache.errors import UsageError
from tests.models import write_model

NAMES = ["cat", "grand piano", 'n\'t "quoted", name', "hündchen"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "quickgelu")


def checkpoint(path: Path, context: torch.Tensor, **others: Any) -> Path:
    """Write `prompt_learner` as Dassl's trainer does: the context, and buffers of the class names."""
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
def test_an_imported_student_equals_its_authors_forward_pass(
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
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "out" / "student.safetensors")
    assert "CoOp: text depth 1, length 4; 1 tensor used, 2 redundant\n" in printed.err
    assert "already has a student" in printed.err


def test_the_summary_names_each_tower() -> None:
    record = ImportRecord(method="MaPLe", file="f", file_digest="d", used=9, redundant=3)
    settings = PromptSettings(prompt_depth=3, prompt_length=2, fixed_words="of a")
    both = "text depth 3, length 2; vision depth 3, length 2"
    words = "'of a' before each class name"
    assert import_summary(record, settings) == f"MaPLe: {both}; {words}; 9 tensors used, 3 redundant"
    other = PromptSettings(prompt_depth=3, vision_prompt_depth=1, vision_prompt_length=8)
    assert "text depth 3, length 4; vision depth 1, length 8; 9" in import_summary(record, other)
    vision = PromptSettings(towers="vision", prompt_depth=2)
    assert import_summary(record, vision).startswith("MaPLe: vision depth 2, length 4; 9")


def test_a_student_keeps_the_record_of_its_import(model: Path, tmp_path: Path) -> None:
    """In its file, in Hugging Face's layout and in the model card; a run that starts from it has its own."""
    path = checkpoint(tmp_path / "model.pth.tar-5", torch.zeros(4, 64))
    import_prompts(ImportSettings(out=tmp_path / "run", model=str(model)), path)
    digest = f"blake2b:{hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}"
    record = ImportRecord(method="CoOp", file=path.name, file_digest=digest, used=1, redundant=2)
    student = load_student(tmp_path / "run")
    student.save_pretrained(tmp_path / "saved")
    export_huggingface(HuggingFaceSettings(student=tmp_path / "run", out=tmp_path / "exported"))
    for folder in ("run", "saved", "exported"):
        assert read_student(tmp_path / folder).record.imported == record
    for folder in ("saved", "exported"):
        card = (tmp_path / folder / "README.md").read_text().replace("\\", "")
        assert f"imported from model.pth.tar-5, a checkpoint of CoOp with the digest {digest}." in card
        assert str(tmp_path) not in (tmp_path / folder / "config.json").read_text().replace(str(model), "")


def test_errors_name_what_cannot_be_imported(model: Path, tmp_path: Path) -> None:
    asked = ImportSettings(out=tmp_path / "out", model=str(model))
    (tmp_path / "text").write_text("nothing")
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "empty").write_text("")
    (tmp_path / "cut").write_bytes(checkpoint(tmp_path / "whole", torch.zeros(4, 64)).read_bytes()[:-700])
    torch.save({"state_dict": {"visual.proj": torch.zeros(2)}}, tmp_path / "other")
    (tmp_path / "code").write_bytes(pickle.dumps({"state_dict": Fraction}, protocol=2))
    cases = {
        tmp_path / "nowhere": r"cannot be read: No such file",
        tmp_path: r"cannot be read: Is a directory",
        tmp_path / "text": r"text cannot be read as a checkpoint of torch.save \(.+\)$",
        tmp_path / "junk": r"junk cannot be read as a checkpoint of torch.save \(.+\)$",
        tmp_path / "empty": r"empty cannot be read as a checkpoint of torch.save \(.+\)$",
        tmp_path / "cut": r"cut cannot be read as a checkpoint of torch.save \(.*zip.*\)$",
        tmp_path / "code": r"code cannot be read without running code that it names \(fractions.Fraction\)",
        tmp_path / "other": r"has no context vectors \(ctx\)",
        checkpoint(
            tmp_path / "csc", torch.zeros(4, 4, 64)
        ): r"of shape \[4, 4, 64\]; expected \[n, width\].*one context for all",
        checkpoint(tmp_path / "none", torch.zeros(0, 64)): r"of shape \[0, 64\]; .* n of at least 1",
        checkpoint(tmp_path / "wide", torch.zeros(4, 512)): r"vectors of width 512, .* width 64",
        checkpoint(tmp_path / "nan", torch.full((4, 64), torch.nan)): r"not finite",
    }
    other = asked.model_copy(update={"model": str(write_model(tmp_path / "siglip", "siglip"))})
    with pytest.raises(
        UsageError, match=r"of CoOp.*, which are those of a text tower like CLIP's; .*siglip has"
    ):
        import_prompts(other, checkpoint(tmp_path / "coop", torch.zeros(4, 64)))
    for path, line in cases.items():
        with pytest.raises(UsageError, match=line) as refused:
            import_prompts(asked, path)
        message = str(refused.value)
        assert not {"\n", "\x1b"} & set(message), path
        assert "weights_only" not in message
    assert not (tmp_path / "out").exists()
