"""Students in CLIP_benchmark, the real package through its own command line, against our own evaluation."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from student_train import load_student
from student_train.clip_benchmark import file_pattern, load_rpp, main, register
from student_train.compat.clip_benchmark import accuracy
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.evaluators.evaluator import top_places
from student_train.evaluation.settings import EvalSettings
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP, save_student
from teacher_cache import open_cache
from teacher_cache.errors import UsageError
from teacher_cache.teacher.openclip import load_model
from tests.models import write_model
from tests.processes import ForkServer
from tests.student_train.conftest import PICTURES
from tests.student_train.model.test_student import changed

TEMPLATE = "a photo of a {c}."  # the cache's too


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """100 pictures of 300 classes in CLIP_benchmark's WebDataset layout."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "test").mkdir()
    shutil.copy(pictures / "fluent-flat.tar", folder / "test" / "0.tar")
    (folder / "test" / "nshards.txt").write_text("1\n")
    shutil.copy(PICTURES / "classes.txt", folder / "classnames.txt")
    (folder / "zeroshot_classification_templates.txt").write_text(f"{TEMPLATE}\n")
    return folder


def our_figures(student: Path, dataset: Path) -> dict[str, Any]:
    images, classes = str(dataset / "test" / "0.tar"), str(dataset / "classnames.txt")
    return evaluate(EvalSettings(student=str(student), images=images, classes=classes))


def clip_benchmark(monkeypatch: pytest.MonkeyPatch, dataset: Path, *arguments: str) -> dict[str, Any]:
    """What CLIP_benchmark writes into the present folder, once `arguments` are asked for."""
    command = ["clip_benchmark", "eval", "--dataset", "wds/pictures", "--dataset_root", str(dataset)]
    monkeypatch.setattr(sys, "argv", [*command, "--num_workers", "0", "--quiet", *arguments])
    main()
    (written,) = Path().glob("*.json")
    found: dict[str, Any] = json.loads(written.read_text())
    assert found["task"] == "zeroshot_classification"
    return found


def rpp(run: Path) -> list[str]:
    return ["--model_type", "rpp", "--model", str(run), "--pretrained", "none"]


def same_figures(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Not approximately: the same pictures are right."""
    metrics = found["metrics"]
    assert (metrics["acc1"], metrics["acc5"]) == (expected["top1"], expected["top5"])
    assert expected["samples"] == 100
    assert 0.1 < expected["top1"] < expected["top5"] < 1


@pytest.mark.parametrize("towers", ["both", "text", "vision"])
def test_a_run_has_the_accuracy_that_our_own_evaluation_finds(
    run_of: Callable[[str], Path], towers: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_of(towers)
    found = clip_benchmark(monkeypatch, dataset, *rpp(run), "--no_amp")
    same_figures(found, our_figures(run, dataset))
    assert (found["model"], found["pretrained"]) == (str(run), "none")


def test_the_frozen_model_has_the_accuracy_that_our_own_evaluation_finds(
    demo_cache_path: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model_type", "open_clip", "--model", open_cache(demo_cache_path).teacher["model"]]
    found = clip_benchmark(monkeypatch, dataset, *model, "--pretrained", "none", "--no_amp")
    images, classes = str(dataset / "test" / "0.tar"), str(dataset / "classnames.txt")
    frozen = EvalSettings(student="zero-shot", cache=demo_cache_path, images=images, classes=classes)
    same_figures(found, evaluate(frozen))


def test_a_data_sets_own_templates_are_known(
    run_of: Callable[[str], Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With text prompts whatever they say is replaced by what was learnt."""
    monkeypatch.chdir(tmp_path)
    own = with_templates(dataset, tmp_path / "own", "Bild: {c}\na big {c}!\n{c}, {c}\na {c}!\n")
    run = run_of("text")
    same_figures(clip_benchmark(monkeypatch, own, *rpp(run), "--no_amp"), our_figures(run, dataset))


def with_templates(dataset: Path, copy: Path, templates: str) -> Path:
    shutil.copytree(dataset, copy)
    (copy / "zeroshot_classification_templates.txt").write_text(templates)
    return copy


def test_it_runs_under_autocast_which_is_clip_benchmarks_default(
    run_of: Callable[[str], Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_of("both")
    found = clip_benchmark(monkeypatch, dataset, *rpp(run))
    assert found["metrics"]["acc1"] == pytest.approx(our_figures(run, dataset)["top1"], abs=0.05)


@pytest.fixture
def small_run(tmp_path: Path) -> Path:
    """A student with text prompts on a model of the tests, `tmp_path/model`."""
    base = load_model(str(write_model(tmp_path / "model", "gelu")))
    out = tmp_path / "run"
    out.mkdir()
    save_student(changed(PromptedCLIP(base, PromptSettings(towers="text", prompt_depth=2))), out)
    return out


def test_texts_by_class_are_read_as_they_stand(small_run: Path) -> None:
    """As CuPL's are: finished texts, of which no template says what is the name."""
    register()
    from clip_benchmark.metrics import zeroshot_classification

    student, _, tokenizer = load_rpp(str(small_run), "none")
    texts = {
        "cat": ["a photo of a cat.", "a pet that purrs"],
        "emu": ["a bird that runs", "the plastic emu."],
    }
    weights_DC = zeroshot_classification.zero_shot_classifier(
        student, tokenizer, list(texts), texts, "cpu", amp=False
    )
    for name, found in zip(texts, weights_DC.T, strict=True):
        features = student.encode_text(student.base.tokenizer(texts[name]), normalize=True)
        expected = torch.nn.functional.normalize(features.mean(dim=0), dim=0)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_second_registration_changes_nothing() -> None:
    cli = register()
    wrapped = cli.run
    assert register() is cli
    assert cli.run is wrapped
    from clip_benchmark.models import MODEL_TYPES

    assert MODEL_TYPES.count("rpp") == 1


def test_the_frozen_model_may_have_moved(small_run: Path) -> None:
    expected = load_student(small_run).class_features(["cat"])
    moved = shutil.move(small_run.parent / "model", small_run.parent / "moved")
    with pytest.raises(
        UsageError, match=r"^give the run's frozen model with --pretrained.*none: .*no model folder"
    ):
        load_rpp(str(small_run), "none")
    for place in (str(moved), f"local-dir:{moved}"):
        student, _, _ = load_rpp(str(small_run / "student.safetensors"), place)
        assert torch.equal(student.class_features(["cat"]), expected)
    shutil.move(moved, small_run.parent / "model")
    with pytest.raises(UsageError, match=r"^give --pretrained none .*\. With --pretrained laion400m_e32: "):
        load_rpp(str(small_run), "laion400m_e32")  # CLIP_benchmark's default


def test_names_that_are_paths_become_file_names(tmp_path: Path) -> None:
    pattern = "out/{dataset}_{pretrained}_{model}_{language}.json"
    found = file_pattern(pattern, "runs/t{2}/", "local-dir:/models/vit")
    rest = {"dataset": "d", "language": "en"}
    assert found.format(**rest) == "out/d_local-dir_models_vit_runs_t{2}_en.json"
    weights = tmp_path / "weights.pt"
    weights.touch()
    found = file_pattern(pattern, "ViT-B-16", str(weights))
    assert found == "out/{dataset}_{pretrained}_ViT-B-16_{language}.json"


def test_accuracy_is_the_plain_count() -> None:
    logits = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]])
    assert accuracy(logits, torch.tensor([0, 2, 2, 1]), (1, 2, 3)) == [0.5, 0.75, 1.0]


