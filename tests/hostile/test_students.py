"""Stored students and records of runs: other shapes and sizes, tensors that are not numbers."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.compare import compare_runs
from student_train.model.settings import PromptSettings
from student_train.model.stored import read_student, write_folder
from student_train.model.student import PromptedCLIP, load_student, save_student
from student_train.runs.record import STUDENT, provenance, read_metrics, read_results, read_settings
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache.errors import UsageError
from teacher_cache.teacher.openclip import LoadedModel
from tests.hostile.conftest import fuzzed
from tests.hostile.contract import bounded, is_one_line, tried
from tests.hostile.mutations import DEEP, changed_json, damaged, damaged_json
from tests.models import loaded


def load(*_: Any) -> LoadedModel:
    return loaded("gelu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`student.safetensors`, and the same in Hugging Face's layout in `hub`."""
    made = tmp_path_factory.mktemp("student")
    student = PromptedCLIP(loaded("gelu"), PromptSettings(prompt_depth=2))
    save_student(student, made)
    training = {
        "settings": {"lr": 0.1},
        "teacher": {"model": "a", "weights_digest": "b"},
        "cache": {},
        "templates": ["a {}"],
    }
    write_folder(made / "hub", student.describe(), student.prompt_tensors(), training)
    return made


def with_header(content: bytes, change: Any) -> bytes:
    """Safetensors with another header; `change` takes it and its student's record."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    record = json.loads(header["__metadata__"]["student"])
    header, record = change(header, record)
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["student"] = record if isinstance(record, str) else json.dumps(record)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


@given(data=st.data())
@fuzzed(100)
def test_fuzz_students(folder: Path, data: st.DataObject) -> None:
    content = (folder / STUDENT).read_bytes()
    kind = data.draw(st.sampled_from(["bytes", "head", "header", "record", "record"]))
    if kind == "bytes":
        content = data.draw(damaged(content))
    elif kind == "head":
        content = data.draw(damaged(content[:1200])) + content[1200:]
    elif kind == "header":
        content = with_header(content, lambda header, record: (data.draw(changed_json(header)), record))
    else:
        content = with_header(content, lambda header, record: (header, data.draw(changed_json(record))))
    path = folder / "hostile.safetensors"
    path.write_bytes(content)
    tried(lambda: load_student(path, load=load))


@given(data=st.data())
@fuzzed(80)
def test_fuzz_hugging_face_configs(folder: Path, data: st.DataObject) -> None:
    copy = folder / "hub-copy"
    shutil.copytree(folder / "hub", copy, dirs_exist_ok=True)
    config = json.loads((folder / "hub" / "config.json").read_text())
    (copy / "config.json").write_bytes(data.draw(damaged_json(config)))
    tried(lambda: load_student(copy, load=load))


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, with results beside it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    prompts = PromptSettings(towers="text", prompt_depth=2)
    train(TrainSettings(cache=str(cache), out=out, prompts=prompts, max_steps=2, batch_size=6, log=("none",)))
    results = {"evals": [{"images": "a.tar", "student": "x", "accuracy": 0.5, "classes": 5}]}
    (out / "results.json").write_text(json.dumps(results))
    return out


@given(data=st.data())
@fuzzed(60)
def test_fuzz_run_records(run: Path, data: st.DataObject) -> None:
    copy = run.with_name("copy")
    shutil.copytree(run, copy, dirs_exist_ok=True)
    for name in data.draw(
        st.sampled_from([("settings.json",), ("results.json",), ("settings.json", "results.json")])
    ):
        (copy / name).write_bytes(data.draw(damaged_json(json.loads((run / name).read_text()))))
    lines = (run / "metrics.jsonl").read_bytes()
    (copy / "metrics.jsonl").write_bytes(data.draw(damaged(lines)))
    tried(lambda: (provenance(read_settings(copy)), read_student(copy), read_results(copy)))
    tried(lambda: compare_runs([run, copy]))


def changed_student(folder: Path, change: Any) -> Path:
    path = folder / "changed.safetensors"
    path.write_bytes(with_header((folder / STUDENT).read_bytes(), change))
    return path


def prompts_of(**changes: Any) -> Any:
    return lambda header, record: (header, {**record, "prompts": {**record["prompts"], **changes}})


def all_shapes(shape: list[int]) -> Any:
    def change(header: dict[str, Any], record: Any) -> Any:
        return {
            name: ({**one, "shape": shape} if name != "__metadata__" else one) for name, one in header.items()
        }, record

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (prompts_of(prompt_length=10**9), "prompts.prompt_length"),
        (prompts_of(prompt_length=5), r"has prompts with different settings|does not have the prompts"),
        (prompts_of(prompt_depth=10**9), "prompt depth 1000000000 is more than the 3 blocks"),
        (prompts_of(towers="text"), r"does not have the prompts"),
        (all_shapes([10**12, 10**12]), "is damaged or not a student"),
        (all_shapes([64, 2, 4]), r"is damaged or not a student|does not have the prompts"),
        (lambda header, record: (header, []), "it has no record"),
        (lambda header, record: (header, DEEP), "nested too deeply"),
        (lambda header, record: (header, {**record, "model": 3}), "model"),
    ],
)
def test_a_student_of_other_shapes_is_refused_before_allocation(
    folder: Path, change: Any, reason: str
) -> None:
    path = changed_student(folder, change)
    with bounded(), pytest.raises(UsageError, match=reason) as refused:
        load_student(path, load=load)
    assert is_one_line(str(refused.value))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_prompts_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    tensors = load_file(folder / STUDENT)
    tensors["vision.k"][0, 0, 0] = value
    with safe_open(folder / STUDENT, framework="pt") as file:
        save_file(tensors, folder / "nan.safetensors", file.metadata())
    with pytest.raises(UsageError, match=r"its prompts vision\.k are not finite numbers"):
        load_student(folder / "nan.safetensors", load=load)


def test_integer_prompts_are_refused(folder: Path) -> None:
    tensors = {name: tensor.to(torch.int32) for name, tensor in load_file(folder / STUDENT).items()}
    with safe_open(folder / STUDENT, framework="pt") as file:
        save_file(tensors, folder / "int.safetensors", file.metadata())
    with pytest.raises(UsageError, match="are not finite numbers"):
        load_student(folder / "int.safetensors", load=load)


@pytest.mark.parametrize("name", ["settings.json", "results.json"])
def test_records_that_are_nested_too_deeply_are_damaged(name: str, run: Path) -> None:
    copy = run.with_name("deep")
    shutil.copytree(run, copy, dirs_exist_ok=True)
    (copy / name).write_text(DEEP)
    with pytest.raises(UsageError, match=rf"{name} (is damaged|cannot be read): it is nested too deeply"):
        compare_runs([run, copy])


def test_a_line_of_metrics_that_is_nested_too_deeply_is_left_out(run: Path) -> None:
    copy = run.with_name("metrics")
    shutil.copytree(run, copy, dirs_exist_ok=True)
    lines = list(read_metrics(run))
    with open(copy / "metrics.jsonl", "a") as file:
        file.write(DEEP + "\n")
    assert list(read_metrics(copy)) == lines
