"""The teacher's features against open_clip's own functions."""

import open_clip
import pytest
import torch
import torch.nn.functional as F

from teacher_cache.classes.templates import load_templates
from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.teacher.teacher import Teacher
from tests.models import loaded

NAMES = ("cat", "great horned owl", "Kätzchen", "a thing with a very long name of its own " * 12, "")


@pytest.mark.parametrize("config", ["gelu", "quickgelu", "custom", "attn-pool", "siglip", "resnet"])
def test_text_features_are_open_clips(config: str) -> None:
    """Also of texts that fill all 77 positions, for which nothing can be left out."""
    model = loaded(config)
    teacher = Teacher(model, torch.device("cpu"))
    for texts in (NAMES, NAMES[:3]):
        tokens = model.tokenizer(list(texts))
        with torch.no_grad():
            expected = model.model.encode_text(tokens)
        torch.testing.assert_close(teacher.encode_text(tokens), expected, atol=1e-5, rtol=1e-5)
        unit = teacher.encode_text(tokens, normalize=True)
        torch.testing.assert_close(unit, F.normalize(expected, dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", ["gelu", "custom"])
def test_positions_behind_the_last_end_of_text_are_not_computed(config: str) -> None:
    model = loaded(config)
    teacher = Teacher(model, torch.device("cpu"))
    lengths = []
    block = teacher._text.blocks[0]
    hook = block.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    try:
        teacher.encode_text(model.tokenizer(["cat", "great horned owl"]))
    finally:
        hook.remove()
    assert lengths == [5]  # start, three words, end


def test_image_features_are_open_clips() -> None:
    model = loaded("gelu")
    pixels = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    mean, std = (torch.tensor(getattr(model.preprocess, name))[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = model.model.encode_image((pixels / 255 - mean) / std, normalize=True)
    found = Teacher(model, torch.device("cpu")).image_features(pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("templates", ["a photo of a {}.", "imagenet-simple"])
def test_class_features_are_open_clips_zero_shot_classifier(templates: str) -> None:
    """More classes than a batch holds, so that the classifier is put together from several."""
    model = loaded("custom")
    names = tuple(f"thing number {c}" for c in range(70))
    texts = load_templates(templates)
    with torch.no_grad():
        expected = open_clip.build_zero_shot_classifier(
            model.model, model.tokenizer, names, [text.format for text in texts], num_classes_per_batch=None
        )
    teacher = Teacher(model, torch.device("cpu"))
    found = teacher.class_features(Vocabulary(names, names, texts), classes_per_batch=64)
    torch.testing.assert_close(found, expected.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(70))


def test_bf16_is_near_and_not_equal() -> None:
    model = loaded("gelu")
    pixels = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
    exact = Teacher(model, torch.device("cpu")).image_features(pixels)
    rough = Teacher(model, torch.device("cpu"), "bf16").image_features(pixels)
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.02


@pytest.mark.parametrize(("words", "cut"), [(74, 0), (75, 0), (76, 1), (200, 1)])
def test_texts_that_the_tokenizer_cuts_are_counted(
    words: int, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    """75 tokens stand between start and end of 77 positions."""
    names = ("cat", " ".join(["owl"] * words))
    Teacher(loaded("gelu"), torch.device("cpu")).class_features(Vocabulary(names, names, ("{}",)))
    expected = "1 of 2 texts are too long for the text tower and are cut, the first 'owl owl" if cut else ""
    assert caplog.text == "" if not cut else expected in caplog.text


@pytest.mark.parametrize(
    ("config", "around"), [("siglip", 1), ("siglip2", 1), ("clipa", 2), ("full-first", 2)]
)
@pytest.mark.parametrize(("over", "cut"), [(0, 0), (1, 1), (30, 1)])
def test_texts_that_other_tokenizers_cut_are_counted(
    config: str, around: int, over: int, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens that are padding as well end some texts, in each of the 20 positions of others."""
    names = ("cat", " ".join(["photo"] * (20 - around + over)))
    Teacher(loaded(config), torch.device("cpu")).class_features(Vocabulary(names, names, ("{}",)))
    expected = "1 of 2 texts are too long for the text tower and are cut, the first 'photo photo"
    assert ("are cut" in caplog.text) == (expected in caplog.text) == bool(cut)


@pytest.mark.parametrize("config", ["siglip", "clipa", "mobileclip", "coca"])
def test_text_features_are_the_models_own(config: str) -> None:
    teacher = Teacher(loaded(config), torch.device("cpu"))
    tokens_BT = loaded(config).tokenizer(["a cat", "a photo of a grand piano.", "ox"])
    theirs = loaded(config).model.encode_text(tokens_BT, normalize=True)
    torch.testing.assert_close(teacher.encode_text(tokens_BT, normalize=True), theirs, atol=1e-6, rtol=0)


def test_a_bias_is_recorded() -> None:
    teacher = Teacher(loaded("siglip"), torch.device("cpu"))
    assert teacher.describe()["logit_bias"] == loaded("siglip").model.logit_bias.item() != 0
    assert Teacher(loaded("gelu"), torch.device("cpu")).describe()["logit_bias"] is None
