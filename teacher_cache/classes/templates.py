"""Templates: how a class name becomes the text, or texts, that a text tower reads.

A set of templates is a sequence of texts with one `{}`, or of functions of the class name. `TEMPLATE_SETS`
names the sets that `--templates` knows and that a student's tokenizer recognises.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Formatter

from teacher_cache.errors import UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.files.places import place_or_text
from teacher_cache.files.text_file import is_text, read_text
from teacher_cache.lazy import Registry

PROMPT_WORDS = "a photo of a"  # CLIP's, and where CoOp starts its prompts
DEFAULT_TEMPLATE = f"{PROMPT_WORDS} {{}}."

# As MODULE:NAME, imported when first used: open_clip imports torch.
TEMPLATE_SETS: Registry[Sequence[str | Callable[[str], str]]] = Registry(
    {
        "imagenet": "open_clip:OPENAI_IMAGENET_TEMPLATES",  # 80
        "imagenet-simple": "open_clip:SIMPLE_IMAGENET_TEMPLATES",  # 7
    }
)


def prompted_text(name: str, words: str = "") -> str:
    """Return what stands behind a student's prompts: 'NAME.', as in CoOp, or 'WORDS NAME.'."""
    return f"{words} {name}." if words else f"{name}."


def load_templates(templates: str) -> tuple[str, ...]:
    """Return templates as texts with one `{}` each.

    Args:
        templates: one text with `{}`, a file with one text a line (or a JSON list), or a name in
            `TEMPLATE_SETS`. `{c}` counts as `{}`.

    Raises:
        UsageError: none of these, or a template without exactly one `{}`.
    """
    if templates in TEMPLATE_SETS:
        return tuple(
            template if isinstance(template, str) else template("{}") for template in TEMPLATE_SETS[templates]
        )
    path = os.path.expanduser(place_or_text(templates))
    if os.path.isfile(path):  # pathlib raises for a text that is too long for a path
        texts = _read_templates(Path(path))
    elif "{" in templates:
        texts = [templates]
    else:
        raise UsageError(
            f"templates '{templates}': not a text with {{}}, not a file, not one of "
            f"{', '.join(TEMPLATE_SETS)}"
        )
    texts = [text.replace("{c}", "{}") for text in texts]
    if wrong := [text for text in texts if not is_template(text)]:
        raise UsageError(f"a template needs exactly one {{}} for the class name: '{wrong[0]}'")
    return tuple(texts)


def is_template(text: str) -> bool:
    """Return whether a text has one plain `{}`: a width as in '{:>999999999}' would fill the memory."""
    try:
        fields = [parts for _, *parts in Formatter().parse(text) if parts[0] is not None]
    except ValueError:
        return False
    return fields == [["", "", None]]


def _read_templates(path: Path) -> list[str]:
    try:
        content = read_text(path)
        texts = parse_json(content) if path.suffix == ".json" else content.split("\n")
    except ValueError as error:
        raise UsageError(f"template file {path}: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read the template file {path}: {error.strerror}") from error
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise UsageError(f"template file {path}: expected a JSON list of texts")
    texts = [text for text in texts if text.strip()]
    if invalid := [text for text in texts if not is_text(text)]:
        raise UsageError(
            f"template file {path}: {invalid[0][:60]!r} has a zero byte or an unpaired surrogate"
        )
    if not texts:
        raise UsageError(f"the template file {path} is empty; write one text with {{}} a line")
    return texts
