"""Mutations of valid files: bytes of any file, fields of JSON."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

BYTES = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\n",
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b"../",
    b"\x1b[2J",
]
DEEP = "[" * 100_000  # deeper than any parser goes

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        255,
        256,
        65_536,
        10**6,
        2**31,
        2**32 - 1,
        10**12,
        2**63,
        2**64,
        10**30,
    ),
    *(0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", " ", "0", "-1", "a", "a\0b", "a\nb", "\x1b[31mred", "\ud800", "..", "../../outside", "/etc/passwd"),
    *("x" * 5000, "9" * 5000, "{}", "{:{}}", "{0.__class__}", "${HOME}", "float64", "<U9", "object"),
    *([], {}, [[]], [None], {"": ""}, [1, 2, 3], [10**12, 10**12], {"name": "a"}),
]


@st.composite
def damaged(draw: st.DrawFn, content: bytes, most: int = 6) -> bytes:
    """Bytes with some of them changed, removed, repeated or inserted."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        kind = draw(st.sampled_from(["bit", "byte", "known", "cut", "drop", "double", "insert", "digit"]))
        length = draw(st.integers(1, 64))
        if kind == "bit" and changed:
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and changed:
            changed[at] = draw(st.integers(0, 255))
        elif kind == "digit" and changed:
            changed[at] = draw(st.sampled_from(b"0123456789-+.eE"))
        elif kind == "known":
            known = draw(st.sampled_from(BYTES))
            changed[at : at + len(known)] = known
        elif kind == "cut":
            del changed[at:]
        elif kind == "drop":
            del changed[at : at + length]
        elif kind == "double":
            changed[at:at] = changed[at : at + length]
        else:
            changed[at:at] = draw(st.binary(min_size=1, max_size=16))
    return bytes(changed)


@st.composite
def changed_json(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """Decoded JSON with some fields replaced, removed, renamed or nested."""
    root = {"": copy.deepcopy(value)}
    for _ in range(draw(st.integers(1, most))):
        holder, key = draw(st.sampled_from(_places(root)))
        kind = draw(st.sampled_from(["value", "value", "value", "near", "remove", "rename", "wrap"]))
        old = holder[key]
        if kind == "near" and isinstance(old, int | float):
            holder[key] = draw(
                st.sampled_from([old + 1, old - 1, -old, old * 10**6, old * 10**12, float(old)])
            )
        elif kind == "near" and isinstance(old, str):
            holder[key] = draw(st.sampled_from([old + "\0", old[:-1], old + "x", "../" + old, "\n" + old]))
        elif kind == "near" and isinstance(old, list):
            holder[key] = draw(st.sampled_from([old + old, old[:-1], old[::-1]]))
        elif kind == "remove" and holder is not root:
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict) and holder is not root:
            holder[draw(st.sampled_from(["", "x", "name", "a\0"]))] = holder.pop(key)
        elif kind == "wrap":
            holder[key] = [old]
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return root[""]


@st.composite
def damaged_json(draw: st.DrawFn, value: Any) -> bytes:
    """JSON as bytes: with changed fields, with changed bytes, or nested too deeply."""
    kind = draw(st.sampled_from(["fields"] * 6 + ["bytes"] * 3 + ["deep"]))
    if kind == "deep":
        text = json.dumps(value)
        at = draw(st.integers(0, len(text)))
        return (text[:at] + DEEP + text[at:]).encode()
    if kind == "bytes":
        return draw(damaged(json.dumps(value).encode()))
    return json.dumps(draw(changed_json(value))).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return the container and key of every field."""
    places, todo = [], [value]
    while todo:
        holder = todo.pop()
        for key in range(len(holder)) if isinstance(holder, list) else list(holder):
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                todo.append(holder[key])
    return places
