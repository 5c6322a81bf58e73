"""Students on disk, those of earlier versions included."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from student_train.model import stored
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP, load_student
from tests.data.students import write
from tests.models import loaded

WRITTEN = Path(write.__file__).parent / "rpp-0.1"


def load(name: str) -> PromptedCLIP:
    """A stored student on the model `gelu`, whose digest may differ between versions of torch."""
    digest = stored.read_student(WRITTEN / name).record.weights_digest
    return load_student(WRITTEN / name, load=lambda *_: replace(loaded("gelu"), digest=digest))


@pytest.mark.parametrize("name", ["run", "hub"])
def test_a_student_of_an_earlier_version_is_read(name: str) -> None:
    student = load(name)
    assert student.settings == write.PROMPTS
    for tensor_name, tensor in write.student().prompt_tensors().items():
        assert torch.equal(student.prompt_tensors()[tensor_name], tensor), tensor_name


class LaterPromptSettings(PromptSettings):
    new_option: str = "as before"


class LaterStudentRecord(stored.StudentRecord):
    prompts: LaterPromptSettings


class LaterFolderRecord(stored.FolderRecord):
    prompts: LaterPromptSettings


@pytest.mark.parametrize("name", ["run", "hub"])
def test_a_new_prompt_option_with_a_default_keeps_stored_students(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "StudentRecord", LaterStudentRecord)
    monkeypatch.setattr(stored, "FolderRecord", LaterFolderRecord)
    student = load(name)
    assert student.settings == LaterPromptSettings(**write.PROMPTS.model_dump())
