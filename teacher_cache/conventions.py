"""Conventions of a model's weights: what a weights file does not contain, and results depend on.

They are the activation (QuickGELU or GELU) and the preprocessing of images. `teacher/registry.py` finds
those of a file. Fast to import.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from teacher_cache.errors import UsageError
from teacher_cache.files.json_text import first_problem


def _finite(numbers: tuple[float, float, float]) -> tuple[float, float, float]:
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("expected three finite numbers")
    return numbers


def _positive(numbers: tuple[float, float, float]) -> tuple[float, float, float]:
    if not all(number > 0 for number in _finite(numbers)):
        raise ValueError("expected three numbers above 0")
    return numbers


def _of_pixels(numbers: tuple[float, float, float]) -> tuple[float, float, float]:
    if not all(0 <= number <= 1 for number in numbers):
        raise ValueError("expected three numbers from 0 to 1; divide those for pixels of 0 to 255 by 255")
    return numbers


Mean = Annotated[tuple[float, float, float], AfterValidator(_finite)]
Std = Annotated[tuple[float, float, float], AfterValidator(_positive)]
ResizeMode = Literal["shortest", "longest", "squash"]

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
FIELDS = ("quick_gelu", *PREPROCESSING)
# The field of every command that loads a weights file without a record of its conventions.
WEIGHTS_LIKE: Any = Field(
    default=None,
    description="pretrained tag of the model whose conventions (QuickGELU, preprocessing) a weights file has "
    "[default: recognised by the file, or those of all tags if they agree]",
)


class ConventionOptions(BaseModel):
    """Conventions that the user states; single ones take precedence over those of `weights_like`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights_like: str | None = WEIGHTS_LIKE
    quick_gelu: bool | None = Field(
        default=None, description="activation of the model: QuickGELU or GELU [default: that of the weights]"
    )
    mean: Annotated[Mean, AfterValidator(_of_pixels)] | None = Field(
        default=None, description="mean of the pixels, 0 to 1, red, green, blue [default: the weights' own]"
    )
    std: Annotated[Std, AfterValidator(_of_pixels)] | None = Field(
        default=None, description="standard deviation of the pixels, 0 to 1 [default: the weights' own]"
    )
    interpolation: Literal["bicubic", "bilinear"] | None = Field(
        default=None, description="how images are resized [default: the weights' own]"
    )
    resize_mode: ResizeMode | None = Field(
        default=None, description="which side of an image is resized [default: the weights' own]"
    )

    @property
    def stated(self) -> dict[str, Any]:
        """The conventions that the user states, by field."""
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not None}


class Conventions(BaseModel):
    """The conventions that a model was loaded with, as caches and students record them.

    Attributes:
        source: where they are from, for example 'tag openai'.
    """

    model_config = ConfigDict(frozen=True)

    quick_gelu: bool
    mean: Mean
    std: Std
    interpolation: str
    resize_mode: ResizeMode
    source: str = "the record of an earlier version"

    @property
    def fields(self) -> dict[str, Any]:
        """The conventions by field, without their source."""
        return {name: getattr(self, name) for name in FIELDS}

    def differ(self, other: "Conventions") -> list[str]:
        """Return a text per field in which they differ: name, own value and the other's."""
        ours, theirs = self.fields, other.fields
        return [
            f"{name} {shown(ours[name])}, not {shown(theirs[name])}"
            for name in FIELDS
            if ours[name] != theirs[name]
        ]


def shown(value: Any) -> str:
    """Return the value of a convention as text."""
    return ", ".join(f"{number:g}" for number in value) if isinstance(value, list | tuple) else str(value)


def described(fields: dict[str, Any]) -> str:
    """Return conventions as text: 'QuickGELU, mean 0.5, 0.5, 0.5, ...'."""
    names = [("QuickGELU" if fields["quick_gelu"] else "GELU")] if "quick_gelu" in fields else []
    return "; ".join(names + [f"{name} {shown(fields[name])}" for name in PREPROCESSING if name in fields])


def recorded_conventions(teacher: dict[str, Any]) -> Conventions | None:
    """Return the conventions that the record of a teacher has; None if an earlier version recorded none.

    Args:
        teacher: as `Teacher.describe` returns it.

    Raises:
        UsageError: the record is damaged.
    """
    if any(teacher.get(name) is None for name in FIELDS):
        return None
    fields = {name: teacher[name] for name in FIELDS}
    if teacher.get("conventions_from"):
        fields["source"] = teacher["conventions_from"]
    try:
        return Conventions(**fields)
    except ValidationError as error:
        raise UsageError(f"the record of the teacher is damaged: {first_problem(error)}") from error
