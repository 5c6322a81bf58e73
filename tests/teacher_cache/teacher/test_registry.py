"""Conventions of weights files: never those of other weights; refused where nothing tells them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest

from teacher_cache.conventions import ConventionOptions, Conventions
from teacher_cache.errors import UsageError
from teacher_cache.teacher.registry import (
    UndecidedConventionsError,
    choose_conventions,
    earlier_choice,
    tag_conventions,
)

NOTHING = ConventionOptions()
OPENAI = tag_conventions("ViT-B-32", "openai")


def test_no_file_of_a_tag_gets_conventions_of_another(tmp_path: Path) -> None:
    """Each tag of open_clip: its file under the model's name, alone and in a folder of its repository."""
    refused = []
    for name, tag in open_clip.list_pretrained():
        expected = tag_conventions(name, tag)
        try:
            assert choose_conventions(name, str(tmp_path / "weights.pt"), NOTHING).fields == expected
        except UndecidedConventionsError:
            refused.append(name)
        like = choose_conventions(name, str(tmp_path / "weights.pt"), ConventionOptions(weights_like=tag))
        assert like.fields == expected
        if repository := open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rpartition("/")[0]:
            cached = tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / "1" / "x.bin"
            cloned = tmp_path / repository / "open_clip_model.safetensors"
            for file in (cached, cloned):
                assert choose_conventions(name, str(file), NOTHING).fields == expected, (name, tag)
    assert set(refused) == {
        "ViT-B-32",
        "ViT-B-16",
        "ViT-L-14",
        "ViT-H-14",
        "ViT-H-14-quickgelu",
        "ViT-bigG-14",
    }


def test_conventions_of_a_tag_are_those_that_open_clip_takes() -> None:
    for name, tag in open_clip.list_pretrained():
        expected = open_clip.get_pretrained_cfg(name, tag)
        found = tag_conventions(name, tag)
        assert {key: expected[key] for key in found if key != "quick_gelu"} == {
            key: x for key, x in found.items() if key != "quick_gelu"
        }
        assert found["quick_gelu"] or not expected.get("quick_gelu")


def test_a_refusal_names_the_tags_and_the_options_that_are_needed(tmp_path: Path) -> None:
    file = str(tmp_path / "weights.pt")
    with pytest.raises(UndecidedConventionsError) as refused:
        choose_conventions("ViT-B-32", file, NOTHING)
    assert "(QuickGELU: openai, laion400m_e31, laion400m_e32 and 2 more | GELU: laion2b_e16, " in str(
        refused.value
    )
    assert str(refused.value).endswith(
        "add --weights-like TAG with the tag whose conventions the weights have (rpp-cache build also takes "
        "--quick-gelu or --no-quick-gelu)"
    )
    with pytest.raises(UndecidedConventionsError, match=r"also takes --mean, --std\)") as refused:
        choose_conventions("ViT-L-14", file, ConventionOptions(quick_gelu=False))
    assert "mean 0.5, 0.5, 0.5; std 0.5, 0.5, 0.5: laion2b_s32b_b82k)" in str(refused.value)
    with pytest.raises(UndecidedConventionsError, match=r"also takes --resize-mode\)"):
        choose_conventions("ViT-H-14-quickgelu", file, NOTHING)


def test_only_what_differs_has_to_be_stated(tmp_path: Path) -> None:
    file = str(tmp_path / "weights.pt")
    for quick_gelu in (False, True):
        choice = choose_conventions("ViT-B-32", file, ConventionOptions(quick_gelu=quick_gelu))
        assert choice.fields == {**OPENAI, "quick_gelu": quick_gelu}
        option = "--quick-gelu" if quick_gelu else "--no-quick-gelu"
        assert (
            choice.source
            == f"options {option}; all tags of ViT-B-32: openai, laion400m_e31, laion400m_e32, ..."
        )


def test_stated_conventions_override_those_of_a_tag(tmp_path: Path) -> None:
    given = ConventionOptions(weights_like="laion2b-s32b-B82k", quick_gelu=True, interpolation="bilinear")
    choice = choose_conventions("ViT-L-14", str(tmp_path / "weights.pt"), given)
    inception = tag_conventions("ViT-L-14", "laion2b_s32b_b82k")
    assert choice.fields == {**inception, "quick_gelu": True, "interpolation": "bilinear"}
    assert choice.source == "options --quick-gelu, --interpolation; tag laion2b_s32b_b82k (--weights-like)"


