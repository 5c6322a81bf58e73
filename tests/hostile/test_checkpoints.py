"""Checkpoints: records and tensors that do not fit, changed bytes, code or compression in older pickles."""

import copy
import io
import json
import os
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from student_train.interchange.published import read_prompts
from student_train.runs.record import CHECKPOINT, EARLIER_CHECKPOINT
from student_train.training.checkpoint import Checkpoint
from student_train.training.optimizer import PromptOptimizer
from student_train.training.optimizers import OPTIMIZERS, OptimizerKind, sgd
from student_train.training.settings import TrainSettings
from teacher_cache.errors import UsageError
from tests.hostile.conftest import fuzzed
from tests.hostile.contract import bounded, is_one_line, tried
from tests.hostile.mutations import changed_json, damaged

WIDTH = 8
ROOMS = ("text", "image")
STEPS = 5  # of the run's schedule


class Run:
    """A run of one small layer in a folder of its own."""

    def __init__(self, out: Path, optimizer: str = "sgd", precision: str = "fp32") -> None:
        out.mkdir(exist_ok=True)
        self.out = out
        self.prompts = torch.nn.ModuleDict({"text": torch.nn.Linear(WIDTH, WIDTH)})
        settings = TrainSettings(cache="none", optimizer=optimizer, precision=precision, lr=0.1)
        parameters = list(self.prompts.parameters())
        self.optimizer = PromptOptimizer(settings, parameters, torch.device("cpu"), STEPS)
        self.checkpoint = Checkpoint(out, self.prompts, self.optimizer)

    def step(self) -> None:
        self.optimizer.backward(self.prompts["text"](torch.ones(2, WIDTH)).sum(), 0)
        self.optimizer.step()

    def resume(self) -> None:
        """Restore the checkpoint and take a step: the restored state has to be usable."""
        assert 0 <= self.checkpoint.load(STEPS) <= STEPS
        self.step()

    def state(self) -> dict[str, Any]:
        """What an earlier version pickled after the first step."""
        prompts, optimizer = self.prompts.state_dict(), self.optimizer.optimizer.state_dict()
        return {"step": 1, "prompts": dict(prompts), "optimizer": optimizer, "scaler": {}}


def read_parts(run: Run) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The record and the tensors of a checkpoint."""
    with safe_open(run.out / CHECKPOINT, framework="pt") as file:
        record = json.loads(file.metadata()["checkpoint"])
    return record, load_file(run.out / CHECKPOINT)


def write_parts(run: Run, record: Any, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, run.out / CHECKPOINT, {"checkpoint": json.dumps(record)})


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


def stepped(out: Path, optimizer: str = "sgd", precision: str = "fp32") -> Run:
    """A run with a checkpoint after its first step."""
    run = Run(out, optimizer, precision)
    run.step()
    run.checkpoint.save(1)
    return run


@given(data=st.data())
@fuzzed(100)
def test_fuzz_checkpoints(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Another record, tensors that are missing, exchanged or of other shapes, or changed bytes."""
    optimizer = data.draw(st.sampled_from(["sgd", "adamw"]))
    run = stepped(tmp_path_factory.getbasetemp() / "fuzzed", optimizer)
    record, tensors = read_parts(run)
    kind = data.draw(st.sampled_from(["record", "tensors", "bytes"]))
    if kind == "record":
        write_parts(run, data.draw(changed_json(record)), tensors)
    elif kind == "tensors":
        name, other = data.draw(st.sampled_from(sorted(tensors))), data.draw(st.sampled_from(sorted(tensors)))
        tensors[data.draw(st.sampled_from([name, other, "optimizer.x.y", "more"]))] = data.draw(
            st.sampled_from(
                [tensors[other].clone(), torch.ones(3), torch.ones(()), torch.tensor([torch.nan])]
            )
        )
        if data.draw(st.booleans()):
            del tensors[name]
        write_parts(run, record, tensors)
    else:
        path = run.out / CHECKPOINT
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    tried(Run(run.out, optimizer).resume, may_write=run.out)


