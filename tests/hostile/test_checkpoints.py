"""Checkpoints: code in pickles, compressed entries, tensors of any shape that stand on one number."""

import copy
import io
import os
import pickletools
import zipfile
from collections import Counter, OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_train.interchange.published import read_context
from student_train.runs.folder import RunFolder
from student_train.runs.record import CHECKPOINT
from teacher_cache.errors import UsageError
from teacher_cache.teacher.checkpoint_file import load_plain
from tests.hostile.conftest import fuzzed
from tests.hostile.contract import bounded, is_one_line, tried
from tests.hostile.mutations import changed_json, damaged

WIDTH = 8
STEPS = 5  # of the run's schedule


class Run:
    """A run of one small layer that two steps were taken of, in a folder of its own."""

    def __init__(self, out: Path, optimizer: str = "sgd") -> None:
        out.mkdir(exist_ok=True)
        self.out = out
        self.prompts = torch.nn.ModuleDict({"text": torch.nn.Linear(WIDTH, WIDTH)})
        parameters = self.prompts.parameters()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, 0.1, momentum=0.9)
            if optimizer == "sgd"
            else torch.optim.AdamW(parameters)
        )
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.folder = RunFolder(out, self.prompts, self.optimizer, scaler)

    def step(self) -> None:
        for group in self.optimizer.param_groups:  # as the loop does at every step
            group["lr"] = 0.1
        self.prompts["text"](torch.ones(2, WIDTH)).sum().backward()
        self.optimizer.step()

    def resume(self) -> None:
        """Take the checkpoint up and go on: what it holds has to serve."""
        try:
            step = self.folder.resume(STEPS)
            assert 0 <= step <= STEPS
            self.step()
        finally:
            self.folder.close()


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def with_pickle(content: bytes, change: Any, **options: Any) -> bytes:
    """A file of torch.save with another pickle in it."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(changed, "w", **options) as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename, change(data) if entry.filename.endswith("data.pkl") else data)
    return changed.getvalue()


def opcodes(content: bytes) -> list[tuple[int, int]]:
    """Where each opcode of a pickle begins and ends."""
    places = [place for _, _, place in pickletools.genops(content)]
    return list(zip(places, [*places[1:], len(content)], strict=True))


@st.composite
def damaged_pickles(draw: st.DrawFn, content: bytes) -> bytes:
    """A pickle with opcodes taken away, doubled, exchanged or damaged."""
    places = opcodes(content)
    for _ in range(draw(st.integers(1, 3))):
        (start, stop), (other, end) = draw(st.sampled_from(places)), draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["drop", "double", "exchange", "byte"]))
        if kind == "byte":
            return draw(damaged(content, 3))
        middle = {"drop": b"", "double": content[start:stop] * 2, "exchange": content[other:end]}[kind]
        content = content[:start] + middle + content[stop:]
        try:
            places = opcodes(content)
        except Exception:
            return content
    return content


@st.composite
def hostile_checkpoints(draw: st.DrawFn, state: dict[str, Any]) -> bytes:
    """A checkpoint with other fields, with a damaged pickle, or with changed bytes."""
    kind = draw(st.sampled_from(["fields", "fields", "pickle", "pickle", "bytes"]))
    if kind == "fields":
        return saved(draw(changed_json(state)))
    content = saved(state)
    if kind == "pickle":
        return with_pickle(content, lambda data: draw(damaged_pickles(data)))
    return draw(damaged(content))


@lru_cache
def state_of(base: Path, optimizer: str) -> dict[str, Any]:
    run = Run(base / f"run-{optimizer}", optimizer)
    run.step()
    run.folder.save(1)
    state: dict[str, Any] = torch.load(run.out / CHECKPOINT, weights_only=True)
    return {**state, "prompts": dict(state["prompts"])}


@pytest.mark.filterwarnings("ignore")  # torch's, on lists that become tensors
@given(data=st.data())
@fuzzed(100)
def test_fuzz_checkpoints(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    base, optimizer = tmp_path_factory.getbasetemp(), data.draw(st.sampled_from(["sgd", "adamw"]))
    state = state_of(base, optimizer)
    run = Run(base / "resumed", optimizer)
    (run.out / CHECKPOINT).write_bytes(data.draw(hostile_checkpoints(state)))
    tried(run.resume, may_write=run.out)


@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
@fuzzed(100)
def test_fuzz_published_checkpoints(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    state = {"state_dict": {"ctx": torch.ones(4, WIDTH), "token_prefix": torch.ones(2, 1, WIDTH)}, "epoch": 5}
    path = tmp_path_factory.getbasetemp() / "published.pt"
    path.write_bytes(data.draw(hostile_checkpoints(state)))
    tried(lambda: read_context(path))


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Run, dict[str, Any]]:
    """A run that was stopped behind its first step, and the state in its checkpoint."""
    run = Run(tmp_path / "run")
    run.step()
    run.folder.save(1)
    return run, torch.load(run.out / CHECKPOINT, weights_only=True)


def test_a_checkpoint_that_was_left_alone_serves(checkpoint: tuple[Run, dict[str, Any]]) -> None:
    assert tried(checkpoint[0].resume, may_write=checkpoint[0].out) == "read"


class Touches:
    """Unpickled without limits it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place}",)


