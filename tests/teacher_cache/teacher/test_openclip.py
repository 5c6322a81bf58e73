"""Names of models, what is refused, digests."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from teacher_cache.errors import UsageError
from teacher_cache.model_names import canonical_model_name
from teacher_cache.teacher import openclip
from teacher_cache.teacher.openclip import load_model, weights_digest
from tests.models import loaded, write_model
from tests.small_tokenizers import TEXTS


@pytest.mark.parametrize(
    ("name", "pretrained", "reason"),
    [
        ("ViT-B-61", "openai", r"no model 'ViT-B-61'; near names: .*ViT-B-16"),
        ("ViT-B/61", "openai", r"no model 'ViT-B-61'; near names: .*ViT-B-16"),
        ("ViT-B-16", None, r"'ViT-B-16' needs --pretrained: a weights file or one of openai, "),
        ("ViT-B-16", "opanai", r"'opanai' is neither .* 'ViT-B-16'; did you mean openai\? \(tags: openai, "),
        ("ViT-B-16", "/no/such/weights.pt", r"'/no/such/weights.pt' is neither a file nor"),
        ("ViT-B-16", "x" * 300, r"x' is neither a file nor"),
        ("x" * 300, None, r"no model 'xx"),
        ("local-dir:" + "x" * 300, None, r"no model folder .*/xx"),
        ("/no/such/folder", None, r"^no model folder /no/such/folder$"),
        ("./no/such/folder", "openai", r"^no model folder \S+/no/such/folder$"),
        ("~/no/such/folder", None, r"^no model folder \S+/no/such/folder$"),
        ("models/vit", None, r"no model 'models-vit'.*a folder with open_clip_config.json works too$"),
        ("/", None, r"^no open_clip_config.json in the model folder /$"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "webli", r"has its own weights; leave out --pretrained 'webli'"),
        ("local-dir:/no/such/folder", None, r"^no model folder /no/such/folder$"),
    ],
)
def test_an_unknown_model_is_refused_before_loading(name: str, pretrained: str | None, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refused:
        load_model(name, pretrained)
    assert "\n" not in str(refused.value)


def test_the_spelling_of_papers_is_accepted() -> None:
    assert canonical_model_name("ViT-B/16") == "ViT-B-16"
    assert canonical_model_name("hf-hub:timm/ViT-B-16-SigLIP") == "hf-hub:timm/ViT-B-16-SigLIP"


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_of_a_named_model_come_from_a_file(suffix: str, tmp_path: Path) -> None:
    """The smallest of open_clip's named models with a causal text transformer."""
    model = open_clip.create_model("ViT-S-32-alt")
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"epoch": 3, "state_dict": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    found = load_model("ViT-S-32-alt", str(path))
    assert found.digest == weights_digest(model)
    assert found.pretrained == str(path)
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())