@pytest.mark.filterwarnings("ignore")  # torch's, on lists that become tensors
@given(data=st.data())
@fuzzed(100)
def test_fuzz_earlier_checkpoints(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    optimizer = data.draw(st.sampled_from(["sgd", "adamw"]))
    run = Run(tmp_path_factory.getbasetemp() / "earlier", optimizer)
    run.step()
    (run.out / EARLIER_CHECKPOINT).write_bytes(data.draw(hostile_checkpoints(run.state())))
    tried(Run(run.out, optimizer).resume, may_write=run.out)


@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
@fuzzed(100)
def test_fuzz_published_checkpoints(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    context = {"ctx": torch.ones(4, WIDTH), "token_prefix": torch.ones(2, 1, WIDTH)}
    deep = {f"{room}_encoder.transformer.resblocks.1.VPT_shallow": torch.ones(4, WIDTH) for room in ROOMS}
    projection = {"proj.weight": torch.ones(9, WIDTH), "proj.bias": torch.ones(9)}
    learned = data.draw(
        st.sampled_from([{}, {**deep, "image_encoder.VPT": torch.ones(4, WIDTH)}, projection])
    )
    state = {"state_dict": {**context, **learned}, "epoch": 5}
    path = tmp_path_factory.getbasetemp() / "published.pt"
    path.write_bytes(data.draw(hostile_checkpoints(state)))
    tried(lambda: read_prompts(path))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that stopped after its first step."""
    return stepped(tmp_path / "run")


@pytest.fixture
def earlier(tmp_path: Path) -> tuple[Run, dict[str, Any]]:
    """A run that an earlier version stopped after its first step, and the state in its checkpoint."""
    run = Run(tmp_path / "earlier")
    run.step()
    torch.save(run.state(), run.out / EARLIER_CHECKPOINT)
    return run, run.state()


def test_a_kind_of_optimizer_with_wrong_tensors_fails_at_the_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sgd, "SGD", OptimizerKind(sgd.make_sgd, {"momentum": "parameter"}))
    with pytest.raises(ValueError, match=r"it lacks the tensor optimizer\.0\.momentum"):
        stepped(tmp_path / "run")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_intact_checkpoint_restores_the_state(optimizer: str, precision: str, tmp_path: Path) -> None:
    run = stepped(tmp_path / "run", optimizer, precision)
    resumed = Run(run.out, optimizer, precision)
    assert tried(resumed.resume, may_write=run.out) == "read"
    run.step()
    for ours, theirs in zip(run.prompts.parameters(), resumed.prompts.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert run.optimizer.scaler.state_dict() == resumed.optimizer.scaler.state_dict()


def test_an_earlier_checkpoint_is_replaced_by_the_next_one(earlier: tuple[Run, dict[str, Any]]) -> None:
    run, _ = earlier
    resumed = Run(run.out)
    assert resumed.checkpoint.load(STEPS) == 1
    resumed.step()
    resumed.checkpoint.save(2)
    assert [path.name for path in run.out.iterdir()] == [CHECKPOINT]
    assert Run(run.out).checkpoint.load(STEPS) == 2


def test_an_unknown_optimizer_or_format_is_not_called_damage(run: Run) -> None:
    record, tensors = read_parts(run)
    for change, found in (({"optimizer": "lion"}, "1 and the optimizer 'lion'"), ({"format": 9}, "9")):
        write_parts(run, {**record, **change}, tensors)
        with pytest.raises(UsageError, match=rf"checkpoint format {found}.*; keep the checkpoint") as refused:
            run.resume()
        assert "damaged" not in str(refused.value)
        assert "remove" not in str(refused.value)


def test_a_later_format_is_not_called_damage_whatever_its_fields_are(run: Run) -> None:
    _, tensors = read_parts(run)
    write_parts(run, {"format": 2, "steps": [1], "optimizer": "sgd"}, tensors)
    with pytest.raises(UsageError, match=r"checkpoint format 2 .*; keep the checkpoint"):
        run.resume()


def test_a_checkpoint_without_permission_is_not_called_damage(run: Run) -> None:
    (run.out / CHECKPOINT).unlink()
    (run.out / CHECKPOINT).mkdir()
    with pytest.raises(UsageError, match=r"checkpoint\.safetensors cannot be read: ") as refused:
        run.resume()
    assert "remove" not in str(refused.value)


class Touches:
    """Unpickled without limits it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place}",)


def test_no_code_of_a_checkpoint_runs(earlier: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run, state = earlier
    for zipped in (True, False):
        torch.save(
            {**state, "step": Touches(tmp_path / "ran")},
            run.out / EARLIER_CHECKPOINT,
            _use_new_zipfile_serialization=zipped,
        )
        with pytest.raises(UsageError, match=r"checkpoint\.pt is damaged .*posix\.system"):
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
WEIGHT = ("prompts", "text.weight")
NAN = torch.full((WIDTH, WIDTH), torch.nan)
REFUSED = [
    (("step",), -1, "its step is -1"),
    (("step",), STEPS + 1, "its step is 6, the run has 5"),
    (("step",), 1e300, "step: Input should be a valid integer"),
    (("step",), True, "step: Input should be a valid integer"),
    (("scaler",), {"scale": 2.0}, "its gradient scaler is of another precision"),
    (WEIGHT, NAN, "its tensor prompts.text.weight is not finite"),
    (WEIGHT, torch.ones(WIDTH, 3), r"its tensor prompts.text.weight has shape \(8, 3\), expected \(8, 8\)"),
    (MOMENTUM, torch.ones(3), r"its tensor optimizer.0.momentum_buffer has shape \(3,\), expected \(8, 8\)"),
    (MOMENTUM, torch.ones(()), r"its tensor optimizer.0.momentum_buffer has shape \(\), expected \(8, 8\)"),
    (MOMENTUM, NAN, "its tensor optimizer.0.momentum_buffer is not finite"),
    (("optimizer", "state", 0), {"exp_avg": torch.ones(1)}, "it has the tensor optimizer.0.exp_avg"),
    (
        ("optimizer", "state", 7),
        {"momentum_buffer": torch.ones(1)},
        "it has the tensor optimizer.7.momentum_buffer",
    ),
]


@pytest.mark.parametrize(("path", "value", "reason"), REFUSED)
def test_a_state_that_does_not_fit_is_refused_before_a_step(
    run: Run, path: tuple[Any, ...], value: Any, reason: str
) -> None:
    record, tensors = read_parts(run)
    if path[0] in record and path[0] != "optimizer":
        record[path[0]] = value
    elif path[0] == "prompts":
        tensors[f"prompts.{path[1]}"] = value
    elif len(path) == 4:
        tensors[f"optimizer.{path[2]}.{path[3]}"] = value
    else:
        tensors = {name: x for name, x in tensors.items() if not name.startswith(f"optimizer.{path[2]}.")}
        tensors |= {f"optimizer.{path[2]}.{name}": x for name, x in value.items()}
    write_parts(run, record, tensors)
    assert_refused(run, rf"checkpoint\.safetensors is damaged .*{reason}")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        *REFUSED,
        (WEIGHT, torch.ones(1).expand(1 << 40), "has shape"),
        (WEIGHT, torch.ones(WIDTH, WIDTH).to_sparse(), "."),
        (WEIGHT, torch.ones(WIDTH, WIDTH, device="meta"), "."),
        (("prompts",), [], "prompts: Input should be a valid dictionary"),
        (MOMENTUM, "x", "Input should be an instance of Tensor"),
        (("optimizer",), [], "optimizer: Input should be a valid"),
    ],
)
def test_an_earlier_state_that_does_not_fit_is_refused_before_a_step(
    earlier: tuple[Run, dict[str, Any]], path: tuple[Any, ...], value: Any, reason: str
) -> None:
    run, state = earlier
    torch.save(nested(state, path, value), run.out / EARLIER_CHECKPOINT)
    assert_refused(run, rf"checkpoint\.pt is damaged .*{reason}")


