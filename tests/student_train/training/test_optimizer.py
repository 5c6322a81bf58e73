"""The learning rate, and the optimizers that settings offer."""

from pathlib import Path

import pytest

from student_train.training.optimizer import learning_rate
from student_train.training.optimizers import OPTIMIZERS
from student_train.training.settings import TrainSettings
from teacher_cache.errors import UsageError
from teacher_cache.settings import from_flat


def test_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    run = TrainSettings(cache=Path("x"), lr=0.1, warmup=0.2)
    rates = [learning_rate(run, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.1])
    assert rates[6] == pytest.approx(0.05)  # half of the eight steps behind the warm-up
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[9] < 0.005


def test_settings_offer_the_optimizers_of_the_registry() -> None:
    for name in OPTIMIZERS:
        assert from_flat(TrainSettings, {"cache": "x", "optimizer": name}).optimizer == name
    with pytest.raises(UsageError, match="--optimizer 'lion': Input should be 'sgd' or 'adamw'"):
        from_flat(TrainSettings, {"cache": "x", "optimizer": "lion"})
