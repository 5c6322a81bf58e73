"""A student's tokenizer for tools that put class names into templates.

Text prompts stand where a template's words would: what a tool made of 'a photo of a {}.' and 'cat' is read as
'cat.' behind the prompts, as in training. `encode_text` sees tokens alone, so the tokenizer has to do it.
Knows templates and which of them made a text; how a name becomes tokens is the student's business.

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

from teacher_cache.classes.templates import DEFAULT_TEMPLATE, TEMPLATE_SETS
from teacher_cache.errors import UsageError

# Stands for the name when a template is taken apart; of the private use area, so that no template has it.
MARK = "\ue000\ue001"
SHOWN = 80  # characters of a text in a message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Template:
    """The literal texts around each place of the name: 'a photo of a {}.' is ('a photo of a ', '.')."""

    literals: tuple[str, ...]

    @classmethod
    def parse(cls, template: str | Callable[[str], str]) -> "Template":
        """From a text with `{}` or `{c}`, or a function of the name, as tools take them.

        Raises:
            UsageError: it does not say where the name goes, or names other fields.
        """
        if isinstance(template, str):
            try:
                made = template.format(MARK, c=MARK)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
                raise UsageError(
                    f"the template '{template}' can hold {{}} or {{c}} for the class name and nothing else "
                    "in braces"
                ) from error
        else:
            made = template(MARK)
        literals = tuple(made.split(MARK))
        if len(literals) == 1:
            raise UsageError(
                f"the template '{made}' does not say where the class name goes, with {{}} or {{c}}"
            )
        return cls(literals)

    @cached_property
    def characters(self) -> int:
        """Number of literal characters."""
        return sum(map(len, self.literals))

    def name_in(self, text: str) -> str | None:
        """The name of which this template makes the text, if there is one. There is never a second one."""
        length = (len(text) - self.characters) // (len(self.literals) - 1)
        begin = len(self.literals[0])
        name = text[begin : begin + max(0, length)]
        return name if name.join(self.literals) == text else None


TemplateSet = tuple[Template, ...]


def parse_templates(templates: Sequence[str | Callable[[str], str]]) -> TemplateSet:
    """`Template.parse` of each."""
    return tuple(map(Template.parse, templates))


# The largest first: texts of many templates are recognised more surely than those of few.
KNOWN = tuple(
    sorted(map(parse_templates, [*TEMPLATE_SETS.values(), [DEFAULT_TEMPLATE]]), key=len, reverse=True)
)


def names_in(texts: Sequence[str], sets: Sequence[TemplateSet]) -> list[str | None]:
    """Class names of which templates made texts, [B]; None for a text that no template made.

    Tools give all templates of one class in order, one class or several in a call. Where one of the sets
    makes all the texts so, the names are those, exactly. Otherwise each text is matched alone with the
    template of most literal characters, which a name may deceive: 'a photo of a large cat.' may be 'cat' in
    'a photo of a large {}.' or 'large cat' in 'a photo of a {}.'.
    """
    for templates in sets:
        names = _whole_classes(texts, templates)
        if names is not None:
            return names
    every = [template for templates in sets for template in templates]
    every.sort(key=lambda template: -template.characters)
    return [
        next((name for template in every if (name := template.name_in(text)) is not None), None)
        for text in texts
    ]


def _whole_classes(texts: Sequence[str], templates: TemplateSet) -> list[str | None] | None:
    """Names where text i was made by template i mod T and all T texts of a class have one name."""
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
    """How a student with text prompts reads.

    Attributes:
        tokenize_names: class names -> tokens [C, T] int64, `PromptedCLIP.tokenize_names`.
        ends: tokens [B, T] -> position of each text's end token, int64 [B].
        positions: what prompts leave of the text tower's positions.
    """

    tokenize_names: Callable[[Sequence[str]], Tensor]
    ends: Callable[[Tensor], Tensor]
    positions: int


class PromptTokenizer:
    """Called as open_clip's tokenizers are, and all else that they have is passed through.

    With text prompts, what a template says is replaced by what was learnt: a text that a known template made
    is read as 'NAME.', cut where it has no room, whatever stands before or behind the name in the template. A
    text that no known template made is read as it stands. Known are open_clip's `OPENAI_IMAGENET_TEMPLATES`
    and `SIMPLE_IMAGENET_TEMPLATES` and 'a photo of a {}.'; `for_templates` gives one that knows others.

    Without text prompts every text is read as it stands.
    """

    def __init__(
        self, base: Any, reading: PromptedReading | None, sets: Sequence[TemplateSet] | None = None
    ) -> None:
        """Args:
        base: open_clip's tokenizer of the model.
        reading: of a student with text prompts, None for one without.
        sets: the templates that are known, set by set; None for those above.
        """
        self.base, self.reading, self.sets = base, reading, sets

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of copies that hold nothing yet
            raise AttributeError(name)
        return getattr(self.base, name)

    def for_templates(self, templates: Sequence[str | Callable[[str], str]]) -> "PromptTokenizer":
        """The tokenizer that knows these templates and no others; with none, every text is read as it stands.

        Args:
            templates: all templates of a class in the order in which the tool uses them: texts with `{}` or
                `{c}`, or functions of the name.

        Raises:
            UsageError: a template does not say where the name goes, or one text stands for the list.
        """
        if isinstance(templates, str):
            raise UsageError(f"templates are a list of texts; for one, give ['{shown(templates)}']")
        if self.reading is None:
            return self
        return PromptTokenizer(self.base, self.reading, [parse_templates(templates)] if templates else [])

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Tokens [B, T] int64 of one text or several.

        Args:
            texts: as a tool makes them.
            context_length: T, if not the model's.

        Raises:
            UsageError: a text that is read as it stands is too long for the room that the prompts leave.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if self.reading is None or not texts:
            tokens: Tensor = self.base(texts, context_length)
            return tokens
        names = names_in(texts, KNOWN if self.sets is None else self.sets)
        readings = [
            (text, True) if name is None else (name, False) for text, name in zip(texts, names, strict=True)
        ]
        # A class has one reading and many templates; it is cut, and warned of, once.
        distinct = sorted(dict.fromkeys(readings), key=lambda reading: reading[1])
        known = [text for text, as_it_stands in distinct if not as_it_stands]
        strange = [text for text, as_it_stands in distinct if as_it_stands]
        if strange and self.sets:  # who names templates has made all texts of them
            log.warning(
                "%d of %d texts were made by none of the templates and are read as they stand, first '%s'",
                names.count(None),
                len(texts),
                shown(strange[0]),
            )
        tokens_BT = torch.cat(
            [
                read(group)
                for read, group in ((self.reading.tokenize_names, known), (self.base, strange))
                if group
            ]
        )
        length = context_length or tokens_BT.shape[1]
        positions = min(self.reading.positions, length)
        for (text, _), end in zip(distinct, self.reading.ends(tokens_BT).tolist(), strict=True):
            if end >= positions:
                raise UsageError(
                    f"the text '{shown(text)}' is too long: there is room for {positions - 2} tokens of it; "
                    "shorten it, or, if a template made it, name the templates (tokenizer.for_templates)"
                )
        tokens_BT = F.pad(tokens_BT, (0, max(0, length - tokens_BT.shape[1])))[:, :length]
        row_of = {reading: row for row, reading in enumerate(distinct)}
        return tokens_BT[[row_of[reading] for reading in readings]]


def shown(text: str) -> str:
    """A text for a message, cut where it is long."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
