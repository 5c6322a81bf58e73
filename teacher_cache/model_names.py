"""Names of models and weights: open_clip's names, folders, the hub; and names without local paths.

Fast to import; what needs open_clip's registry is in `teacher/openclip.py`.
"""

import os
from pathlib import Path

from teacher_cache.errors import UsageError
from teacher_cache.files.places import place_of

LOCAL_DIR = "local-dir:"
HF_HUB = "hf-hub:"


def canonical_model_name(name: str) -> str:
    """Return `local-dir:` with the absolute path for a path or a folder with an `open_clip_config.json`, and
    open_clip's spelling for other names."""
    if name.startswith(HF_HUB):
        return name
    folder = Path(place_of(name.removeprefix(LOCAL_DIR)))
    is_path = name.startswith((LOCAL_DIR, "/", "./", "../", "~", "file://"))
    if is_path or os.path.isfile(folder / "open_clip_config.json"):
        return f"{LOCAL_DIR}{folder.resolve()}"
    return name.replace("/", "-")


def is_weights_file(pretrained: str | None) -> bool:
    """Return whether `--pretrained` is a file; a tag is not one."""
    return bool(pretrained) and os.path.isfile(Path(pretrained or "").expanduser())


def canonical_pretrained(pretrained: str | None) -> str | None:
    """Return the absolute path of a weights file; a tag is returned unchanged.

    A link stays one: in the cache of Hugging Face's hub it has the file's name, and its target has none.
    """
    if pretrained and is_weights_file(place_of(pretrained)):
        return os.path.abspath(place_of(pretrained))
    return pretrained


def portable_model(name: str) -> str:
    """Return a canonical model name without local folders: only the last part of a `local-dir:` path."""
    if name.startswith(LOCAL_DIR):
        return LOCAL_DIR + Path(name.removeprefix(LOCAL_DIR)).name
    return name


def portable_pretrained(pretrained: str | None) -> str | None:
    """Return canonical weights without local folders: only the name of a file; tags are unchanged."""
    return Path(pretrained).name if pretrained and Path(pretrained).is_absolute() else pretrained


def require_model_folder(name: str) -> None:
    """Check that the folder of a canonical name exists and has a configuration.

    Raises:
        UsageError: it does not.
    """
    if not name.startswith(LOCAL_DIR):
        return
    folder = Path(name.removeprefix(LOCAL_DIR))
    if not os.path.isdir(folder):
        raise UsageError(f"no model folder {folder}")
    if not os.path.isfile(folder / "open_clip_config.json"):
        raise UsageError(f"no open_clip_config.json in the model folder {folder}")
