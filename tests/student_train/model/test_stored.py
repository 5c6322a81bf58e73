"""Students on disk, those of earlier versions included."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from student_train.model import stored
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP, load_student
from teacher_cache.errors import UsageError
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


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("F4", [4], 2), ("F32", [0, 1 << 63], 0), ("F32", [1] * 80, 4), ("C64", [4], 32), ("I32", [4], 16)],
)
def test_tensors_that_torch_cannot_represent_or_compute_with_are_refused(
    tmp_path: Path, dtype: str, shape: list[int], size: int
) -> None:
    content = (WRITTEN / "run" / "student.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header = {
        "__metadata__": header["__metadata__"],
        "text.q": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]},
    }
    encoded = json.dumps(header).encode()
    path = tmp_path / "student.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(size))
    with pytest.raises(UsageError, match=r"is damaged or not a student: its prompts text\.q are not finite"):
        stored.read_student(path)


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


def test_a_prompt_option_of_a_later_version_is_not_called_damage(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    with safe_open(WRITTEN / "run" / path.name, framework="pt") as file:
        record = json.loads(file.metadata()["student"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    record["prompts"]["gate"] = False
    save_file(tensors, path, {"student": json.dumps(record)})
    with pytest.raises(
        UsageError, match=r"has the option 'gate', which rpp \S+ does not know; install a newer"
    ):
        stored.read_student(path)
