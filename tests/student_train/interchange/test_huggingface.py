"""Students in Hugging Face's layout: what is written, what comes back, what is refused, what cards say."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file

from pipeline.cli import main
from student_train import PromptedCLIP, load_student
from student_train.evaluation.models import FeatureModels
from student_train.evaluation.settings import ModelSettings
from student_train.interchange.huggingface import export_huggingface
from student_train.interchange.settings import HuggingFaceSettings
from student_train.model.model_card import model_card
from student_train.model.settings import PromptSettings
from student_train.model.stored import StudentRecord
from student_train.model.student import save_student
from student_train.training.loop import train
from teacher_cache.errors import RppError, UsageError
from teacher_cache.teacher.openclip import load_model
from tests.models import loaded, write_model
from tests.student_train.conftest import PICTURES, build
from tests.student_train.interchange.hub_server import hub_server
from tests.student_train.model.test_student import NAMES, changed
from tests.student_train.training.test_loop import settings

FILES = ["README.md", "config.json", "model.safetensors"]
TRAINING = {
    "settings": {},
    "teacher": {"model": "ViT-B-16", "pretrained": "openai", "weights_digest": ""},
    "cache": {},
    "templates": [],
}
UNKNOWN = "It is unknown how these prompts were trained"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, cache and run of a teacher; read-only."""
    folder = tmp_path_factory.mktemp("trained")
    cache = build(folder, "gelu")
    places = {"images": str(PICTURES / "noto.tar"), "student": str(folder / "model-gelu-0")}
    asked = settings(cache, folder / "run", towers="vision", max_steps=1, temperature=2.0, **places)
    train(asked)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "gelu")


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """A student that `save_pretrained` wrote."""
    student_of(model).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def student_of(model: Path, seed: int = 0, **prompts: Any) -> PromptedCLIP:
    settings = PromptSettings(**{"prompt_depth": 2, **prompts})
    return changed(PromptedCLIP(load_model(str(model)), settings, seed))


def exported(student: Path, out: Path, results: Path | None = None) -> str:
    """The card of an export."""
    export_huggingface(HuggingFaceSettings(student=student, out=out, results=results))
    return (out / "README.md").read_text(encoding="utf-8")


