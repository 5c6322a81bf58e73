"""Model card of a student: what it is, how to load it, how it was trained and what was measured."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from student_train.figures import FIGURES
from student_train.markdown import plain, table
from student_train.model.stored import ImportRecord, StudentRecord
from teacher_cache.model_names import LOCAL_DIR
from teacher_cache.teacher.openclip import hub_repository

CARD = "README.md"
# The last two mark models that the hub's own `from_pretrained` loads.
TAGS = ["clip", "open_clip", "prompt-learning", "model_hub_mixin", "pytorch_model_hub_mixin"]
PAPER = "[arXiv 2409.06166](https://arxiv.org/abs/2409.06166)"

ABOUT = {
    "student": "student",
    "suite": "suite",
    "data": "data set",
    "images": "images",
    "classes": "classes",
    "samples": "samples",
}


def model_card(
    record: StudentRecord, training: Mapping[str, Any] | None, figures: Sequence[Mapping[str, Any]] = ()
) -> ModelCard:
    """Return the card of a student, with its YAML header.

    Args:
        record: record of the student.
        training: its provenance; None if unknown.
        figures: evaluations as `rpp eval --json` prints them. Figures in FIGURES become columns.
    """
    record = record.portable()
    head = ModelCardData(
        base_model=hub_repository(record.model, record.pretrained),
        library_name="rpp",
        pipeline_tag="zero-shot-image-classification",
        tags=TAGS,
    )
    name = record.model.removeprefix(LOCAL_DIR)
    weights = f" with the weights {plain(record.pretrained)}" if record.pretrained else ""
    moved = ', model="FOLDER OF THE CLIP"' if record.model.startswith(LOCAL_DIR) else ""
    settings = {**record.prompts.model_dump(mode="json"), **_training_settings(training)}
    lines = [
        f"# Prompts for {plain(name)}",
        "",
        f"A frozen CLIP, open_clip's {plain(name)}{weights}, with learned prompts in its towers: it encodes "
        "images and texts as CLIP does. These files have only the prompts. open_clip loads CLIP's weights; "
        f"their digest must be {plain(record.weights_digest)}.",
        "",
        "Written by RPP, which implements *Revisiting Prompt Pretraining of Vision-Language Models* "
        f"({PAPER}): separate prompts for query, key and value, learned from hard labels and from the "
        "soft labels of a teacher.",
        "",
        "## Use",
        "",
        "```python",
        "from student_train import PromptedCLIP",
        "",
        f'student = PromptedCLIP.from_pretrained("THIS REPOSITORY OR FOLDER"{moved})',
        "images = student.encode_image(pixels, normalize=True)  # from the CLIP's preprocessing",
        'classes = student.class_features(["cat", "grand piano"])',
        "probabilities = (student.logit_scale.exp() * images @ classes.T).softmax(-1)",
        "```",
        "",
        "## Training",
        "",
        *_training_lines(training, record.imported),
        "",
        *table(["setting", "value"], [[setting, _value(value)] for setting, value in settings.items()]),
        "",
        "## Measured",
        "",
        *_figure_lines(figures),
    ]
    return ModelCard(f"---\n{head.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def figures_in(found: Any) -> list[dict[str, Any]]:
    """Return the evaluations in the output of `rpp eval --json` or `rpp run --json`.

    That is one object, or a list of objects under `rows` or `evals`. Objects without known figures are left
    out.
    """
    if not isinstance(found, dict):
        return []
    several = next((found[name] for name in ("rows", "evals") if isinstance(found.get(name), list)), [found])
    return [row for row in several if isinstance(row, dict) and any(_number(row, name) for name in FIGURES)]


def _number(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return FIGURES[name].text(value)


def _figure_lines(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = [name for name in FIGURES if any(_number(row, name) for row in figures)]
    if not columns:
        return ["No figures came with these prompts."]
    about = [name for name in ABOUT if any(name in row for row in figures)]
    titles = [ABOUT[name] for name in about] + [FIGURES[name].heading for name in columns]
    rows = [
        [_place(str(row.get(name, ""))) for name in about] + [_number(row, name) or "" for name in columns]
        for row in figures
    ]
    return table(titles, rows)


def _training_lines(training: Mapping[str, Any] | None, imported: ImportRecord | None) -> list[str]:
    if imported is not None:
        return [
            f"These prompts were not trained by RPP, but imported from {plain(imported.file)}, a checkpoint "
            f"of {plain(imported.method)} with the digest {plain(imported.file_digest)}."
        ]
    if training is None:
        return ["It is unknown how these prompts were trained: they came without the record of a run."]
    teacher, cache = training["teacher"], training["cache"]
    name = str(teacher.get("model", "unknown")).removeprefix(LOCAL_DIR)
    weights = f", {plain(teacher['pretrained'])}" if teacher.get("pretrained") else ""
    return [
        f"- teacher: {plain(name)}{weights}, weights {plain(teacher.get('weights_digest', 'unknown'))}",
        f"- cache: {plain(cache.get('samples', 'an unknown number of'))} samples with the digest "
        f"{plain(cache.get('sample_table_digest', 'unknown'))}, "
        f"{plain(cache.get('classes', 'an unknown number of'))} classes with the digest "
        f"{plain(cache.get('vocabulary_digest', 'unknown'))}",
    ]


def _training_settings(training: Mapping[str, Any] | None) -> dict[str, Any]:
    if training is None:
        return {}
    others = ("templates", "mode", "samples_per_step", "processes", "init", "software")
    return {**training["settings"], **{name: training.get(name) for name in others}}


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _place(name: str) -> str:
    """Return the last name of an absolute path or a URL: the rest is about somebody's machine."""
    absolute = name.startswith("~") or "://" in name or Path(name).is_absolute()
    return Path(name).name if absolute else name
