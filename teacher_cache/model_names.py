"""How models and weights are named: open_clip's names, folders, the hub; and what another machine is told.

Nothing here takes time to import; what needs open_clip's registry is in `teacher/openclip.py`.
"""

import os
from pathlib import Path

from teacher_cache.errors import UsageError

LOCAL_DIR = "local-dir:"
HF_HUB = "hf-hub:"


def canonical_model_name(name: str) -> str:
    """A folder with an `open_clip_config.json`, and what can only be meant as a path, becomes `local-dir:`
    with the absolute path."""
    if name.startswith(HF_HUB):
        return name
    folder = Path(name.removeprefix(LOCAL_DIR)).expanduser()
    a_path = name.startswith((LOCAL_DIR, "/", "./", "../", "~"))
    if a_path or os.path.isfile(folder / "open_clip_config.json"):
        return f"{LOCAL_DIR}{folder.resolve()}"
    return name.replace("/", "-")


def canonical_pretrained(pretrained: str | None) -> str | None:
    """A weights file becomes its absolute path; a tag stays as it is."""
    if pretrained and os.path.isfile(Path(pretrained).expanduser()):
        return str(Path(pretrained).expanduser().resolve())
    return pretrained


def portable_model(name: str) -> str:
    """As another machine may be told it: of a folder its last name alone, others as they are."""
    if name.startswith(LOCAL_DIR):
        return LOCAL_DIR + Path(name.removeprefix(LOCAL_DIR)).name
    return name


def portable_pretrained(pretrained: str | None) -> str | None:
    """Likewise; of a weights file, which `canonical_pretrained` names by its absolute path."""
    return Path(pretrained).name if pretrained and Path(pretrained).is_absolute() else pretrained


def require_model_folder(name: str) -> None:
    """Refuse a canonical name that means a folder without a model.

    Raises:
        UsageError: no such folder, or none with a configuration.
    """
    if not name.startswith(LOCAL_DIR):
        return
    folder = Path(name.removeprefix(LOCAL_DIR))
    if not os.path.isdir(folder):
        raise UsageError(f"no model folder {folder}")
    if not os.path.isfile(folder / "open_clip_config.json"):
        raise UsageError(f"no open_clip_config.json in the model folder {folder}")