def test_damaged_or_other_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "gelu")
    weights = folder / "open_clip_model.safetensors"
    content = weights.read_bytes()
    tensors = {key: tensor.clone() for key, tensor in load_file(weights).items()}  # not the mapped file
    damages = {
        "cut": lambda: weights.write_bytes(content[: len(content) // 2]),
        "empty": lambda: weights.write_bytes(b""),
        "other shape": lambda: save_file(
            {k: v[:-1].contiguous() if k == "text_projection" else v for k, v in tensors.items()}, weights
        ),
        "one missing": lambda: save_file(
            {k: v for k, v in tensors.items() if k != "visual.conv1.weight"}, weights
        ),
        "none": weights.unlink,
    }
    for damage, do in damages.items():
        do()
        with pytest.raises(UsageError, match="cannot load") as refused:
            load_model(str(folder))
        assert "\n" not in str(refused.value), damage
    (tmp_path / "weights.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match=r"cannot load ViT-S-32-alt with weights .*weights\.pt"):
        load_model("ViT-S-32-alt", str(tmp_path / "weights.pt"))


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"state_dict": RunsCode(str(marker))}, tmp_path / "weights.pt")
    with pytest.raises(UsageError, match="cannot load"):
        load_model("ViT-S-32-alt", str(tmp_path / "weights.pt"))
    assert not marker.exists()


class RunsCode:
    """Unpickling it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.path),)


def test_the_digest_depends_on_weights_and_activation_only(tmp_path: Path) -> None:
    model = load_model(str(write_model(tmp_path / "one", "gelu")))
    assert load_model(f"local-dir:{write_model(tmp_path / 'same', 'gelu')}").digest == model.digest
    other = load_model(str(write_model(tmp_path / "other", "gelu", seed=1)))
    assert other.digest != model.digest
    quick = load_model(str(write_model(tmp_path / "quick", "quickgelu")))
    assert all(map(torch.equal, quick.model.parameters(), model.model.parameters()))
    assert quick.digest != model.digest
    before = model.digest
    with torch.no_grad():
        model.model.visual.proj[3, 5].mul_(1 + 1e-6)
    assert weights_digest(model.model) != before


def test_the_activation_of_a_tag_is_recorded() -> None:
    assert loaded("quickgelu").config["quick_gelu"] is True
    assert loaded("gelu").config["quick_gelu"] is False


def test_a_broken_config_is_one_line(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "gelu")
    config = json.loads((folder / "open_clip_config.json").read_text())
    for broken in ("{", json.dumps({"model_cfg": {**config["model_cfg"], "vision_cfg": {}}}), "{}"):
        (folder / "open_clip_config.json").write_text(broken)
        with pytest.raises(UsageError, match="cannot load") as refused:
            load_model(str(folder))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [AttributeError, TypeError, KeyError, AssertionError])
def test_a_defect_or_a_change_of_open_clip_surfaces(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not reported as damaged weights."""

    def create_model(*arguments: object, **options: object) -> None:
        raise kind("changed")

    folder = write_model(tmp_path / "model", "gelu")
    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(kind, match="changed"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"embed_dim": None}, "embed_dim must be"),
        ({"vision_cfg": {"patch_size": 0}}, "patch_size must be a positive integer, found 0"),
        ({"text_cfg": {"width": "64"}}, "width must be a positive integer, found '64'"),
        ({"gated": True}, r"has the option 'gated', which open_clip \d+\.\S+ does not know"),
        ({"vision_cfg": 3}, "needs a model_cfg with embed_dim, vision_cfg and text_cfg"),
    ],
)
def test_sizes_of_a_configuration_are_checked(change: dict, problem: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "gelu")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"] |= change
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=problem):
        load_model(str(folder))


def test_a_damaged_or_missing_tokenizer_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "siglip2")
    file = folder / "tokenizer.json"
    said = rf"cannot read the tokenizer in {folder}: .*; the folder needs the files that save_pretrained of"
    for content in ("{}", '{"a', None):
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
        with pytest.raises(UsageError, match=said) as refused:
            load_model(str(folder))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("asks", [False, True])
def test_a_tokenizer_runs_no_code_of_its_folder(asks: bool, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "siglip2")
    own = json.loads((folder / "tokenizer_config.json").read_text())
    own |= {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    if asks:
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["trust_remote_code"] = True
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"cannot read the tokenizer in .*custom code"):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()


def test_the_package_that_a_tokenizer_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model", "siglip")
    monkeypatch.setattr(openclip, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"needs the package transformers: pip install 'rpp-clip\[tokenizers\]'"
    ):
        load_model(str(folder))
    load_model(str(write_model(tmp_path / "clip", "gelu")))


def test_a_tokenizer_in_the_form_of_sentencepiece(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = write_model(tmp_path / "model", "siglip")
    (folder / "tokenizer.json").unlink()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(folder / "spiece"),
        vocab_size=34,
        minloglevel=2,
        **ids,
    )
    kind = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "</s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    tokens_T = load_model(str(folder)).tokenizer(["a photo of a cat"])[0]
    assert len(tokens_T) == 20
    assert (tokens_T != 1).sum() > 5
    assert tokens_T[-1] == 1
