"""Which classes a step has."""

from pathlib import Path

import torch

from student_train.training.settings import TrainSettings
from student_train.training.step_classes import StepClasses


def test_every_step_draws_other_classes_and_has_those_of_its_batch(tmp_path: Path) -> None:
    asked = TrainSettings(cache=str(tmp_path), classes_per_step=12, class_subset="new", seed=3)
    classes = StepClasses(asked, 200)
    labels = torch.tensor([150, 101, -1, 199, 150])
    drawn = [classes.choose(labels, step)[0] for step in range(300)]
    for chosen in drawn:
        assert len(chosen) == 12
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert {150, 101, 199} <= set(chosen.tolist()) <= set(range(100, 200))
    assert len({tuple(chosen.tolist()) for chosen in drawn}) == 300
    assert torch.equal(classes.choose(labels, 7)[0], drawn[7])
    counts = torch.bincount(torch.cat(drawn), minlength=200)[100:]
    others = counts[counts < 300].double()
    # 9 of 97 others, 300 times: 27.8 times each, standard deviation 5
    assert len(others) == 97
    assert 5 < others.min() < others.max() < 55
    other_seed = StepClasses(asked.model_copy(update={"seed": 4}), 200)
    assert not torch.equal(other_seed.choose(labels, 7)[0], drawn[7])


def test_the_classes_of_a_step_are_the_same_only_without_sampling(tmp_path: Path) -> None:
    def same(**settings: object) -> bool:
        return StepClasses(TrainSettings(cache=str(tmp_path), **settings), 200).same

    assert same()
    assert same(class_subset="base")
    assert same(classes_per_step=200)
    assert not same(classes_per_step=199)
