"""A student's tokenizer for tools that put class names into templates.

Text prompts replace a template's words: a tool's 'a photo of a cat.' is read as 'cat.' behind the prompts, as
in training. The tokenizer does this because `encode_text` sees only tokens. This module finds the template
and the name of a text; the student makes tokens of the name.

Shapes: B texts, T tokens.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.model.text_frame import TextFrame
from teacher_cache.classes.templates import DEFAULT_TEMPLATE, TEMPLATE_SETS
from teacher_cache.errors import UsageError

# Replaces the name when a template is parsed; private-use characters, so that no template has it.
MARK = "\ue000\ue001"
MESSAGE_CHARACTERS = 80  # of a text in a message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Template:
    """A template as the literal texts around the name: 'a photo of a {}.' is ('a photo of a ', '.')."""

    literals: tuple[str, ...]

    @classmethod
    def parse(cls, template: str | Callable[[str], str]) -> "Template":
        """Parse a text with `{}` or `{c}`, or a function of the name.

        Raises:
            UsageError: it has no place for the name, or has other fields.
        """
        if isinstance(template, str):
            try:
                text = template.format(MARK, c=MARK)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
                raise UsageError(
                    f"the template '{template}' must have only {{}} or {{c}}, for the class name, in braces"
                ) from error
        else:
            text = template(MARK)
        literals = tuple(text.split(MARK))
        if len(literals) == 1:
            raise UsageError(f"the template '{text}' has no place for the class name: {{}} or {{c}}")
        return cls(literals)

    @cached_property
    def characters(self) -> int:
        """Number of literal characters."""
        return sum(map(len, self.literals))

    def name_in(self, text: str) -> str | None:
        """Return the only name from which this template makes the text, or None."""
        length = (len(text) - self.characters) // (len(self.literals) - 1)
        begin = len(self.literals[0])
        name = text[begin : begin + max(0, length)]
        return name if name.join(self.literals) == text else None


TemplateSet = tuple[Template, ...]


def parse_templates(templates: Sequence[str | Callable[[str], str]]) -> TemplateSet:
    """Parse each template."""
    return tuple(map(Template.parse, templates))


# The largest set first: more templates are stronger evidence.
KNOWN = tuple(
    sorted(map(parse_templates, [*TEMPLATE_SETS.values(), [DEFAULT_TEMPLATE]]), key=len, reverse=True)
)


def names_in(texts: Sequence[str], sets: Sequence[TemplateSet]) -> list[str | None]:
    """Return the class names in texts that templates made, [B]; None for a text that no template made.

    Tools pass all templates of a class in order, for one class or several. If one of the sets makes all texts
    in this way, the names are exact. Otherwise each text is matched by itself with the template that has the
    most literal characters, which can be wrong: 'a photo of a large cat.' may be 'cat' in 'a photo of a large
    {}.' or 'large cat' in 'a photo of a {}.'.
    """
    for templates in sets:
        names = _complete_classes(texts, templates)
        if names is not None:
            return names
    every = [template for templates in sets for template in templates]
    every.sort(key=lambda template: -template.characters)
    return [
        next((name for template in every if (name := template.name_in(text)) is not None), None)
        for text in texts
    ]


def _complete_classes(texts: Sequence[str], templates: TemplateSet) -> list[str | None] | None:
    """Return the names if template i mod T made text i and all T texts of a class have the same name."""
    if not texts or not templates or len(texts) % len(templates):
        return None
    names: list[str | None] = []
    for row, (text, template) in enumerate(zip(texts, cycle(templates), strict=False)):
        name = template.name_in(text)
        if name is None or (row % len(templates) and name != names[-1]):
            return None
        names.append(name)
    return names


@dataclass(frozen=True)
class PromptedReading:
    """How a student with text prompts reads texts.

    Attributes:
        tokenize_names: class names -> tokens [C, T] int64, `PromptedCLIP.tokenize_names`.
        frame: what the tokenizer puts around a text.
        positions: the text tower's positions without those of the prompts.
    """

    tokenize_names: Callable[[Sequence[str]], Tensor]
    frame: TextFrame
    positions: int


class PromptTokenizer:
    """A tokenizer with the interface of open_clip's; other attributes are those of the model's tokenizer.

    With text prompts, the learned prompts replace a template's words: a text that a known template made is
    read as 'NAME.' and truncated if it is too long. Other texts are read unchanged. Known templates are
    open_clip's `OPENAI_IMAGENET_TEMPLATES` and `SIMPLE_IMAGENET_TEMPLATES` and 'a photo of a {}.';
    `for_templates` sets others.

    Without text prompts every text is read unchanged.
    """

    def __init__(
        self, base: Any, reading: PromptedReading | None, sets: Sequence[TemplateSet] | None = None
    ) -> None:
        """Args:
        base: open_clip's tokenizer of the model.
        reading: how the student reads texts; None without text prompts.
        sets: the known templates, set by set; None for those above.
        """
        self.base, self.reading, self.sets = base, reading, sets

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # looked up while copying, before `base` is set
            raise AttributeError(name)
        return getattr(self.base, name)

    def for_templates(self, templates: Sequence[str | Callable[[str], str]]) -> "PromptTokenizer":
        """Return a tokenizer that knows only these templates; without any, every text is read unchanged.

        Args:
            templates: all templates of a class in the order in which the tool uses them: texts with `{}` or
                `{c}`, or functions of the name.

        Raises:
            UsageError: a template has no place for the name, or `templates` is a single text.
        """
        if isinstance(templates, str):
            raise UsageError(f"templates must be a list of texts: ['{shortened(templates)}']")
        if self.reading is None:
            return self
        return PromptTokenizer(self.base, self.reading, [parse_templates(templates)] if templates else [])

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Return tokens [B, T] int64 of one text or several.

        Args:
            texts: texts, with or without a template.
            context_length: T; by default the model's.

        Raises:
            UsageError: a text that is read unchanged is too long for the positions behind the prompts.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if self.reading is None or not texts:
            tokens: Tensor = self.base(texts, context_length)
            return tokens
        names = names_in(texts, KNOWN if self.sets is None else self.sets)
        readings = [
            (text, True) if name is None else (name, False) for text, name in zip(texts, names, strict=True)
        ]
        # Many templates of a class have one reading: it is truncated, and warned of, once.
        distinct = sorted(dict.fromkeys(readings), key=lambda reading: reading[1])
        class_names = [text for text, is_unchanged in distinct if not is_unchanged]
        unchanged = [text for text, is_unchanged in distinct if is_unchanged]
        if unchanged and self.sets:  # the caller named all templates
            log.warning(
                "%d of %d texts match none of the templates and are read unchanged, first '%s'",
                names.count(None),
                len(texts),
                shortened(unchanged[0]),
            )
        read = [self.reading.tokenize_names(class_names)] if class_names else []
        tokens_BT = torch.cat([*read, self.base(unchanged)] if unchanged else read)
        length = context_length or tokens_BT.shape[1]
        positions = min(self.reading.positions, length)
        frame = self.reading.frame
        room = positions - len(frame.start) - max(1, len(frame.end))
        for (text, _), needed in zip(distinct, frame.lengths(tokens_BT).tolist(), strict=True):
            if needed > positions:
                raise UsageError(
                    f"the text '{shortened(text)}' is too long: there is room for {room} tokens; "
                    "shorten it or, if a template made it, name the templates (tokenizer.for_templates)"
                )
        missing = max(0, length - tokens_BT.shape[1])
        tokens_BT = F.pad(tokens_BT, (0, missing), value=frame.pad)[:, :length]
        row_of = {reading: row for row, reading in enumerate(distinct)}
        return tokens_BT[[row_of[reading] for reading in readings]]


def shortened(text: str) -> str:
    """Return a text for a message, truncated if it is long."""
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}..."