def assert_refused(run: Run, message: str) -> None:
    before = copy.deepcopy(run.prompts.state_dict())
    with bounded(), pytest.raises(UsageError, match=message) as refused:
        run.resume()
    assert is_one_line(str(refused.value))
    assert all(torch.equal(before[name], tensor) for name, tensor in run.prompts.state_dict().items())


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_a_state_of_adamw_without_a_moment_is_refused(name: str, tmp_path: Path) -> None:
    run = stepped(tmp_path / "run", "adamw")
    record, tensors = read_parts(run)
    del tensors[f"optimizer.1.{name}"]
    write_parts(run, record, tensors)
    assert_refused(run, f"it lacks the tensor optimizer.1.{name}")


def test_a_compressed_checkpoint_is_not_unpacked(earlier: tuple[Run, dict[str, Any]]) -> None:
    """Torch would: a file of some MB that takes some GB of memory. It writes none itself."""
    run, _ = earlier
    packed = with_pickle(
        (run.out / EARLIER_CHECKPOINT).read_bytes(), lambda data: data, compression=zipfile.ZIP_DEFLATED
    )
    (run.out / EARLIER_CHECKPOINT).write_bytes(packed)
    assert torch.load(run.out / EARLIER_CHECKPOINT, weights_only=True)["step"] == 1
    with pytest.raises(UsageError, match=r"(entries are|is) compressed"):
        run.resume()
    with pytest.raises(UsageError, match=r"cannot be read as a checkpoint of torch.save"):
        read_prompts(run.out / EARLIER_CHECKPOINT)


def test_entries_that_overlap_are_refused(earlier: tuple[Run, dict[str, Any]]) -> None:
    """Each storage has the same bytes of the file: 4 MB become a thousand times as much."""
    run, _ = earlier
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
    (run.out / EARLIER_CHECKPOINT).write_bytes(content.getvalue())
    with pytest.raises(UsageError, match=r"its entries (have more bytes than the file|overlap)"):
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
    with (
        bounded(),
        pytest.raises(UsageError, match=r"not a dense CPU tensor|code that it names \(torch\._utils\."),
    ):
        read_prompts(tmp_path / "context.pt")
