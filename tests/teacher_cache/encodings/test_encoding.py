"""Properties of every encoding: declared arrays, error bounds, subsets of classes, unwritten rows."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from teacher_cache.encodings import ENCODINGS, ClassHead, Encoding, encoding_of, options
from teacher_cache.errors import UsageError
from tests.teacher_cache.encodings.cases import ALL, TEMPERATURES, as_read, case, cases

every_encoding = pytest.mark.parametrize("encoding", ALL, ids=lambda encoding: encoding.name)


def exact_logits(features_BD: Tensor, head: ClassHead) -> Tensor:
    return head.logit_scale * features_BD.double() @ head.class_features_CD.double().T


def largest_error(encoding: Encoding, features_BD: Tensor, head: ClassHead, exact_BC: Tensor) -> Tensor:
    """By how much a stored logit may be off, from the widths of the number formats alone, [B, C]."""
    rounding = head.logit_scale * 2e-6  # of float32 sums
    if encoding.name == "factored":
        return torch.full_like(exact_BC, head.logit_scale * 2**-11 + rounding)
    if encoding.name == "factored-int8":
        steps_B1 = features_BD.abs().amax(1, keepdim=True).double() / 254 * features_BD.shape[1] ** 0.5
        return (2 * head.logit_scale * steps_B1 + rounding).expand_as(exact_BC)
    return (exact_BC.amax(1, keepdim=True) - exact_BC) * 2**-11 + rounding


@every_encoding
@given(given_case=cases)
@example(given_case=case(2399, 1.0, 20, 0.5))  # the eighth and the ninth are equal in float32
@settings(max_examples=25, deadline=None)
def test_logits_are_exact_up_to_the_rounding_of_their_types(
    encoding: Encoding, given_case: tuple[Tensor, ClassHead]
) -> None:
    features_BD, head = given_case
    stored = as_read(encoding, features_BD, head)
    found_BC = encoding.logits(stored, head).double()
    exact_BC = exact_logits(features_BD, head)
    error_BC = (found_BC - exact_BC).abs()
    if encoding.name == "topk":  # of what is not kept, it has no logits
        kept_BK = stored["topk_classes"].long()
        error_BC, lowest_B1 = error_BC.gather(1, kept_BK), exact_BC.topk(8).values[:, -1:]
        exact_BC = exact_BC.gather(1, kept_BK)
        # of two that are equal in float32 either may be kept
        assert (exact_BC >= lowest_B1 - 2e-6 * head.logit_scale).all()
    assert found_BC.dtype == torch.float64
    assert (error_BC <= largest_error(encoding, features_BD, head, exact_BC)).all()


@every_encoding
@given(given_case=cases, temperature=st.sampled_from(TEMPERATURES), data=st.data())
@settings(max_examples=20, deadline=None)
def test_a_subset_of_classes_has_the_same_logits(
    encoding: Encoding, given_case: tuple[Tensor, ClassHead], temperature: float, data: st.DataObject
) -> None:
    features_BD, head = given_case
    stored, classes = as_read(encoding, features_BD, head), len(head.class_features_CD)
    subset = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=9)))
    whole_BC = encoding.logits(stored, head, temperature)
    chosen_BC = encoding.logits(stored, head, temperature, subset)
    assert chosen_BC.dtype == whole_BC.dtype == torch.float32
    torch.testing.assert_close(chosen_BC, whole_BC[:, subset], atol=1e-4, rtol=0)
    # so its softmax is the soft label renormalised among the subset
    expected = torch.softmax(whole_BC.double() / temperature, 1)[:, subset]
    expected = expected / expected.sum(1, keepdim=True)
    found = torch.softmax(chosen_BC.double() / temperature, 1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@every_encoding
def test_rows_that_were_never_written_have_finite_logits(encoding: Encoding) -> None:
    _, head = case(0, 100.0)
    empty = {
        name: torch.full((2, *(size for _, size in spec.axes)), spec.fill).to(getattr(torch, signed))
        for name, spec in encoding.arrays(48, 40).items()
        for signed in [{"uint16": "int32"}.get(spec.dtype, spec.dtype)]
    }
    for temperature in TEMPERATURES:
        assert encoding.logits(empty, head, temperature).isfinite().all()


@every_encoding
def test_features_of_zero_make_every_class_equal(encoding: Encoding) -> None:
    _, head = case(0, 100.0)
    stored = as_read(encoding, torch.zeros(2, 48), head)
    for temperature in TEMPERATURES:
        assert encoding.logits(stored, head, temperature).abs().max() < 1e-4


@every_encoding
def test_logits_are_not_rounded_under_autocast(encoding: Encoding) -> None:
    features_BD, head = case(3, 100.0)
    stored = as_read(encoding, features_BD, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = encoding.logits(stored, head, 0.7)
    torch.testing.assert_close(under_autocast, encoding.logits(stored, head, 0.7), atol=0, rtol=0)


@every_encoding
def test_image_features_are_kept_or_refused(encoding: Encoding) -> None:
    features_BD, head = case(4, 17.0)
    stored = as_read(encoding, features_BD, head)
    if not encoding.keeps_image_features:
        with pytest.raises(TypeError, match=f"'{encoding.name}' keeps no image features"):
            encoding.image_features(stored)
        return
    found = encoding.image_features(stored)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float().norm(dim=1), torch.ones(7), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.float(), features_BD, atol=3e-3, rtol=0)
    torch.testing.assert_close(encoding.logits(stored, head), head.logits(found), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"name": "fp4"}, r"unknown encoding 'fp4'; known: factored, factored-int8, topk, dense"),
        ({"name": "topk", "k": 0}, r"'topk': k: Input should be greater than or equal to 1"),
        ({"name": "topk", "k": True}, r"'topk': k: Input should be a valid integer"),
        ({"name": "dense", "k": 3}, r"'dense': k: Extra inputs are not permitted"),
    ],
)
def test_unknown_records_are_refused(record: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        encoding_of(record)


@pytest.mark.parametrize(
    ("record", "classes", "expected"),
    [
        ({"name": "factored"}, 21841, 1024),
        ({"name": "factored-int8"}, 21841, 512),
        ({"name": "topk", "k": 100}, 21841, 492),
        ({"name": "topk", "k": 100}, 70000, 692),
        ({"name": "dense"}, 1205, 2414),
    ],
)
def test_bytes_a_view(record: dict[str, object], classes: int, expected: int) -> None:
    assert encoding_of(record).bytes_a_view(512, classes) == expected


def test_only_dense_with_many_classes_has_a_note() -> None:
    assert [encoding.notes(4096) for encoding in ALL] == [[], [], [], []]
    assert encoding_of({"name": "dense"}).notes(21841) == [
        "dense takes 43,686 bytes a view with 21,841 classes; --encoding factored keeps every logit in about "
        "a thousand"
    ]


@every_encoding
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_is_above_zero(encoding: Encoding, temperature: float) -> None:
    with pytest.raises(UsageError, match="the temperature must be above zero, not"):
        encoding.require_temperature(temperature)


def test_int8_uses_its_whole_range() -> None:
    features_BD, head = case(5, 17.0)
    stored = encoding_of({"name": "factored-int8"}).encode(features_BD, head)["image_features"]
    np.testing.assert_array_equal(np.abs(stored.astype(np.int64)).max(1), np.full(7, 127))


def test_two_encodings_with_an_option_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "ENCODINGS", {"topk": ENCODINGS["topk"], "other": ENCODINGS["topk"]})
    with pytest.raises(TypeError, match="two encodings have an option 'topk'; rename one"):
        options._options()
