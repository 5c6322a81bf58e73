"""What a published checkpoint stores of its frozen model, compared with the model given."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from student_train.interchange import published
from student_train.interchange.frozen_weights import (
    check_frozen_weights,
    other_class_tokens,
    words_before_names,
)
from student_train.interchange.published import import_prompts
from student_train.interchange.settings import ImportSettings
from student_train.model.student import load_student
from teacher_cache.errors import UsageError
from tests.models import loaded, write_model
from tests.student_train.interchange.published_files import (
    class_buffers,
    dassl_checkpoint,
    frozen_state,
    ivlp_state,
    learned,
    open_model,
)

BASE = loaded("wide-vision")
OWN = frozen_state(BASE.model)


def changed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {**OWN, name: tensor}


def test_weights_of_the_model_are_accepted() -> None:
    check_frozen_weights(Path("file"), BASE, OWN)
    check_frozen_weights(Path("file"), BASE, {n: 1.005 * x for n, x in OWN.items()})
    check_frozen_weights(Path("file"), BASE, {})


def test_weights_of_a_model_with_its_own_text_module_are_accepted() -> None:
    custom = loaded("custom")
    state = custom.model.state_dict()
    frozen = {
        f"text_encoder.{name.removeprefix('text.')}": x
        for name, x in state.items()
        if name.startswith("text.")
    }
    check_frozen_weights(Path("file"), custom, frozen)


NAME = "image_encoder.conv1.weight"


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (
            frozen_state(loaded("wide-vision", seed=1).model),
            r"of 85 tensors \d+ differ \(logit_scale, .* in all",
        ),
        (frozen_state(loaded("gelu").model), r"\d+ differ \("),
        (
            changed(NAME, 1.1 * OWN[NAME]),
            rf"of 85 tensors 1 differ \({NAME}\); the prompts were trained on ano",
        ),
        (changed(NAME, OWN[NAME] * torch.nan), rf"1 differ \({NAME}\)"),
        (changed(NAME, torch.zeros(()).expand(OWN[NAME].shape)), rf"1 differ \({NAME}\)"),
        (changed("text_encoder.gate", torch.ones(3)), r"1 are unknown \(text_encoder.gate\)"),
        (changed("image_encoder.transformer.resblocks.3.ln_1.bias", torch.ones(96)), "1 are unknown"),
    ],
    ids=["another seed", "another shape", "scaled", "nan", "a view", "unknown", "deeper"],
)
def test_other_weights_are_refused(frozen: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=f"other weights of the frozen model than .*{message}"):
        check_frozen_weights(Path("file"), BASE, frozen)


def test_class_texts_of_another_model_are_found() -> None:
    own = class_buffers(BASE.model, BASE.tokenizer, 4)
    other = class_buffers(loaded("wide-vision", seed=1).model, BASE.tokenizer, 4)
    assert other_class_tokens(BASE, {name: x.half() for name, x in own.items()}) == []
    assert other_class_tokens(BASE, other) == ["token_prefix", "token_suffix"]
    assert other_class_tokens(BASE, {**own, "test_token_suffix": other["token_suffix"]}) == [
        "test_token_suffix"
    ]
    for odd in (torch.ones(()), torch.ones(4, 1, 9), torch.ones(0, 1, 64), torch.ones(1).expand(9, 9, 64)):
        assert other_class_tokens(BASE, {"token_prefix": odd}) == ["token_prefix"]


def test_words_before_the_names_are_those_that_all_texts_begin_with() -> None:
    of_a = BASE.tokenizer(["of a"])[0, 1:3].tolist()
    found = class_buffers(BASE.model, BASE.tokenizer, 2, "of a")
    assert words_before_names(BASE, {n: x.half() for n, x in found.items()}) == of_a
    assert words_before_names(BASE, class_buffers(BASE.model, BASE.tokenizer, 2)) == []
    assert words_before_names(BASE, {}) is None
    other = class_buffers(loaded("wide-vision", seed=1).model, BASE.tokenizer, 2, "of a")
    assert words_before_names(BASE, other) is None


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "wide-vision")


def imported(model: Path, out: Path, state: dict[str, Any], words: str | None = None) -> str:
    """Import a state and return the words between its prompts and the names."""
    path = dassl_checkpoint(out.with_suffix(".tar"), state)
    import_prompts(ImportSettings(out=out, model=str(model), fixed_words=words), path)
    return load_student(out).settings.fixed_words


def test_words_that_the_file_leaves_open_have_to_be_given(model: Path, tmp_path: Path) -> None:
    opened = open_model(model)
    short = ivlp_state(*opened, learned((2, 2), (0, 0), "of a"))
    del short["prompt_learner.token_suffix"]
    with pytest.raises(
        UsageError, match=r"2 prompts of IVLP or PromptSRC and no token_suffix, .* give --fixed-words 'of a'"
    ):
        imported(model, tmp_path / "open", short)
    assert imported(model, tmp_path / "of a", short, "of a") == "of a"
    buffers = class_buffers(loaded("wide-vision", seed=1).model, BASE.tokenizer, 2, "of a")
    other = short | {f"prompt_learner.{name}": x for name, x in buffers.items()}
    with pytest.raises(UsageError, match=r"2 prompts of .* and a token_suffix of another model, so"):
        imported(model, tmp_path / "other texts", other)
    assert imported(model, tmp_path / "given", other, "of a") == "of a"
    assert imported(model, tmp_path / "none", short, "") == ""
    common = ivlp_state(*opened, learned((2, 4), (0, 0), "satellite view"))
    with pytest.raises(
        UsageError, match=r"all 4 class texts .* begin with .* 'satellite view'; .*--fixed-words ''"
    ):
        imported(model, tmp_path / "common", common)
    assert imported(model, tmp_path / "five", ivlp_state(*opened, learned((2, 5), (0, 0)))) == ""
    long = ivlp_state(*opened, learned((1, 65), (0, 0)))
    with pytest.raises(UsageError, match=r"leaves no room for a name; .* at most 64 with --fixed-words"):
        imported(model, tmp_path / "long", long, "one two three four five six seven eight nine ten")


def test_a_warning_names_another_models_class_texts(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefix and suffix are often taken away or replaced; the prompts are still imported."""
    context = learned((1, 4), (0, 0)).text[0]
    own = class_buffers(*open_model(model), 4)
    other = class_buffers(loaded("gelu", seed=2).model, BASE.tokenizer, 4)
    for name, buffers in (("own", own), ("without", {}), ("other", other)):
        imported(model, tmp_path / name, {"ctx": context, **buffers})
    (record,) = [record for record in caplog.records if record.name == published.__name__]
    assert (
        "other.tar: its embeddings of class texts (token_prefix, token_suffix) are not those"
        in record.message
    )
    assert "model: the prompts were probably trained on another model" in record.message
