"""Each evaluator against plain loops over the formula of its source; in batches as in one piece."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from student_train.evaluation.evaluators import EVALUATORS, Scores, Task, harmonic_mean
from student_train.evaluation.evaluators.evaluator import top_places
from student_train.figures import FIGURES, METRICS
from teacher_cache.errors import UsageError

CLASSES = 11


def scores(images: int = 300, classes: int = CLASSES, seed: int = 0) -> Scores:
    """Logits that are often right, a teacher's that are near, and unequal classes, the last empty."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([1.0 / (c + 1) for c in range(classes - 1)])
    labels = torch.multinomial(weights, images, replacement=True, generator=generator)
    logits = 2 * torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += 3
    return Scores(logits, labels, logits + torch.randn(images, classes, generator=generator))


def measured(
    name: str, found: Scores, temperature: float = 1.0, sizes: tuple[int, ...] = ()
) -> dict[str, Any]:
    evaluator = EVALUATORS[name](Task(found.logits_BC.shape[1], temperature))
    cuts = [0, *np.cumsum(sizes).tolist(), len(found.labels_B)]
    for first, end in pairwise(cuts):
        assert found.teacher_logits_BC is not None
        evaluator.update(
            Scores(*(x[first:end] for x in (found.logits_BC, found.labels_B, found.teacher_logits_BC)))
        )
    return evaluator.figures()


def test_accuracy_is_that_of_scikit_learn() -> None:
    found = scores()
    labels, logits = found.labels_B.numpy(), found.logits_BC.numpy()
    expected = {
        "top1": top_k_accuracy_score(labels, logits, k=1, labels=np.arange(CLASSES)),
        "top5": top_k_accuracy_score(labels, logits, k=5, labels=np.arange(CLASSES)),
        "per_class": balanced_accuracy_score(labels, logits.argmax(1)),
    }
    assert measured("accuracy", found) == pytest.approx(expected, abs=1e-12)
    assert len({round(value, 3) for value in expected.values()} | {0.0, 1.0}) == 5


def test_of_equal_logits_the_lower_class_is_first_and_no_two_share_a_place() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0]]).expand(5, -1)
    assert top_places(logits, torch.arange(5)).tolist() == [3, 0, 1, 4, 2]


def test_fewer_than_five_classes() -> None:
    found = Scores(torch.eye(3), torch.arange(3), torch.eye(3))
    assert measured("accuracy", found) == {"top1": 1.0, "top5": 1.0, "per_class": 1.0}


def test_the_first_two_bins_are_separate() -> None:
    """A wrong claim of 5 % and a right one of 10 %, among 40 classes."""
    shares = torch.full((2, 40), 0.9 / 39)
    shares[0], shares[0, 0], shares[1, 0] = 0.95 / 39, 0.05, 0.1
    found = Scores(shares.log(), torch.tensor([1, 0]), shares)
    assert measured("calibration", found)["ece"] == pytest.approx(0.05 / 2 + 0.9 / 2, abs=1e-6)