def test_no_code_of_a_checkpoint_runs(checkpoint: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run, state = checkpoint
    for zipped in (True, False):
        torch.save(
            {**state, "step": Touches(tmp_path / "ran")},
            run.out / CHECKPOINT,
            _use_new_zipfile_serialization=zipped,
        )
        with pytest.raises(UsageError, match=r"checkpoint\.pt cannot be read .*GLOBAL posix\.system"):
            run.resume()
    assert not (tmp_path / "ran").exists()


def nested(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(state)
    holder: Any = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return changed


MOMENTUM = ("optimizer", "state", 0, "momentum_buffer")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("step",), -1, "its step is -1"),
        (("step",), STEPS + 1, "its step is 6, the run has 5"),
        (("step",), 10**9, "its step is 1000000000, the run has 5"),
        (("step",), 1e300, r"its step is 1e\+300"),
        (("step",), float("inf"), "its step is inf"),
        (("step",), True, "its step is True"),
        (("prompts", "text.weight"), torch.full((WIDTH, WIDTH), torch.nan), "its prompts are not finite"),
        (("prompts", "text.weight"), torch.ones(WIDTH, 3), "Error"),
        (("prompts", "text.weight"), torch.ones(1).expand(1 << 40), "Error"),
        (("prompts",), [], "Expected state_dict"),
        (MOMENTUM, torch.ones(3), "its optimizer's momentum_buffer does not belong to the prompts"),
        (MOMENTUM, torch.full((WIDTH, WIDTH), torch.inf), "its optimizer's momentum_buffer does not belong"),
        (MOMENTUM, "x", "its optimizer's momentum_buffer does not belong"),
        (("optimizer", "state", 0), {"exp_avg": torch.ones(1)}, "its optimizer keeps exp_avg"),
        (("optimizer", "param_groups", 0, "momentum"), "x", "its optimizer has another momentum"),
        (("optimizer", "param_groups", 0, "weight_decay"), 1e30, "its optimizer has another weight_decay"),
        (("optimizer", "param_groups"), [], "."),
    ],
)
def test_a_state_that_does_not_fit_is_refused_at_once(
    checkpoint: tuple[Run, dict[str, Any]], path: tuple[Any, ...], value: Any, reason: str
) -> None:
    """Rather than at a step some way on, in torch's words."""
    run, state = checkpoint
    torch.save(nested(state, path, value), run.out / CHECKPOINT)
    with (
        bounded(),
        pytest.raises(UsageError, match=rf"checkpoint\.pt cannot be read \(.*{reason}") as refused,
    ):
        run.resume()
    assert is_one_line(str(refused.value))


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_a_state_of_adamw_without_a_moment_is_refused(name: str, tmp_path: Path) -> None:
    state = state_of(tmp_path, "adamw")
    run = Run(tmp_path / "resumed", "adamw")
    torch.save(nested(state, ("optimizer", "state", 1, name), None), run.out / CHECKPOINT)
    with pytest.raises(UsageError, match=f"its optimizer's {name} does not belong to the prompts"):
        run.resume()


