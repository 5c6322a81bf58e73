"""Find the conventions of a weights file: the user's options, what the file tells, open_clip's registry.

A pretrained tag of open_clip and a model folder have their conventions. A weights file has none, and the same
weights with QuickGELU and with GELU, or with another mean of the pixels, are two models.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from teacher_cache.compat.open_clip import PreprocessCfg
from teacher_cache.conventions import FIELDS, PREPROCESSING, ConventionOptions, Conventions, described
from teacher_cache.errors import UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.files.text_file import read_text
from teacher_cache.model_names import HF_HUB, LOCAL_DIR

CONFIG = "open_clip_config.json"
AGREED = "all tags of "
HUB_FOLDER = "models--"  # of a repository in the cache of Hugging Face's hub: models--ORG--REPO
Fields = dict[str, Any]


class UndecidedConventionsError(UsageError):
    """The conventions of a weights file are not known; the user has to state them."""


@dataclass(frozen=True)
class Choice:
    """Conventions to load a model with.

    Attributes:
        fields: those that open_clip's own choice is replaced by; of a weights file all.
        source: where they are from.
        note: a remark for the user; empty if nothing was assumed.
    """

    fields: Fields
    source: str
    note: str = ""


def choose_conventions(
    name: str, pretrained: str | None, given: ConventionOptions, openai: bool = False
) -> Choice:
    """Choose the conventions of a model and its weights.

    Stated ones come first. The others of a weights file are those of the tag that is stated or that the file
    is recognised as, else those in which all tags of the model agree.

    Args:
        name: canonical name of the model.
        pretrained: a tag, or the absolute path of a weights file; None for folders and the hub.
        given: what the user states.
        openai: whether the file's content is that of OpenAI's own implementation.

    Raises:
        UsageError: `weights_like` is not a tag of the model, or there is no weights file.
        UndecidedConventionsError: the tags differ and the file does not tell.
    """
    own_place = name.startswith((LOCAL_DIR, HF_HUB))
    if own_place or open_clip.get_pretrained_cfg(name, pretrained or ""):
        if given.weights_like:
            what = f"{name} has its own configuration" if own_place else f"'{pretrained}' is a tag"
            raise UsageError(f"--weights-like {given.weights_like} is for a weights file; {what}")
        own = CONFIG if own_place else f"tag {pretrained}"
        return Choice(given.stated, "; ".join([*_options(given), own]))
    file, fields = Path(pretrained or ""), given.stated
    sources = _options(given)
    for source, found in _ways(name, file, given, openai):
        if missing := {field: found[field] for field in FIELDS if field not in fields and field in found}:
            fields = fields | missing
            sources.append(source)
        if len(fields) == len(FIELDS):
            break
    else:
        raise _undecided(name, file, fields)
    return Choice(fields, "; ".join(sources), _note(name, file, fields, sources))


def earlier_conventions(name: str, pretrained: str) -> Conventions:
    """Return the conventions of a model's weights as versions that did not record them chose them.

    They are those of a tag, and for a file those of the model's configuration with open_clip's default
    preprocessing.
    """
    return Conventions(**tag_conventions(name, pretrained))


def earlier_choice(teacher: dict[str, Any], used: Conventions) -> str:
    """Return a warning if an earlier version chose other conventions for a weights file; else an empty text.

    Args:
        teacher: the record of a teacher, as `Teacher.describe` returns it.
        used: its conventions.
    """
    name, pretrained = teacher["model"], teacher.get("pretrained")
    if teacher.get("conventions_from") or not pretrained or name not in open_clip.list_models():
        return ""
    if open_clip.get_pretrained_cfg(name, pretrained):
        return ""
    what = f"{Path(pretrained).name} was loaded as '{name}' by an earlier version of rpp, which did not ask"
    try:
        fields = choose_conventions(name, pretrained, ConventionOptions()).fields
    except UndecidedConventionsError:
        return f"{what}: {described(used.fields)}; if the weights have other conventions, build a new cache"
    differ = used.differ(used.model_copy(update=fields))
    return f"{what}: {'; '.join(differ)}; if that is wrong, build a new cache" if differ else ""


def tag_conventions(name: str, tag: str) -> Fields:
    """Return the conventions of a pretrained tag, whose weights are not needed.

    Of other texts: those of the model's configuration, and open_clip's default preprocessing.
    """
    found = open_clip.get_pretrained_cfg(name, tag)
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else {}
    quick_gelu = found.get("quick_gelu", False) or config.get("quick_gelu", False)
    return {"quick_gelu": bool(quick_gelu), **_preprocessing(found)}


def folder_conventions(folder: Path) -> Fields:
    """Return the conventions that a model folder's configuration has now; the file was checked."""
    record = parse_json(read_text(folder / CONFIG))
    quick_gelu = bool(record["model_cfg"].get("quick_gelu", False))
    return {"quick_gelu": quick_gelu, **_preprocessing(record.get("preprocess_cfg") or {})}


def _preprocessing(found: Fields) -> Fields:
    default = PreprocessCfg()
    chosen = {field: found.get(field, getattr(default, field)) for field in PREPROCESSING}
    return {field: tuple(x) if isinstance(x, list) else x for field, x in chosen.items()}


def _options(given: ConventionOptions) -> list[str]:
    names = [f"--{field.replace('_', '-')}" for field in given.stated]
    if given.quick_gelu is False:
        names[0] = "--no-quick-gelu"
    return [f"options {', '.join(names)}"] if names else []