def test_calibration_error_is_the_plain_sum_over_bins() -> None:
    found = scores()
    probabilities = found.logits_BC.double().softmax(-1).numpy()
    claimed, right = probabilities.max(1), probabilities.argmax(1) == found.labels_B.numpy()
    expected = 0.0
    for m in range(15):
        inside = (claimed > m / 15) & (claimed <= (m + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - claimed[inside].mean())
    assert measured("calibration", found)["ece"] == pytest.approx(expected, abs=1e-6)
    assert expected > 0.01


@pytest.mark.parametrize(("share", "ece"), [(1.0, 0.0), (0.0, 1.0), (0.75, 0.25)])
def test_a_model_that_is_always_sure_is_wrong_by_the_share_it_is_wrong(share: float, ece: float) -> None:
    labels = torch.zeros(400, dtype=torch.int64)
    labels[int(400 * share) :] = 1
    sure = torch.tensor([[200.0, 0.0]]).expand(400, -1)
    assert measured("calibration", Scores(sure, labels, sure))["ece"] == pytest.approx(ece)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_agreement_is_the_plain_mean_over_images(temperature: float) -> None:
    found = scores()
    assert found.teacher_logits_BC is not None
    same, kl = 0, 0.0
    for own, theirs in zip(found.logits_BC.double(), found.teacher_logits_BC.double(), strict=True):
        same += int(own.argmax()) == int(theirs.argmax())
        p, q = ((z / temperature).softmax(0).tolist() for z in (theirs, own))
        kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = {"agreement": same / 300, "kl": kl / 300}
    assert measured("agreement", found, temperature) == pytest.approx(expected, rel=1e-5)
    assert 0.5 < expected["agreement"] < 1
    itself = Scores(found.logits_BC, found.labels_B, found.logits_BC)
    assert measured("agreement", itself, temperature) == {"agreement": 1.0, "kl": 0.0}


@pytest.mark.parametrize("classes", [10, 11, 2])
def test_base_to_new_chooses_within_each_half(classes: int) -> None:
    found = (
        scores(classes=classes)
        if classes > 2
        else Scores(torch.randn(9, 2), torch.arange(9) % 2, torch.ones(9, 2))
    )
    half = math.ceil(classes / 2)
    shares = {}
    for name, choices in (("base", range(half)), ("new", range(half, classes))):
        images = [n for n, label in enumerate(found.labels_B.tolist()) if label in choices]
        right = [max(choices, key=lambda c: found.logits_BC[n, c]) == found.labels_B[n] for n in images]
        shares[name] = sum(map(int, right)) / len(images)
    shares["harmonic"] = 2 / (1 / shares["base"] + 1 / shares["new"])
    assert measured("base-to-new", found) == pytest.approx(shares)


def test_a_half_without_images_has_no_figure_and_one_class_no_halves() -> None:
    found = measured("base-to-new", Scores(torch.eye(4)[:2], torch.arange(2), torch.eye(4)[:2]))
    assert found == {"base": 1.0}
    with pytest.raises(UsageError, match="at least two classes"):
        EVALUATORS["base-to-new"](Task(1))


def test_harmonic_mean() -> None:
    assert harmonic_mean(0.8, 0.4) == pytest.approx(2 / (1 / 0.8 + 1 / 0.4))
    assert harmonic_mean(0.0, 0.0) == 0


@pytest.mark.parametrize("name", EVALUATORS)
@example_settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), max_size=6))
def test_batches_do_not_matter(name: str, sizes: list[int]) -> None:
    found = scores()
    whole = measured(name, found)
    inside = measured(name, found, sizes=tuple(sizes))
    assert inside == (whole if name == "by-class" else pytest.approx(whole, rel=1e-6, abs=1e-9))


@pytest.mark.parametrize("name", EVALUATORS)
def test_an_evaluator_returns_the_figures_of_its_metric(name: str) -> None:
    expected = list(METRICS[name].figures) or ["by_class", "by_class_ids"]
    assert list(measured(name, scores())) == expected


def test_no_two_metrics_have_a_figure_of_the_same_name() -> None:
    assert len(FIGURES) == sum(len(metric.figures) for metric in METRICS.values())
    assert FIGURES["top1"].text(0.12345) == "12.35"
    assert FIGURES["ece"].text(0.12345) == "0.1235"


def test_by_class_counts_images_and_those_whose_class_comes_first() -> None:
    found = scores()
    named = Task(CLASSES, names=tuple("abcdefghijk"), ids=tuple("ABCDEFGHIJK"))
    evaluator = EVALUATORS["by-class"](named)
    evaluator.update(found)
    first = found.logits_BC.argmax(1)
    expected = [
        [name, int((found.labels_B == c).sum()), int(((first == c) & (found.labels_B == c)).sum())]
        for c, name in enumerate(named.names[:-1])  # the last class has no image
    ]
    assert evaluator.figures() == {"by_class": expected, "by_class_ids": list("ABCDEFGHIJ")}
    assert measured("by-class", found)["by_class"][0] == ["0", *expected[0][1:]]
