"""Image towers as ONNX files: onnxruntime computes what the student computes, or there is no file."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from student_train import PromptedCLIP, load_student
from student_train.interchange import onnx_tower
from student_train.interchange.onnx_tower import OnnxFile, export_onnx
from student_train.interchange.settings import OnnxSettings
from student_train.model.stored import read_student
from student_train.model.student import save_student
from teacher_cache.errors import RppError, UsageError
from tests.models import write_model
from tests.student_train.interchange.test_huggingface import student_of

TOLERANCE = 1e-4


def stored(folder: Path, config: str = "gelu", **prompts: Any) -> Path:
    """A stored student with prompts of its own, in a folder with its frozen model."""
    save_student(student_of(write_model(folder / "model", config), **prompts), folder)
    return folder


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return stored(tmp_path)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The graph of `student`, which takes seconds to trace."""
    folder = stored(tmp_path_factory.mktemp("graph"))
    return onnx_tower.traced_graph(onnx_tower.ImageTower(load_student(folder)).eval())


@pytest.fixture
def traced(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the tracing."""
    monkeypatch.setattr(onnx_tower, "traced_graph", lambda tower: graph)


def exported(student: Path) -> OnnxFile:
    return export_onnx(OnnxSettings(student=student, out=student / "image.onnx"))


def run(file: Path, pixels: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(["image_features"], {"pixels": pixels.numpy()})
    assert found.dtype == np.float32
    return torch.from_numpy(found)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("image.onnx*"))


@pytest.mark.parametrize(
    ("config", "depth", "carry"),  # of three blocks
    [
        ("quickgelu", 3, "residual"),
        ("custom", 3, "replace"),
        ("attn-pool", 2, "residual"),
    ],
)
def test_the_file_computes_the_students_features(tmp_path: Path, config: str, depth: int, carry: str) -> None:
    made = exported(stored(tmp_path, config, prompt_depth=depth, carry=carry))
    assert made.max_difference <= TOLERANCE
    assert_students_features(made.file, load_student(tmp_path))


def assert_students_features(file: Path, student: PromptedCLIP) -> None:
    for batch in (1, 2, 7):
        pixels = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
        expected = student.encode_image(pixels, normalize=True)
        torch.testing.assert_close(run(file, pixels), expected, atol=TOLERANCE, rtol=0)
        bare = torch.nn.functional.normalize(student.clip.encode_image(pixels), dim=-1)
        assert (expected - bare).abs().max() > 100 * TOLERANCE  # the prompts are seen


@pytest.mark.parametrize("config", ["gelu", "resnet"])
def test_a_student_without_vision_prompts(tmp_path: Path, config: str) -> None:
    made = exported(stored(tmp_path, config, towers="text"))
    pixels = torch.randn(4, 3, 32, 32)
    expected = load_student(tmp_path).encode_image(pixels, normalize=True)
    torch.testing.assert_close(run(made.file, pixels), expected, atol=TOLERANCE, rtol=0)


def test_the_command_writes_the_students_features_and_says_what_they_need(
    student: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = student / "new" / "image.onnx"
    command = ["rpp", "export", "onnx", "--student", str(student), "--out", str(out), "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = json.loads(capfd.readouterr().out)
    assert not any(record.name.startswith("onnxscript") for record in caplog.records)
    assert_students_features(out, load_student(student))
    assert (said["file"], said["data"]) == (str(out), None)
    assert 0 < said["max_difference"] <= TOLERANCE
    model = onnx.load(out)
    onnx.checker.check_model(model)
    (pixels,), (features,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in (pixels, features)]
    assert shapes == [["batch", 3, 32, 32], ["batch", 48]]
    told = {entry.key: entry.value for entry in model.metadata_props}
    loaded = load_student(student)
    assert json.loads(told.pop("mean")) == [0.48, 0.46, 0.41]
    assert json.loads(told.pop("std")) == [0.27, 0.26, 0.28]
    assert json.loads(told.pop("image_size")) == [32, 32]
    assert float(told.pop("logit_scale")) == float(loaded.logit_scale.exp())
    assert told == {
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "model": "local-dir:model",
        "weights_digest": loaded.base.digest,
        "student_digest": read_student(student).digest,
    }
    assert str(student).encode() not in out.read_bytes()
    # the text tower, two thirds of this model, is not in it
    assert out.stat().st_size < 1.5 * sum(x.nbytes for x in loaded.clip.visual.state_dict().values())


@pytest.mark.usefixtures("traced")
def test_weights_that_a_file_cannot_hold_lie_beside_it(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.randn(4, 3, 32, 32)
    expected = load_student(student).encode_image(pixels, normalize=True)
    exported(student)
    monkeypatch.setattr(onnx_tower, "LARGEST_FILE", 1000)
    made = exported(student)
    assert made.data == student / "image.onnx.data"
    assert left(student) == ["image.onnx", "image.onnx.data"]
    assert made.file.stat().st_size < made.data.stat().st_size
    moved = student / "moved"
    moved.mkdir()
    for path in (made.file, made.data):
        path.rename(moved / path.name)
    torch.testing.assert_close(run(moved / "image.onnx", pixels), expected, atol=TOLERANCE, rtol=0)


class TestNoFileIsLeft:
    @pytest.fixture(params=[1000, onnx_tower.LARGEST_FILE])
    def limit(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """With weights beside the file, and in it."""
        monkeypatch.setattr(onnx_tower, "LARGEST_FILE", request.param)

    @pytest.mark.usefixtures("limit", "traced")
    def test_features_of_other_prompts(self, student: Path) -> None:
        """The graph is of a student whose prompts differ by a hundredth."""
        other = load_student(student)
        with torch.no_grad():
            values = other.prompts["vision"].v
            values.add_(0.01 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0)))
        save_student(other, student)
        with pytest.raises(RppError, match=r"of 1 images differ .* by 0.*, more than 1e-04") as caught:
            exported(student)
        assert caught.value.exit_code == 1
        assert left(student) == []

    def test_a_graph_of_one_batch_size(self, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trace = torch.onnx.export

        def of_one_size(*arguments: Any, dynamic_shapes: Any, **named: Any) -> Any:
            return trace(*arguments, **named)

        monkeypatch.setattr(torch.onnx, "export", of_one_size)
        with pytest.raises(RppError, match=r"onnxruntime cannot run the graph \(.*dimensions"):
            exported(student)
        assert left(student) == []

    @pytest.mark.usefixtures("traced")
    def test_features_that_are_no_numbers(self, student: Path) -> None:
        path = student / "student.safetensors"
        record = {"student": json.dumps(read_student(student).record.model_dump())}
        save_file({n: x * 1e38 for n, x in load_file(path).items()}, path, record)
        with pytest.raises(RppError, match="differ from the student's by nan"):
            exported(student)
        assert left(student) == []

    def test_a_tower_that_cannot_be_traced(self, tmp_path: Path) -> None:
        """open_clip's own cosine attention, which it cannot run either."""
        with pytest.raises(
            RppError, match=r"local-dir:.* cannot be written as ONNX: batch1 must be a 3D"
        ) as caught:
            exported(stored(tmp_path, "cosine", towers="text"))
        assert "\n" not in str(caught.value)
        assert left(tmp_path) == []

    @pytest.mark.usefixtures("limit", "traced")
    def test_a_disk_without_room(self, student: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(RppError, match=r"image.onnx cannot be written: File too large") as caught:
                exported(student)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.exit_code == 1
        assert left(student) == []


@pytest.mark.usefixtures("traced")
def test_a_refused_graph_leaves_the_one_before_it(student: Path) -> None:
    exported(student)
    before = (student / "image.onnx").read_bytes()
    save_student(student_of(student / "model", seed=3), student)
    with pytest.raises(RppError, match="differ from the student's"):
        exported(student)
    assert (student / "image.onnx").read_bytes() == before


def test_places_that_are_no_files(student: Path) -> None:
    with pytest.raises(UsageError, match=r"is a folder; give a file"):
        export_onnx(OnnxSettings(student=student, out=student))
    (student / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be a folder"):
        export_onnx(OnnxSettings(student=student, out=student / "file" / "image.onnx"))


@pytest.mark.parametrize("out", ["/proc/image.onnx", "x" * 260])
def test_a_place_that_cannot_be_written_is_refused_before_a_student_is_read(tmp_path: Path, out: str) -> None:
    with pytest.raises(UsageError, match=r"^--out .* cannot be written: \S+") as refused:
        export_onnx(OnnxSettings(student=tmp_path / "no-run", out=tmp_path / out))
    assert refused.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [["onnxscript"], ["onnx", "onnxscript", "onnxruntime"]])
def test_without_its_packages_it_says_what_to_install(
    student: Path, names: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    out = student / "image.onnx"
    monkeypatch.setattr(sys, "argv", ["rpp", "export", "onnx", "--student", "none", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = f"error: an export to ONNX needs {', '.join(names)}: pip install 'rpp-clip[onnx]'\n"
    assert capsys.readouterr().err == error
