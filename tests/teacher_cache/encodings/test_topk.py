"""Top-k: probabilities of the kept classes at every temperature, and of the others."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from teacher_cache.encodings import ClassHead
from teacher_cache.encodings.topk import KNOTS, TopK, interpolation_weights, log_partitions
from teacher_cache.errors import UsageError
from tests.teacher_cache.encodings.cases import as_read, cases

temperatures = st.floats(KNOTS[0], KNOTS[-1])


@given(given_case=cases, temperature=temperatures, k=st.integers(1, 11))
@settings(max_examples=60, deadline=None)
def test_kept_probabilities_are_right_and_the_others_share_the_rest(
    given_case: tuple[Tensor, ClassHead], temperature: float, k: int
) -> None:
    features_BD, head = given_case
    encoding = TopK(k=k)
    found_BC = torch.softmax(
        encoding.logits(as_read(encoding, features_BD, head), head, temperature).double() / temperature, 1
    )
    exact_BC = torch.softmax(head.logits(features_BD).double() / temperature, 1)
    kept_BK = head.logits(features_BD).topk(k, dim=1).indices
    torch.testing.assert_close(found_BC.sum(1), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(found_BC.gather(1, kept_BK), exact_BC.gather(1, kept_BK), atol=1e-3, rtol=0)
    others = torch.ones_like(found_BC, dtype=torch.bool).scatter_(1, kept_BK, False)
    rest = found_BC[others].view(7, -1)
    torch.testing.assert_close(rest, rest.mean(1, keepdim=True).expand_as(rest), atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("scale", [17.0, 100.0])
def test_many_classes_between_the_knots(scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    heads_CD = F.normalize(torch.randn(3000, 64, generator=generator), dim=1)
    features_BD = F.normalize(heads_CD[:20] + 0.2 * torch.randn(20, 64, generator=generator), dim=1)
    head, encoding = ClassHead(heads_CD, scale), TopK(k=16)
    stored, exact_BC = as_read(encoding, features_BD, head), head.logits(features_BD)
    kept_BK = exact_BC.topk(16).indices
    for temperature in np.geomspace(KNOTS[0], KNOTS[-1], 101):
        found = torch.softmax(encoding.logits(stored, head, float(temperature)) / temperature, 1)
        exact = torch.softmax(exact_BC.double() / temperature, 1).float()
        torch.testing.assert_close(found.gather(1, kept_BK), exact.gather(1, kept_BK), atol=3e-4, rtol=0)


@given(temperature=temperatures)
@settings(max_examples=50)
def test_interpolation_reproduces_polynomials_of_the_logarithm(temperature: float) -> None:
    weights, x = interpolation_weights(temperature), np.log(KNOTS)
    for power in range(6):
        assert weights @ x**power == pytest.approx(math.log(temperature) ** power, abs=1e-8)


@pytest.mark.parametrize("m", range(len(KNOTS)))
def test_a_knot_has_its_own_value(m: int) -> None:
    np.testing.assert_allclose(interpolation_weights(KNOTS[m]), np.eye(len(KNOTS))[m], atol=1e-12)


@given(seed=st.integers(0, 2**31), spread=st.floats(0.0, 60.0))
@settings(max_examples=25, deadline=None)
def test_log_partitions_are_those_of_a_plain_sum(seed: int, spread: float) -> None:
    logits_BC = spread * torch.randn(3, 200, generator=torch.Generator().manual_seed(seed))
    logits_BC[:, 7] = -torch.inf
    plain_BM = torch.stack([torch.logsumexp(logits_BC.double() / t, 1) for t in KNOTS], 1)
    torch.testing.assert_close(log_partitions(logits_BC).double(), plain_BM, atol=2e-5, rtol=1e-6)


def test_knots_are_thirds_of_octaves_from_an_eighth_to_sixteen() -> None:
    assert (KNOTS[0], KNOTS[9], KNOTS[-1]) == (0.125, 1.0, 16.0)
    assert all(b / a == pytest.approx(2 ** (1 / 3)) for a, b in pairwise(KNOTS))


@pytest.mark.parametrize("temperature", [0.124, 16.1])
def test_temperatures_beyond_the_knots_are_refused(temperature: float) -> None:
    expected = rf"temperature {temperature}: .* topk has soft labels for temperatures from 0.125 to 16"
    with pytest.raises(UsageError, match=expected):
        TopK(k=4).logits({}, ClassHead(torch.zeros(5, 2), 1.0), temperature)


@pytest.mark.parametrize("classes", [4, 3])
def test_topk_needs_more_classes_than_it_keeps(classes: int) -> None:
    with pytest.raises(UsageError, match=f"topk of 4 needs a vocabulary of more than its {classes} classes"):
        TopK(k=4).require_classes(classes)
    TopK(k=4).require_classes(5)
    with pytest.raises(UsageError, match="at least 2 classes, found 1: use --encoding factored or dense"):
        TopK(k=1).require_classes(1)


@pytest.mark.parametrize(("classes", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_classes_are_uint16_if_possible(classes: int, dtype: str) -> None:
    features_BD = F.normalize(torch.randn(1, 2, generator=torch.Generator().manual_seed(0)), dim=1)
    head = ClassHead(torch.zeros(classes, 2), 1.0)
    head.class_features_CD[-1] = features_BD[0]
    kept = TopK(k=1).encode(features_BD, head)["topk_classes"]
    assert TopK(k=1).arrays(2, classes)["topk_classes"].dtype == kept.dtype == dtype
    assert kept.tolist() == [[classes - 1]]
