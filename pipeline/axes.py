"""The axes of a sweep, as the command line names them. Nothing here takes time to import."""

from collections.abc import Sequence

from student_train.runs.record import FREE_ON_RESUME
from teacher_cache.errors import UsageError

FREE = FREE_ON_RESUME | {"cache", "seed"}  # no axes: they change nothing, or have an option of their own


def parse_axes(assignments: Sequence[str]) -> dict[str, list[str]]:
    """`train.NAME=VALUE,VALUE` as name -> values.

    Raises:
        UsageError: not of this form, another stage's setting, or one that a sweep sets itself.
    """
    axes: dict[str, list[str]] = {}
    for text in assignments:
        left, equals, right = text.partition("=")
        stage, dot, name = left.strip().replace("-", "_").partition(".")
        values = [value.strip() for value in right.split(",")]
        if not (equals and dot and name and all(values)):
            raise UsageError(f"--set {text}: it is train.NAME=VALUE,VALUE,...")
        if stage != "train":
            raise UsageError(
                f"--set {text}: the axes of a sweep are settings of train; its runs share one cache"
            )
        if name in FREE:
            raise UsageError(
                f"--set {text}: "
                + ("--seeds says how many" if name == "seed" else f"{name} is no axis of a sweep")
            )
        if name in axes:
            raise UsageError(f"--set {text}: train.{name} is an axis already; give it all values at once")
        axes[name] = values
    return axes