def other_templates(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, as of a cache with templates of its own."""
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    record = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps({**record, "templates": ["a bad {}.", "a {}."]}))
    return run


def rows_of(card: str) -> list[list[str]]:
    """Cells of every line of the card's tables."""
    return [line[2:-2].split(" | ") for line in card.splitlines() if line.startswith("| ")]


class TestRoundTrip:
    @pytest.mark.parametrize("carry", ["replace", "residual"])
    @pytest.mark.parametrize("structure", ["qkv", "shared"])
    def test_the_same_student_comes_back(
        self, model: Path, tmp_path: Path, structure: str, carry: str
    ) -> None:
        student = student_of(model, seed=3, prompt_structure=structure, carry=carry)
        student.save_pretrained(tmp_path / "saved")
        assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == FILES
        images = torch.randn(2, 3, 32, 32)
        for again in (
            PromptedCLIP.from_pretrained(tmp_path / "saved", model=str(model)),
            load_student(tmp_path / "saved", model=str(model)),
            load_student(tmp_path / "saved" / "model.safetensors", model=str(model)),
        ):
            assert not again.training
            assert again.settings == student.settings
            assert again.prompt_tensors().keys() == student.prompt_tensors().keys()
            for name, tensor in student.prompt_tensors().items():
                assert torch.equal(again.prompt_tensors()[name], tensor)
            assert torch.equal(again.encode_image(images), student.encode_image(images))
            assert torch.equal(again.class_features(NAMES), student.class_features(NAMES))

    def test_the_file_holds_the_prompts_alone(self, folder: Path, model: Path, tmp_path: Path) -> None:
        student = student_of(model)
        save_student(student, tmp_path)
        ours, theirs = load_file(folder / "model.safetensors"), load_file(tmp_path / "student.safetensors")
        assert ours.keys() == theirs.keys() == {f"{t}.{s}" for t in ("text", "vision") for s in "qkv"}
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_a_model_of_the_folders_name_is_found_here(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert PromptedCLIP.from_pretrained("saved").base.name == f"local-dir:{tmp_path / 'model'}"
        monkeypatch.chdir(folder)
        with pytest.raises(UsageError, match=r"no model folder .*give its new place with --model"):
            PromptedCLIP.from_pretrained(folder)

    def test_other_weights_are_refused(self, folder: Path, tmp_path: Path) -> None:
        other = write_model(tmp_path / "other", "gelu", seed=9)
        with pytest.raises(UsageError, match=r"trained on weights blake2b:\w+, but local-dir:.* has blake2b"):
            PromptedCLIP.from_pretrained(folder, model=str(other))

    def test_it_is_pushed_and_fetched(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        student = student_of(model)
        with hub_server() as server:
            monkeypatch.setattr(constants, "ENDPOINT", server.url)
            template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            figures = {"figures": [{"images": "val", "top1": 0.25}]}
            student.push_to_hub("org/repo", token="hf_none", model_card_kwargs=figures)
            assert sorted(server.files) == FILES
            assert "| val | 25.00 |" in server.files["README.md"].decode()
            here: dict[str, Any] = {"cache_dir": tmp_path / "hub", "token": False, "model": str(model)}
            again = PromptedCLIP.from_pretrained("org/repo", **here)
            images = torch.randn(2, 3, 32, 32)
            assert torch.equal(again.encode_image(images), student.encode_image(images))
            with pytest.raises(UsageError, match=r"no folder org/none, and no readable student on the hub"):
                PromptedCLIP.from_pretrained("org/none", **here)
            server.files = {"pytorch_model.bin": b"", "config.json": server.files["config.json"]}
            with pytest.raises(UsageError, match=r"Entry Not Found .*model.safetensors"):
                PromptedCLIP.from_pretrained("org/repo", force_download=True, **here)
        PromptedCLIP.from_pretrained("org/repo", local_files_only=True, **here)
        with pytest.raises(RppError, match="not in the hub's cache"):
            PromptedCLIP.from_pretrained("org/other", local_files_only=True, **here)
        with pytest.raises(UsageError, match="neither a folder nor ORG/REPO"):
            PromptedCLIP.from_pretrained(tmp_path / "nowhere")

    def test_making_a_student_copies_no_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The mixin would copy the arguments, the frozen model among them, into a configuration."""
        base = loaded("gelu")

        def refuse(memo: object) -> None:
            raise AssertionError("the frozen model is copied")

        monkeypatch.setattr(base.model, "__deepcopy__", refuse, raising=False)
        assert PromptedCLIP(base, PromptSettings()).clip is base.model


class TestProvenance:
    def test_the_folder_tells_how_it_was_trained_and_nothing_of_the_machine(
        self, trained: Path, tmp_path: Path
    ) -> None:
        card = exported(trained / "run", tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
        for path in (tmp_path / "out").iterdir():
            assert str(trained.parent).encode() not in path.read_bytes()
            assert str(PICTURES).encode() not in path.read_bytes()
        record = json.loads((trained / "run" / "settings.json").read_text())
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["model"] == "local-dir:model-gelu-0"
        assert config["weights_digest"] == record["student"]["weights_digest"]
        assert config["training"]["settings"]["temperature"] == 2.0
        for name in ("sample_table_digest", "vocabulary_digest"):
            assert config["training"]["cache"][name] == record["cache"][name]
            assert record["cache"][name] in card
        assert f"- teacher: model-gelu-0, weights {record['cache']['teacher']['weights_digest']}" in card
        rows = rows_of(card)
        assert ["temperature", "2.0"] in rows
        assert ["prompt\\_length", "3"] in rows
        assert ["shots", "none"] in rows
        assert ["templates", '\\["a photo of a {}."\\]'] in rows
        assert not any(row[0] in ("out", "images", "cache") for row in rows)
        assert UNKNOWN not in card

    def test_a_loaded_student_remembers_it(self, trained: Path, tmp_path: Path) -> None:
        exported(trained / "run", tmp_path / "out")
        first = (tmp_path / "out" / "config.json").read_text()
        student = load_student(trained / "run")
        student.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / "config.json").read_text() == first
        moved = PromptedCLIP.from_pretrained(tmp_path / "again", model=str(trained / "model-gelu-0"))
        assert moved.provenance == student.provenance
        moved.save_pretrained(tmp_path / "third")
        assert (tmp_path / "third" / "config.json").read_text() == first
        assert UNKNOWN not in (tmp_path / "third" / "README.md").read_text()

    def test_a_student_without_a_run(self, trained: Path, model: Path, tmp_path: Path) -> None:
        assert UNKNOWN in exported(trained / "run" / "student.safetensors", tmp_path / "bare")
        save_student(student_of(model), tmp_path)
        card = exported(tmp_path, tmp_path / "out")
        assert UNKNOWN in card
        assert ["prompt\\_depth", "2"] in rows_of(card)
        assert json.loads((tmp_path / "out" / "config.json").read_text())["training"] is None

    def test_its_templates_are_those_of_its_cache(self, trained: Path, tmp_path: Path) -> None:
        model = str(trained / "model-gelu-0")
        exported(other_templates(trained, tmp_path), tmp_path / "out")
        layout = ModelSettings(student=str(tmp_path / "out"), model=model)
        assert FeatureModels().load(layout).templates == ("a bad {}.", "a {}.")
        bare = ModelSettings(student=str(tmp_path / "out" / "model.safetensors"), model=model)
        assert FeatureModels().load(bare).templates == ("a photo of a {}.",)

    def test_evaluation_takes_the_folder(
        self,
        trained: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def rpp(*arguments: str) -> Any:
            monkeypatch.setattr(sys, "argv", ["rpp", *arguments, "--json"])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code
            return json.loads(capsys.readouterr().out)

        data = ["--images", str(PICTURES / "noto.tar"), "--classes", str(PICTURES / "classes.txt")]
        data += ["--metrics", "accuracy", "--metrics", "agreement"]
        run = other_templates(trained, tmp_path)
        of_run = rpp("eval", "--student", str(run), *data)
        (tmp_path / "eval.json").write_text(json.dumps(of_run))
        command = ["--student", str(run), "--results", str(tmp_path / "eval.json")]
        files = rpp("export", "huggingface", *command, "--out", str(tmp_path / "out"))
        assert files == {name: str(tmp_path / "out" / name) for name in FILES}
        (title, figures) = rows_of((tmp_path / "out" / "README.md").read_text())[-3::2]
        shown = dict(zip(title, figures, strict=True))
        assert shown["top-1 %"] == f"{100 * of_run['top1']:.2f}"
        assert (shown["student"], shown["images"], shown["samples"]) == ("run", "noto.tar", "300")
        where = ["--student", str(tmp_path / "out"), "--model", str(trained / "model-gelu-0")]
        of_folder = rpp("eval", *where, *data)
        assert of_run["kl"] > 0
        assert {**of_folder, "student": None} == {**of_run, "student": None}

    def test_a_run_starts_from_the_folder(self, trained: Path, tmp_path: Path) -> None:
        exported(trained / "run", tmp_path / "out")
        (cache,) = trained.glob("*.zarr")
        first = {"towers": "vision", "max_steps": 1, "images": str(PICTURES / "noto.tar")}
        train(settings(cache, tmp_path / "second", init=tmp_path / "out", lr=1e-9, **first))
        for name, tensor in load_file(tmp_path / "second" / "student.safetensors").items():
            before = load_file(tmp_path / "out" / "model.safetensors")[name]
            torch.testing.assert_close(tensor, before, atol=1e-6, rtol=0)


class TestCard:
    def test_the_head_names_the_hubs_own_model(self) -> None:
        def base_model(name: str, pretrained: str | None) -> str | None:
            record = StudentRecord(
                prompts=PromptSettings(), model=name, pretrained=pretrained, weights_digest=""
            )
            card = model_card(record, None)
            data = ModelCard(str(card)).data
            assert data.library_name == "rpp"
            assert data.pipeline_tag == "zero-shot-image-classification"
            assert {"clip", "open_clip"} <= set(data.tags)
            assert "arxiv.org/abs/2409.06166" in card.text
            assert "/home/a" not in str(card)
            return data.base_model

        assert base_model("ViT-B-16", "openai") == "timm/vit_base_patch16_clip_224.openai"
        assert base_model("hf-hub:org/clip", None) == "org/clip"
        assert base_model("local-dir:/home/a/clip", None) is None
        assert base_model("ViT-B-16", "/home/a/weights.pt") is None

    def test_names_of_others_do_not_break_the_table(self, model: Path) -> None:
        figures = [
            {
                "data": "Food|101",
                "student": "a|b",
                "images": "/home/a/<b>*x*.tar",
                "classes": "`cats` & [dogs](x)",
                "top1": 0.5,
            },
            {"student": "c\nd\\", "images": "s3://bucket/e_f", "classes": 3, "ece": 0.01234, "kl": 0.5},
        ]
        rows = rows_of(student_of(model).generate_model_card(figures=figures).text)[-4:]
        assert rows[0] == ["student", "data set", "images", "classes", "top-1 %", "ECE", "KL to teacher"]
        name = r"\`cats\` &#38; \[dogs\](x)"
        assert rows[2] == ["a&#124;b", "Food&#124;101", r"&#60;b&#62;\*x\*.tar", name, "50.00", "", ""]
        assert rows[3] == ["c d\\\\", "", r"e\_f", "3", "", "0.0123", "0.5000"]

    def test_known_numbers_alone_become_columns(self, model: Path) -> None:
        names = ["top1", "top5", "per_class", "base", "new", "harmonic", "agreement", "ece", "kl"]
        row = dict.fromkeys(names, 0.125)
        others = {"seconds": 3.5, "skipped": 0, "notes": ["x"]}
        *_, title, _, figures = rows_of(student_of(model).generate_model_card([{**row, **others}]).text)
        assert len(title) == len(names)
        assert figures == ["12.50"] * 6 + ["0.1250", "12.50", "0.1250"]
        for value in (True, "0.5", None, float("nan"), [0.5]):
            assert "No figures" in student_of(model).generate_model_card([{"top1": value}]).text

    @pytest.mark.parametrize("wrap", [lambda row: row, lambda row: {"rows": [row, {"teacher": "x"}]}])
    def test_results_are_one_evaluation_or_several(
        self, trained: Path, tmp_path: Path, wrap: Callable[[Any], Any]
    ) -> None:
        results = tmp_path / "eval.json"
        results.write_text(json.dumps(wrap({"student": "zero-shot", "images": "v.tar", "top5": 0.75})))
        rows = rows_of(exported(trained / "run", tmp_path / "out", results))
        assert rows[-3::2] == [["student", "images", "top-5 %"], ["zero-shot", "v.tar", "75.00"]]

    def test_a_recipes_results_are_found(self, trained: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
        evals = [{"student": name, "top1": 0.5} for name in ("zero-shot", str(run))]
        (run / "results.json").write_text(json.dumps({"build": {}, "train": {"loss": 1}, "evals": evals}))
        rows = rows_of(exported(run, tmp_path / "out"))
        assert rows[-2:] == [["zero-shot", "50.00"], ["run", "50.00"]]
        (run / "results.json").write_text('{"evals": []}')
        assert "No figures" in exported(run, tmp_path / "out")

    def test_figures_of_other_students_stay_out(self, trained: Path, tmp_path: Path) -> None:
        results = tmp_path / "eval.json"
        names = ["zero-shot", f"{trained}/run/", "another"]
        results.write_text(json.dumps({"rows": [{"student": name, "top1": 0.5} for name in names]}))
        rows = rows_of(exported(trained / "run", tmp_path / "out", results))
        assert rows[-2:] == [["zero-shot", "50.00"], ["run", "50.00"]]
        results.write_text(json.dumps({"rows": [{"student": name, "top1": 0.5} for name in "ab"]}))
        with pytest.raises(UsageError, match="has no figures of"):
            exported(trained / "run", tmp_path / "other", results)

    @pytest.mark.parametrize(
        ("content", "said"),
        [("{", "is not the output of rpp eval"), ("[]", "has no figures"), ('{"loss": 1}', "has no figures")],
    )
    def test_results_without_figures(self, trained: Path, tmp_path: Path, content: str, said: str) -> None:
        (tmp_path / "eval.json").write_text(content)
        with pytest.raises(UsageError, match=said):
            exported(trained / "run", tmp_path / "out", tmp_path / "eval.json")
        with pytest.raises(UsageError, match="cannot be read"):
            exported(trained / "run", tmp_path / "out", tmp_path / "none.json")
        assert not (tmp_path / "out").exists()

    def test_the_export_writes_it_anew_and_save_pretrained_keeps_it(
        self, trained: Path, tmp_path: Path
    ) -> None:
        exported(trained / "run", tmp_path / "out")
        (tmp_path / "out" / "README.md").write_text("mine")
        load_student(trained / "run").save_pretrained(tmp_path / "out")
        assert (tmp_path / "out" / "README.md").read_text() == "mine"
        assert exported(trained / "run", tmp_path / "out").startswith("---\n")


class TestWrongFolders:
    def rewritten(self, folder: Path, **others: Any) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **others}))

    def refused(self, folder: Path, model: Path, said: str) -> None:
        for load in (PromptedCLIP.from_pretrained, load_student):
            with pytest.raises(UsageError, match=said) as caught:
                load(folder, model=str(model))
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "others",
        [
            {"prompts": PromptSettings(prompt_depth=3).model_dump()},
            {"weights_digest": "blake2b:00"},
            {"model": "local-dir:other"},
            {"pretrained": "openai"},
            {"safetensors_digest": "blake2b:00"},
        ],
    )
    def test_a_changed_configuration(self, folder: Path, model: Path, others: dict[str, Any]) -> None:
        self.rewritten(folder, **others)
        self.refused(folder, model, rf"disagree \({next(iter(others))}\): one of them was changed")

    def test_prompts_of_another_student(self, folder: Path, model: Path, tmp_path: Path) -> None:
        student_of(model, seed=4).save_pretrained(tmp_path / "other")
        shutil.copy(tmp_path / "other" / "model.safetensors", folder)
        self.refused(folder, model, r"disagree \(safetensors_digest\)")

    @pytest.mark.parametrize("content", ["", "[]", "3", '{"format', "\udcff", '{"format": "rpp-student-1"}'])
    def test_a_damaged_configuration(self, folder: Path, model: Path, content: str) -> None:
        (folder / "config.json").write_text(content, errors="surrogateescape")
        self.refused(folder, model, r"config.json is damaged or not a student")

    @pytest.mark.parametrize(
        "training",
        [
            *[3, {}, {**TRAINING, "cache": 3}, {**TRAINING, "settings": None}],
            *({**TRAINING, "teacher": teacher} for teacher in ({}, {"model": "a", "weights_digest": 3})),
            {**TRAINING, "teacher": {"model": "a", "weights_digest": "b", "pretrained": 3}},
        ],
    )
    def test_a_damaged_training(self, folder: Path, model: Path, training: Any) -> None:
        self.rewritten(folder, training=training)
        self.refused(folder, model, r"config.json is damaged or not a student")

    def test_templates_that_are_no_texts(self, folder: Path, model: Path) -> None:
        self.rewritten(folder, training={**TRAINING, "templates": [3]})
        self.refused(folder, model, "'templates' are not strings")

    def test_a_foreign_model(self, folder: Path, model: Path) -> None:
        (folder / "config.json").write_text('{"architectures": ["BertModel"], "seed": 3}')
        self.refused(folder, model, "is not a student")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_half_a_folder(self, folder: Path, model: Path, name: str) -> None:
        (folder / name).unlink()
        self.refused(folder, model, rf"has no {name}")

    def test_nothing_is_unpickled(self, folder: Path, model: Path, tmp_path: Path) -> None:
        class Code:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "ran",))

        (folder / "model.safetensors").write_bytes(pickle.dumps(Code()))
        self.refused(folder, model, "is damaged or not a student")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        self.refused(folder, model, r"has no model.safetensors")
        assert not (tmp_path / "ran").exists()

    def test_a_runs_folder_is_not_written_into(self, trained: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
        with pytest.raises(UsageError, match="has a run or its student"):
            exported(run, run)
        with pytest.raises(UsageError, match="has a run or its student"):
            load_student(run).save_pretrained(run)
        assert not (run / "model.safetensors").exists()

    @pytest.mark.parametrize("name", ["README.md", "config.json"])
    def test_a_full_disk_is_one_line_and_leaves_nothing_half(
        self, trained: Path, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / f"{name}.tmp").symlink_to("/dev/full")
        with pytest.raises(RppError, match="cannot be written") as caught:
            exported(trained / "run", tmp_path)
        assert caught.value.exit_code == 1
        assert not (tmp_path / name).exists()
        assert not list(tmp_path.glob("*.tmp"))

    def test_what_stands_in_the_way_is_one_line(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors.tmp").mkdir()  # safetensors has an error of its own
        with pytest.raises(RppError, match=r"model.safetensors cannot be written"):
            exported(trained / "run", tmp_path)

    def test_a_file_is_no_folder(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("")
        with pytest.raises(UsageError, match="cannot be a folder"):
            exported(trained / "run", tmp_path / "out")