def test_equal_logits_fall_as_in_clip_benchmark() -> None:
    """To whichever torch's topk takes, as in its own `accuracy`; `rpp eval` takes the lower index."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 20, generator=generator)
    logits[:, 11] = logits[:, 3]  # two classes of one name
    target = torch.randint(20, (400,), generator=generator)
    target[:200] = 3 + 8 * (torch.arange(200) % 2)
    logits[:200, [3, 11]] += 5
    first_TB = logits.topk(5, 1, True, True)[1].t()  # clip_benchmark/metrics/zeroshot_classification.py
    right_TB = first_TB.eq(target.view(1, -1).expand_as(first_TB))
    expected = [right_TB[:k].reshape(-1).float().sum().item() / 400 for k in (1, 5)]
    assert accuracy(logits, target, (1, 5)) == pytest.approx(expected, abs=1e-9)
    distinct = torch.tensor([c for c in range(20) if c != 11])
    of_others = target != 11
    places = top_places(logits[of_others][:, distinct], torch.searchsorted(distinct, target[of_others]))
    found = accuracy(logits[of_others][:, distinct], torch.searchsorted(distinct, target[of_others]))
    assert found == [int((places == 0).sum()) / int(of_others.sum())]


def test_a_run_that_is_none_is_one_line_in_a_shell(
    processes: ForkServer, dataset: Path, tmp_path: Path
) -> None:
    command = ["-m", "student_train.clip_benchmark", "eval", *rpp(Path("nowhere"))]
    command += ["--dataset", "wds/pictures", "--dataset_root", str(dataset)]
    ended = processes.call("python", *command, cwd=tmp_path)
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "error: no student at nowhere"
    assert "Traceback" not in ended.err


def test_a_template_without_a_name_is_one_line(
    small_run: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = with_templates(dataset, tmp_path / "own", "a photo of a {c}.\na photo\n")
    with pytest.raises(SystemExit) as ended:
        clip_benchmark(monkeypatch, own, *rpp(small_run))
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: the template 'a photo' has no place for the class name")


def test_without_the_package_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "clip_benchmark"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "clip_benchmark", None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "CLIP_benchmark cannot be imported" in line
    assert line.endswith("install it: pip install clip-benchmark")
