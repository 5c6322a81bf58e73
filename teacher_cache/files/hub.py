"""`hf://` URLs: files on Hugging Face's hub, and what its refusals mean.

`remote.py` reads ranges through huggingface_hub's own file system, with the token of the hub's own login.
"""

import re
from urllib.parse import unquote

from teacher_cache.errors import UsageError

HUB = "hf://"
LOG_IN = "log in with hf auth login, or set HF_TOKEN to a token that may read it"
FORM = "hf://datasets/ORG/NAME/PATH, or hf://ORG/NAME/PATH for a model"
_REPOSITORY = re.compile(
    r"hf://(?:(?:datasets|spaces|models|buckets)/[^/]+/|(?!datasets/|spaces/)[^/]+/)[^/]+"
)
_FILE = re.compile(
    r"hf://(?:(?P<kind>datasets|spaces|models)/)?(?P<repository>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?/(?P<file>.*[^/])"
)


def is_on_hub(place: str) -> bool:
    """Return whether a place is an `hf://` URL."""
    return place.startswith(HUB)


def download(url: str) -> str:
    """Fetch a file into the hub's own cache, unless it is there; return its path.

    Raises:
        UsageError: not the URL of a file.
        Exception: of huggingface_hub; see `refusal`.
    """
    found = _FILE.fullmatch(url)
    if not found or url.startswith("hf://buckets/"):
        raise UsageError(f"{url} is not a file on the hub; expected {FORM}")
    from huggingface_hub import hf_hub_download

    kind, revision = found["kind"], found["revision"]
    return hf_hub_download(
        found["repository"],
        found["file"],
        repo_type=kind.removesuffix("s") if kind else None,
        revision=unquote(revision) if revision else None,
    )


def refusal(url: str, error: Exception) -> UsageError | None:
    """Return the error for the user if the hub has refused for good; None if another try may help."""
    from huggingface_hub import errors

    # its file system reports a missing repository as a missing file
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, errors.GatedRepoError):
        return UsageError(f"{url} is gated: accept its conditions on the hub's page, then {LOG_IN}")
    if isinstance(cause, errors.RepositoryNotFoundError):
        return UsageError(f"{url}: the hub has no such repository, or it is private; {LOG_IN}")
    if status in (401, 403):
        return UsageError(f"{url}: the hub refuses access; {LOG_IN}")
    if isinstance(cause, errors.RevisionNotFoundError):
        return UsageError(f"{url}: the hub's repository has no such revision")
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return UsageError(f"{url} cannot be read while HF_HUB_OFFLINE is set")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return UsageError(f"{url}: the hub's repository has no such file")
    if not _REPOSITORY.match(url) or isinstance(cause, errors.HFValidationError):
        return UsageError(f"{url} is not a place on the hub; expected {FORM}")
    return None
