"""Students exported in Hugging Face's layout.

The folder itself is in `model/stored.py`, the text of its card in `model/model_card.py`.
"""

import json
import os
from pathlib import Path

from student_train.figures import ZERO_SHOT
from student_train.interchange.settings import HuggingFaceSettings
from student_train.model.model_card import CARD, figures_in, model_card
from student_train.model.stored import read_student, write_folder
from student_train.runs.record import RESULTS
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write


def export_huggingface(settings: HuggingFaceSettings) -> dict[str, Path]:
    """Write a student as a folder that `PromptedCLIP.from_pretrained` and Hugging Face's hub take.

    The prompts alone are written, not the frozen model. A model card that is there is written anew.

    Returns:
        The three files by name.

    Raises:
        UsageError: no such student, no figures in the results, or a folder that holds a run.
        RppError: a file cannot be written, as on a full disk.
    """
    stored = read_student(settings.student)
    own = settings.student / RESULTS
    found = settings.results or (own if os.path.isfile(own) else None)
    figures = own_figures(read_figures(found), settings.student) if found else []
    if settings.results and not figures:
        raise UsageError(
            f"{settings.results} holds no figures of {settings.student}; give what rpp eval --json printed"
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
    """Evaluations in a file that `rpp eval --json` or `rpp run` wrote.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return figures_in(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # no JSON, or no text
        raise UsageError(f"{path} is not what rpp eval --json prints: {error}") from error


def own_figures(figures: list[dict[str, object]], student: Path) -> list[dict[str, object]]:
    """Those of the student and of the frozen model beside it. Of a single student they are its own under
    whatever name: it may have moved since."""
    others = {str(row["student"]) for row in figures if "student" in row} - {ZERO_SHOT}
    if len(others) < 2:
        return figures
    own = {name for name in others if Path(name).resolve() == student.resolve()}
    return [row for row in figures if row.get("student") in {*own, ZERO_SHOT}] if own else []
