"""The choice of an encoding and its options, as settings of the build command.

An encoding declares its options as fields of its class. They are collected here, so that each becomes a
command-line option and a key of recipes without another line.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from teacher_cache.encodings.encoding import Encoding
from teacher_cache.encodings.registry import ENCODINGS, encoding_of
from teacher_cache.errors import UsageError

if TYPE_CHECKING:
    EncodingName = str
else:
    EncodingName = Literal[tuple(ENCODINGS)]


class EncodingChoice(BaseModel):
    """The encoding to create a cache with. `EncodingSettings` adds the options of all encodings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoding: EncodingName = Field(
        default="factored", description="how logits are stored; docs/format.md lists what each loses"
    )

    @property
    def encoding_record(self) -> dict[str, Any]:
        """The encoding with all its options, as the header records it."""
        names = _option_names(ENCODINGS[self.encoding])
        given = {field: getattr(self, option) for field, option in names.items()}
        options = {field: value for field, value in given.items() if value is not None}
        return encoding_of({"name": self.encoding, **options}).record

    def encoding_for(self, classes: int) -> Encoding:
        """Return the encoding for a vocabulary; defaults that it cannot meet are lowered.

        Raises:
            UsageError: the encoding cannot store this many classes, or not with the given options.
        """
        chosen = encoding_of(self.encoding_record)
        names = _option_names(type(chosen))
        lowered = {f: v for f, v in chosen.defaults(classes).items() if getattr(self, names[f]) is None}
        encoding = encoding_of({**chosen.record, **lowered})
        encoding.require_classes(classes)
        return encoding

    def lowered(self, classes: int) -> list[str]:
        """Return a remark for each default that `encoding_for` lowers."""
        chosen, used = encoding_of(self.encoding_record), self.encoding_for(classes)
        return [
            f"--{option.replace('_', '-')} is {getattr(used, field)}, not {getattr(chosen, field)}: the "
            f"vocabulary has {classes} classes"
            for field, option in _option_names(type(chosen)).items()
            if getattr(used, field) != getattr(chosen, field)
        ]

    @model_validator(mode="after")
    def _refuse_options_of_other_encodings(self) -> "EncodingChoice":
        allowed = _option_names(ENCODINGS[self.encoding]).values()
        for name, kind in ENCODINGS.items():
            for option in _option_names(kind).values():
                value = getattr(self, option)
                if value is not None and option not in allowed:
                    flag = f"--{option.replace('_', '-')}"
                    raise UsageError(f"{flag} belongs to --encoding {name}, not to {self.encoding}")
        return self


def _option_names(kind: type[Encoding]) -> dict[str, str]:
    """Names of the command-line options by the names of the encoding's fields."""
    return {field: kind.option_names.get(field, field) for field in kind.model_fields}


def _options() -> dict[str, Any]:
    """One optional field for each option of an encoding, with the type, bounds and help declared there."""
    found: dict[str, Any] = {}
    for kind in ENCODINGS.values():
        for name, option in _option_names(kind).items():
            if option in found:
                raise TypeError(f"two encodings have an option '{option}'; rename one in its option_names")
            field = kind.model_fields[name]
            annotation: Any = field.annotation
            if field.metadata:  # bounds
                annotation = Annotated[(annotation, *field.metadata)]
            description = f"{field.description} [default: {field.default}]"
            found[option] = (annotation | None, Field(default=None, description=description))
    return found


if TYPE_CHECKING:
    EncodingSettings = EncodingChoice
else:
    EncodingSettings = create_model("EncodingSettings", __base__=EncodingChoice, **_options())