def _ways(name: str, file: Path, given: ConventionOptions, openai: bool) -> Iterator[tuple[str, Fields]]:
    """Yield what decides conventions, in order, with those that it decides. What costs time comes last."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = {tag: tag_conventions(name, tag) for tag in tags}
    if given.weights_like:
        like = next((tag for tag in tags if tag == given.weights_like.lower().replace("-", "_")), None)
        if like is None:
            raise UsageError(
                f"--weights-like '{given.weights_like}' is not a tag of '{name}' (tags: "
                f"{', '.join(tags) or 'none; state --quick-gelu, --mean and the others'})"
            )
        yield f"tag {like} (--weights-like)", known[like]
        return
    if openai and "openai" in known:
        yield "tag openai (the file is in OpenAI's form)", known["openai"]
    if like := _tag_of_repository(name, tags, file):
        yield f"tag {like} (the file is in the folder of its repository)", known[like]
    yield f"{CONFIG} beside the file", _fields_beside(name, file)
    if not tags:
        yield f"the configuration of {name} and open_clip's default preprocessing", tag_conventions(name, "")
        return
    first = next(iter(known.values()))
    agreed = {field: x for field, x in first.items() if all(own[field] == x for own in known.values())}
    more = ", ..." if len(tags) > 3 else ""
    yield f"{AGREED}{name}: {', '.join(tags[:3])}{more}", agreed
    if like := _tag_of_content(name, tags, file):
        yield f"tag {like} (the file has its SHA-256)", known[like]


def _tag_of_repository(name: str, tags: list[str], file: Path) -> str | None:
    """Return the tag in whose repository's folder a file is: one of the hub's cache, or one of its name."""
    for tag in tags:
        place = str(open_clip.get_pretrained_cfg(name, tag).get("hf_hub") or "").split("/")
        if len(place) < 2:
            continue
        cached = f"{HUB_FOLDER}{place[0]}--{place[1]}"
        if any(cached in path.parts or path.parent.name == place[1] for path in (file, file.resolve())):
            return tag
    return None


def _fields_beside(name: str, file: Path) -> Fields:
    """Return the conventions of the configuration beside a file, if it is one of the named model."""
    try:
        record = parse_json((file.parent / CONFIG).read_text(encoding="utf-8"))
        model = record["model_cfg"]
        own = open_clip.get_model_config(name)
        parts = [(model, own), *((model[part], own[part]) for part in ("vision_cfg", "text_cfg"))]
        for beside, registered in parts:
            for key in beside.keys() & registered.keys() - {"quick_gelu", "vision_cfg", "text_cfg"}:
                if beside[key] != registered[key]:
                    return {}
        found = {field: x for field, x in record.get("preprocess_cfg", {}).items() if field in PREPROCESSING}
        checked = Conventions(quick_gelu=bool(model.get("quick_gelu", False)), **_preprocessing(found))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no configuration, or not open_clip's
        return {}
    # open_clip's own configurations with a mean leave out what has its default
    return {"quick_gelu": checked.quick_gelu, **(checked.fields if {"mean", "std"} <= found.keys() else {})}


def _tag_of_content(name: str, tags: list[str], file: Path) -> str | None:
    """Return the tag whose file has the same SHA-256.

    open_clip's addresses of OpenAI's files contain it, those of its own releases the first eight digits.
    """
    known = {}
    for tag in tags:
        address = open_clip.get_pretrained_url(name, tag)
        if found := re.search(r"/([0-9a-f]{64})/[^/]+$|-([0-9a-f]{8})\.pth?$", address):
            known[tag] = found[1] or found[2]
    if not known or file.suffix in (".safetensors", ".npz", ".npy") or not os.path.isfile(file):
        return None
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return next((tag for tag, start in known.items() if digest.startswith(start)), None)


def _undecided(name: str, file: Path, fields: Fields) -> UndecidedConventionsError:
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = {tag: tag_conventions(name, tag) for tag in tags}
    first = known[tags[0]]
    differ = [
        field
        for field in FIELDS
        if field not in fields and any(own[field] != first[field] for own in known.values())
    ]
    groups: dict[str, list[str]] = {}
    for tag, own in known.items():
        groups.setdefault(described({field: own[field] for field in differ}), []).append(tag)
    texts = [
        f"{text}: {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for text, found in groups.items()
    ]
    names = ["--quick-gelu or --no-quick-gelu"] if "quick_gelu" in differ else []
    names += [f"--{field.replace('_', '-')}" for field in differ if field != "quick_gelu"]
    return UndecidedConventionsError(
        f"the weights file {file} does not contain its conventions, and the tags of '{name}' differ "
        f"({' | '.join(texts)}); add --weights-like TAG with the tag whose conventions the weights have "
        f"(rpp-cache build also takes {', '.join(names)})"
    )


def _note(name: str, file: Path, fields: Fields, sources: list[str]) -> str:
    note = f"{file.name}: {described(fields)} ({'; '.join(sources)})"
    # who trains a model of this name with open_clip gets the activation of its configuration
    agreed = any(text.startswith(AGREED) for text in sources)
    if agreed and fields["quick_gelu"] and not tag_conventions(name, "")["quick_gelu"]:
        note += f"; add --no-quick-gelu if they were trained with GELU, as open_clip trains '{name}'"
    return note