@pytest.mark.parametrize(
    ("name", "pretrained", "like", "reason"),
    [
        ("ViT-B-32", "w.pt", "opanai", r"'opanai' is not a tag of 'ViT-B-32' \(tags: openai, "),
        ("ViT-S-32-alt", "w.pt", "openai", r"not a tag of 'ViT-S-32-alt' \(tags: none; state --quick-gelu, "),
        ("ViT-B-32", "laion2b_e16", "openai", "is for a weights file; 'laion2b_e16' is a tag"),
        ("local-dir:/x", None, "openai", "is for a weights file; local-dir:/x has its own configuration"),
    ],
)
def test_weights_like_names_a_tag_of_the_model(
    name: str, pretrained: str | None, like: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        choose_conventions(name, pretrained, ConventionOptions(weights_like=like))


def test_a_file_in_the_form_of_openai_is_recognised(tmp_path: Path) -> None:
    choice = choose_conventions("ViT-B-32", str(tmp_path / "ViT-B-32.pt"), NOTHING, openai=True)
    assert choice.fields == OPENAI
    assert choice.source == "tag openai (the file is in OpenAI's form)"


@pytest.mark.parametrize("digits", [64, 8])
def test_a_file_of_a_release_is_recognised_by_its_digest(
    digits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "renamed.pt"
    file.write_bytes(b"weights")
    start = hashlib.sha256(b"weights").hexdigest()[:digits]
    place = f"https://x/{start}/RN.pt" if digits == 64 else f"https://x/v0.2-weights/vit-b-{start}.pt"
    known = open_clip.get_pretrained_url
    monkeypatch.setattr(
        open_clip, "get_pretrained_url", lambda name, tag: place if tag == "laion2b_e16" else known(name, tag)
    )
    choice = choose_conventions("ViT-B-32", str(file), NOTHING)
    assert choice.source.endswith("; tag laion2b_e16 (the file has its SHA-256)")
    assert choice.fields["quick_gelu"] is False
    file.write_bytes(b"other")
    with pytest.raises(UndecidedConventionsError):
        choose_conventions("ViT-B-32", str(file), NOTHING)


def write_config(folder: Path, **preprocess: Any) -> None:
    config = open_clip.get_model_config("ViT-B-32") | {"quick_gelu": True}
    record = {"model_cfg": config} | ({"preprocess_cfg": preprocess} if preprocess else {})
    (folder / "open_clip_config.json").write_text(json.dumps(record))


def test_a_configuration_beside_the_file_tells(tmp_path: Path) -> None:
    file = str(tmp_path / "open_clip_pytorch_model.bin")
    write_config(tmp_path, mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5], interpolation="bilinear")
    found = choose_conventions("ViT-B-32", file, NOTHING)
    assert found.source == "open_clip_config.json beside the file"
    assert found.fields == {
        "quick_gelu": True,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
        "resize_mode": "shortest",
    }
    write_config(tmp_path)  # no preprocessing: all tags have the same
    assert choose_conventions("ViT-B-32", file, NOTHING).fields == OPENAI
    for other in ("ViT-B-16", "ViT-L-14"):  # the configuration is not that of the model
        with pytest.raises(UndecidedConventionsError):
            choose_conventions(other, file, NOTHING)
    for damaged in ("{", "[]", '{"model_cfg": 3}'):
        (tmp_path / "open_clip_config.json").write_text(damaged)
        with pytest.raises(UndecidedConventionsError):
            choose_conventions("ViT-B-32", file, NOTHING)


def test_a_model_without_tags_has_its_configuration(tmp_path: Path) -> None:
    choice = choose_conventions("ViT-S-32-alt", str(tmp_path / "weights.pt"), NOTHING)
    assert choice.fields == {**OPENAI, "quick_gelu": False}
    assert choice.source == "the configuration of ViT-S-32-alt and open_clip's default preprocessing"


def test_the_note_says_how_to_contradict_the_tags(tmp_path: Path) -> None:
    """open_clip trains ViT-L-14-336 with GELU; its only tag is OpenAI's."""
    choice = choose_conventions("ViT-L-14-336", str(tmp_path / "weights.pt"), NOTHING)
    assert choice.fields["quick_gelu"] is True
    assert "all tags of ViT-L-14-336: openai" in choice.note
    assert "add --no-quick-gelu if they were trained with GELU" in choice.note
    siglip = choose_conventions("ViT-B-16-SigLIP", str(tmp_path / "weights.pt"), NOTHING).note
    assert siglip == (
        "weights.pt: GELU; mean 0.5, 0.5, 0.5; std 0.5, 0.5, 0.5; interpolation bicubic; resize_mode squash "
        "(all tags of ViT-B-16-SigLIP: webli)"
    )


def test_what_an_earlier_version_chose_is_compared(tmp_path: Path) -> None:
    def warning(name: str, pretrained: str | None, **more: Any) -> str:
        return earlier_choice({"model": name, "pretrained": pretrained, **more}, used)

    used = Conventions(**tag_conventions("ViT-S-32-alt", ""))  # GELU, OpenAI's preprocessing
    file = str(tmp_path / "weights.pt")
    assert "mean 0.481455, 0.457827, 0.408211, not 0, 0, 0" in warning("MobileCLIP2-S0", file)
    assert "quick_gelu False, not True; if that is wrong" in warning("ViT-L-14-336", file)
    assert "GELU; mean 0.481455" in warning("ViT-B-32", file)
    silent = [
        ("ViT-S-32-alt", file),
        ("ViT-B-32", "openai"),
        ("local-dir:/x", None),
    ]
    assert not any(warning(*names) for names in silent)
    assert not warning("ViT-B-32", file, conventions_from="options --no-quick-gelu")
