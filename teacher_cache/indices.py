"""Rows and classes as users write them: integers, slices, ranges, lists, arrays, tensors and masks.

Imports only NumPy: tensors are recognised by their methods.
"""

import operator
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import UsageError

# An integer, a slice, or integers or a mask in a range, list, array, tensor or iterator.
Indices: TypeAlias = SupportsIndex | slice | Iterable[Any]
SHOWN = 3  # wrong values in a message


def as_indices(
    wanted: Indices,
    size: int,
    what: str = "rows",
    of: str = "a cache",
    unit: str = "samples",
    distinct: bool = False,
) -> NDArray[np.int64]:
    """Return indices into an axis as an array, [K] int64, in the requested order.

    Args:
        wanted: an integer, a slice, a range, or a one-dimensional list, array or tensor (on any device) of
            integers or of `size` booleans, a mask. Only a slice counts negative numbers from the end.
        size: length of the axis.
        what, of, unit: what is selected, from what, and what that contains, for messages.
        distinct: whether an index may occur only once.

    Raises:
        UsageError: other types or dimensions, an index that is not on the axis, or one that is repeated.
    """
    expected = f"expected integers, a slice or a mask of all {size} {unit}"
    if isinstance(wanted, slice):
        try:
            return np.arange(*wanted.indices(size))
        except (TypeError, ValueError) as error:
            raise UsageError(f"invalid {what} {wanted}: {expected}") from error
    if isinstance(wanted, range):  # a list of 14 million numbers would take a second
        wanted = np.arange(wanted.start, wanted.stop, wanted.step)
    array = _array(wanted)
    if array is None:
        raise UsageError(f"invalid {what}, {type(wanted).__name__}: {expected}")
    found = np.atleast_1d(array)
    if found.ndim != 1:
        raise UsageError(f"invalid {what} of shape {list(found.shape)}: {expected}, in one dimension")
    if array.dtype == np.bool_ and array.ndim:
        if len(found) != size:
            raise UsageError(f"invalid {what}, a mask of {len(found)} values: {expected}")
        return np.flatnonzero(found)
    if len(found) == 0:
        return found.astype(np.int64)
    if not np.issubdtype(found.dtype, np.integer):
        raise UsageError(f"invalid {what} {shown(found)} ({found.dtype}): {expected}")
    if found.min() < 0 or found.max() >= size:
        outside = found[(found < 0) | (found >= size)]
        raise UsageError(
            f"{what} {shown(outside)} requested from {of} of {size} {unit}: expected 0 to {size - 1}; only a "
            "slice counts from the end"
        )
    found = found.astype(np.int64, copy=False)
    if distinct and len(found) > 1:
        values, counts = np.unique(found, return_counts=True)
        if len(values) < len(found):
            raise UsageError(
                f"{what} {shown(values[counts > 1])} requested more than once: expected each once"
            )
    return found


def as_index(wanted: Any, size: int, what: str, of: str) -> int:
    """Return one index into an axis.

    Raises:
        UsageError: not an integer, or not on the axis.
    """
    try:
        index = -1 if isinstance(wanted, bool | np.bool_) else operator.index(wanted)
    except TypeError:
        index = -1
    if not 0 <= index < size:
        raise UsageError(f"{what} {wanted} is not in {of} 0 to {size - 1}")
    return index


def as_texts(wanted: Iterable[str], what: str) -> list[str]:
    """Return texts as a list: those of a list, tuple, array or other iterable, but not of a single text.

    Raises:
        UsageError: a single text, none, or something that is not a text.
    """
    if isinstance(wanted, str | bytes):
        raise UsageError(f"{what} must be a list of texts: [{wanted!r}], not {wanted!r}")
    try:
        texts = list(wanted)
    except TypeError as error:
        raise UsageError(f"{what} must be a list of texts, not {type(wanted).__name__}") from error
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise UsageError(f"{what} must be texts; {len(wrong)} of {len(texts)} are not, first {wrong[0]!r}")
    if not texts:
        raise UsageError(f"expected at least one of {what}, found none")
    return [str(text) for text in texts]  # NumPy's texts, too


def as_integer(wanted: Any, what: str) -> int:
    """Return an integer of Python, NumPy or torch as an int.

    Raises:
        UsageError: not an integer.
    """
    if not isinstance(wanted, bool | np.bool_):
        with suppress(TypeError):
            return operator.index(wanted)
    raise UsageError(f"the {what} must be an integer, not {wanted!r}")


def as_number(wanted: Any, what: str) -> float:
    """Return a number of Python, NumPy or torch as a float.

    Raises:
        UsageError: not one number.
    """
    if not isinstance(wanted, str | bytes | bool | np.bool_):
        try:
            return float(wanted)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise UsageError(f"the {what} must be one number, not {wanted!r}")


def shown(values: NDArray[Any]) -> str:
    """Return the first values for a message."""
    more = ", ..." if len(values) > SHOWN else ""
    return f"[{', '.join(map(repr, values[:SHOWN].tolist()))}{more}]"


def _array(wanted: Any) -> NDArray[Any] | None:
    """Return an integer or a sequence as an array; None if it is neither."""
    if isinstance(wanted, str | bytes | set | frozenset | dict):  # a set has no order
        return None
    if isinstance(wanted, Iterator):
        wanted = list(wanted)
    try:
        if hasattr(wanted, "detach"):  # a tensor: NumPy takes only those on the CPU, without gradients
            wanted = wanted.detach().cpu()
        elif not hasattr(wanted, "__array__") and isinstance(wanted, Collection):
            wanted = list(wanted)
        array = np.asarray(wanted)
        if array.dtype == np.object_ and {type(one) for one in array.flat} <= {int, np.int64}:
            return array.astype(np.int64)  # from pandas, whose columns may have any type
        return array
    except (TypeError, ValueError, OverflowError, RuntimeError):  # different lengths, bfloat16
        return None
