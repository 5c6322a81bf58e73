"""Students in Hugging Face's layout: fetched from its hub, exported from a run.

The folder itself is in `stored.py`, the text of its card in `model_card.py`.
"""

import json
import os
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from student_train.command_settings import HuggingFaceSettings
from student_train.figures import ZERO_SHOT
from student_train.model_card import CARD, figures_in, model_card
from student_train.run_record import CONFIG, MODEL, RESULTS
from student_train.stored import read_student, write_folder
from student_train.whole_file import whole_file
from teacher_cache.errors import RppError, UsageError


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
        with whole_file(card) as temporary:
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


def fetch_folder(
    repository: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """A student's files from Hugging Face's hub, or from its cache on this machine; their folder.

    Raises:
        UsageError: no such repository, revision or file, or no right to read it.
        RppError: it could not be fetched.
    """
    try:
        config, _ = (
            hf_hub_download(
                repository,
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            for name in (CONFIG, MODEL)
        )
    except LocalEntryNotFoundError as error:  # also without a network
        raise RppError(
            f"no folder {repository}; as a repository it is not in the hub's cache and could not be fetched"
        ) from error
    except HFValidationError as error:
        raise UsageError(f"no student at {repository}: neither a folder nor ORG/REPO") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        raise UsageError(
            f"no folder {repository}, and no student on the hub that may be read from here: {_reason(error)}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise RppError(f"{repository} could not be fetched from the hub: {_reason(error)}") from error
    return Path(config).parent


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