def test_a_compressed_checkpoint_is_not_unpacked(
    checkpoint: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    """Torch would: a file of some MB that takes some GB of memory. It writes none itself."""
    run, _ = checkpoint
    packed = with_pickle(
        (run.out / CHECKPOINT).read_bytes(), lambda data: data, compression=zipfile.ZIP_DEFLATED
    )
    (run.out / CHECKPOINT).write_bytes(packed)
    assert torch.load(run.out / CHECKPOINT, weights_only=True)["step"] == 1
    with pytest.raises(UsageError, match=r"its entries are compressed"):
        run.resume()
    with pytest.raises(UsageError, match=r"is no checkpoint of torch.save, or is damaged"):
        read_context(run.out / CHECKPOINT)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_plain_state_has_is_loaded(zipped: bool, tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = [whole, whole.T, whole[1:, ::2], whole[0, 0], torch.ones(0, 3), torch.ones(2).expand(5, 2)]
    kinds = [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
    kinds += [torch.complex64, torch.complex128, torch.int32, torch.int16, torch.int8]
    if zipped:  # the older format cannot hold the newer types
        kinds += [torch.uint16, torch.float8_e4m3fn]
    tensors += [whole.to(kind) for kind in kinds]
    state = {
        "tensors": OrderedDict((str(n), tensor) for n, tensor in enumerate(tensors)),
        "parameter": torch.nn.Parameter(whole),
        "others": [None, True, 3, 2**80, -0.5, "a", b"\xff\0", (1, ()), [[]], {1: 2, 0.5: 1, None: 0}],
        "counted": Counter("abca"),
        "shape": whole.shape,
        "device": whole.device,
        "kind": torch.float32,
    }
    torch.save(state, tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
    loaded = load_plain(tmp_path / "state.pt")
    for found, tensor in zip(loaded.pop("tensors").values(), tensors, strict=True):
        assert (found.dtype, found.shape, found.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert torch.equal(found.to(torch.complex128), tensor.to(torch.complex128))
    assert torch.equal(loaded.pop("parameter"), whole)
    assert loaded == {name: state[name] for name in loaded}
    assert len(loaded) == 5


def test_entries_that_overlap_are_refused(checkpoint: tuple[Run, dict[str, Any]]) -> None:
    """Each storage has the same bytes of the file: 4 MB become a thousand times as much."""
    run, _ = checkpoint
    many = io.BytesIO(saved({str(number): torch.ones(1000) for number in range(50)}))
    content = io.BytesIO()
    with zipfile.ZipFile(many) as source, zipfile.ZipFile(content, "w") as target:
        for entry in source.infolist():
            if "/data/" not in entry.filename or entry.filename.endswith("/0"):
                target.writestr(entry.filename, source.read(entry))
        for number in range(1, 50):
            again = copy.copy(target.getinfo("archive/data/0"))
            again.filename = f"archive/data/{number}"
            target.filelist.append(again)
    assert len(content.getvalue()) < 20_000
    assert len(torch.load(io.BytesIO(content.getvalue()), weights_only=True)) == 50
    (run.out / CHECKPOINT).write_bytes(content.getvalue())
    with pytest.raises(UsageError, match=r"its entries have more bytes than the file"):
        run.resume()


@pytest.mark.parametrize(
    "context",
    [
        torch.ones(1, 1).expand(1 << 21, 1 << 21),
        torch.ones(4, 8).to_sparse(),
        torch.ones(4, 8, device="meta"),
    ],
    ids=["a view of one number", "sparse", "without values"],
)
def test_context_vectors_that_are_larger_than_their_file_are_refused(
    context: torch.Tensor, tmp_path: Path
) -> None:
    torch.save({"state_dict": {"ctx": context}}, tmp_path / "context.pt")
    with bounded(), pytest.raises(UsageError, match=r"no plain tensor|code that it names \(torch\._utils\."):
        read_context(tmp_path / "context.pt")
