"""A run whose cache lies in an object store equals one whose cache lies on a disk."""

import json
from pathlib import Path

import fsspec
import pytest

from student_train.model.settings import PromptSettings
from student_train.training.loop import train
from student_train.training.settings import TrainSettings


@pytest.mark.parametrize("towers", ["text", "both"])
def test_a_run_reads_its_cache_from_an_object_store(
    towers: str, bucket: str, cache_path: Path, tmp_path: Path
) -> None:
    fsspec.filesystem("s3", use_listings_cache=False).put(str(cache_path), bucket, recursive=True)
    losses = []
    for name, cache in (("disk", str(cache_path)), ("store", bucket)):
        train(
            TrainSettings(
                cache=cache,
                out=tmp_path / name,
                batch_size=8,
                max_steps=1,
                device="cpu",
                prompts=PromptSettings(towers=towers),
            )
        )
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]
    assert losses[0]
