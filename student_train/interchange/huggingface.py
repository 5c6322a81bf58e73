"""Export students in Hugging Face's layout.

`model/stored.py` writes the folder, `model/model_card.py` the text of the card.
"""

import json
import os
from pathlib import Path

from student_train.evaluation.frozen_names import is_frozen, portable_name
from student_train.interchange.settings import HuggingFaceSettings
from student_train.model.model_card import CARD, figures_in, model_card
from student_train.model.stored import read_student, write_folder
from student_train.runs.record import RESULTS
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write


def export_huggingface(settings: HuggingFaceSettings) -> dict[str, Path]:
    """Write a student as a folder for `PromptedCLIP.from_pretrained` and Hugging Face's hub.

    Only the prompts are written, not the frozen model. An existing model card is replaced.

    Returns:
        The three files by name.

    Raises:
        UsageError: no such student, no figures in the results, or the folder has a run.
        RppError: a file cannot be written, as on a full disk.
    """
    stored = read_student(settings.student)
    own = settings.student / RESULTS
    found = settings.results or (own if os.path.isfile(own) else None)
    figures = own_figures(read_figures(found), settings.student) if found else []
    if settings.results and not figures:
        raise UsageError(
            f"{settings.results} has no figures of {settings.student}; give the output of rpp eval --json"
        )
    files = write_folder(settings.out, stored.record, stored.tensors, stored.provenance)
    card = settings.out / CARD
    try:
        with atomic_write(card) as temporary:
            model_card(stored.record, stored.provenance, figures).save(temporary)
    except OSError as error:
        raise RppError(f"{card} cannot be written: {error.strerror}") from error
    return {**files, CARD: card}


def read_figures(path: Path) -> list[dict[str, object]]:
    """Read evaluations from a file that `rpp eval --json` or `rpp run` wrote.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return figures_in(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # invalid JSON or text
        raise UsageError(f"{path} is not the output of rpp eval --json: {error}") from error


def own_figures(figures: list[dict[str, object]], student: Path) -> list[dict[str, object]]:
    """Return the figures of the student and of frozen models.

    If the file has one student only, its figures are taken whatever its path: it may have moved.
    """
    figures = [
        row | {"student": portable_name(str(row["student"]))} if "student" in row else row for row in figures
    ]
    others = {str(row["student"]) for row in figures if "student" in row and not is_frozen(row["student"])}
    if len(others) < 2:
        return figures
    own = {name for name in others if Path(name).resolve() == student.resolve()}
    return [row for row in figures if (name := row.get("student")) in own or is_frozen(name)] if own else []
