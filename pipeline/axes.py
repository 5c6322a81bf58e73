"""Parse the axes of a sweep from the command line. Imports nothing slow."""

from collections.abc import Sequence

from student_train.runs.record import FREE_ON_RESUME
from teacher_cache.errors import UsageError

FREE = FREE_ON_RESUME | {"cache", "seed"}  # they change no result, or have their own option


def parse_axes(assignments: Sequence[str]) -> dict[str, list[str]]:
    """Parse `train.NAME=VALUE,VALUE` into values by name.

    Raises:
        UsageError: not of this form, a setting of another stage, or one that the sweep sets itself.
    """
    axes: dict[str, list[str]] = {}
    for text in assignments:
        left, equals, right = text.partition("=")
        stage, dot, name = left.strip().replace("-", "_").partition(".")
        values = [value.strip() for value in right.split(",")]
        if not (equals and dot and name and all(values)):
            raise UsageError(f"--set {text}: expected train.NAME=VALUE,VALUE,...")
        if stage != "train":
            raise UsageError(
                f"--set {text}: an axis must be a setting of train, because all runs share one cache "
                "or those of the recipe's rows"
            )
        if name in FREE:
            raise UsageError(
                f"--set {text}: "
                + ("use --seeds" if name == "seed" else f"{name} cannot be an axis of a sweep")
                + ("; give each cache a [[row]] in the recipe" if name == "cache" else "")
            )
        if name in axes:
            raise UsageError(
                f"--set {text}: train.{name} is already an axis; give all its values in one --set"
            )
        axes[name] = values
    return axes
