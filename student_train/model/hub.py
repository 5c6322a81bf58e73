"""Fetch students from Hugging Face's hub, or from its cache on this machine."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from student_train.runs.record import CONFIG, MODEL
from teacher_cache.errors import RppError, UsageError


def fetch_folder(repository: str, **options: Any) -> Path:
    """Fetch a student's files from Hugging Face's hub, or from its cache on this machine.

    Args:
        repository: 'ORG/REPO'.
        options: of `huggingface_hub.hf_hub_download`.

    Returns:
        The folder of `config.json` and `model.safetensors`.

    Raises:
        UsageError: no such repository, revision or file, or no permission to read it.
        RppError: it could not be fetched.
    """
    try:
        config, _ = (hf_hub_download(repository, name, **options) for name in (CONFIG, MODEL))
    except LocalEntryNotFoundError as error:  # also without a network
        raise RppError(
            f"no folder {repository}, and as a repository not in the hub's cache and could not be fetched"
        ) from error
    except HFValidationError as error:
        raise UsageError(f"no student at {repository}: neither a folder nor ORG/REPO") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        raise UsageError(
            f"no folder {repository}, and no readable student on the hub: {_reason(error)}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise RppError(f"{repository} could not be fetched from the hub: {_reason(error)}") from error
    return Path(config).parent


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
