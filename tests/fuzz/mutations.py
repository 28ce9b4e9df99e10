"""Mutations of JSON, which know its structure, and of bytes.

The first choices are the mildest, so that hypothesis finds the smallest change that breaks something.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Raw(str):
    """Text that stands in JSON as it is."""


class Pairs(list):
    """The pairs of a JSON object, of which several may have the same key."""


ESCAPE = "\x1b]52;c;QQ==\x07\x9b31m"
TEXTS = (
    "", "6", "a", "../x", "/etc/passwd", "/dev/zero", "~", "~root/x", "a" * 300, "x" * 100_000, ESCAPE, "a\0b",
    "\ud800", "\u202e\u2066", "nan", "-1", "(.+)+@", "(a|a)*b",
    "[", "é", "😀", " ", "\n", "float16", "llm", "<|im_end|>",
    "NaN",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 1000, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**9, 10**18, -(2**63),
    0.0, -0.0, 0.5, 1.5, 5e-324, 1e-30, 1e30, 1e38, 3.5e38, 1e300, -1e300,
)  # fmt: skip
RAW = tuple(
    Raw(text)
    for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 400, "-" + "9" * 5000, "[" * 200 + "]" * 200,
                 '{"a":' * 150 + "1" + "}" * 150, "[" * 50_000, "01", "'a'", "// a", r'"\ud800"', r'"\x1b"', "tru")
)  # fmt: skip
CONTAINERS = ([], [[]], [None], [1], ["a"], Pairs(), Pairs([("a", 1)]), [0] * 1000, [1e300, -1])

hostile = st.one_of(
    st.sampled_from((None, True, False)),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(CONTAINERS),
    st.sampled_from(RAW),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
)


def parse(text: str | bytes) -> Any:
    """JSON whose objects are `Pairs`."""
    return json.loads(text, object_pairs_hook=Pairs)


def dump(value: Any) -> str:
    """The inverse of `parse`, with `Raw` text as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(str(key))}:{dump(inside)}" for key, inside in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


@st.composite
def json_bytes(draw: Draw, base: Any) -> bytes:
    """A JSON file that differs from `base`, a value or the text of one, in some places."""
    tree = parse(base if isinstance(base, str | bytes) else json.dumps(base))
    holder = [tree]
    for _ in range(draw(st.integers(1, 3))):
        change(draw, holder)
    data = dump(holder[0]).encode("utf-8", "surrogatepass")
    return data if draw(st.integers(0, 9)) else draw(damaged(data))


def change(draw: Draw, holder: list[Any]) -> None:
    """Changes one place below `holder`, which holds the tree."""
    parent, index = holder, 0
    while True:
        child = parent[index][1] if isinstance(parent, Pairs) else parent[index]
        if not isinstance(child, list) or not child or (parent is not holder and not draw(st.integers(0, 3))):
            break
        parent, index = child, draw(st.integers(0, len(child) - 1))
    if parent is holder and draw(st.integers(0, 9)):
        return
    put = (lambda value: (parent[index][0], value)) if isinstance(parent, Pairs) else (lambda value: value)
    kind = draw(st.integers(0, 9))
    if kind <= 3:
        parent[index] = put(deepcopy(draw(hostile)))
    elif kind <= 5:
        parent[index] = put(deepcopy(draw(_near(child))))
    elif parent is holder:
        parent[0] = deepcopy(draw(hostile))
    elif kind == 6:
        del parent[index]
    elif kind == 7 and isinstance(parent, Pairs):
        parent[index] = (draw(st.sampled_from(TEXTS)), child)
    elif kind == 8:
        parent.insert(index, put(deepcopy(draw(hostile))))  # in an object the same key twice
    else:
        other = draw(st.integers(0, len(parent) - 1))
        parent[index], parent[other] = parent[other], parent[index]


def _near(value: Any) -> st.SearchStrategy[Any]:
    """Values like this one."""
    if isinstance(value, bool) or value is None:
        return st.sampled_from((True, False, None, 1, "true"))
    if isinstance(value, int):
        return st.sampled_from(
            (value + 1, value - 1, -value, 2 * value, value * 1000, float(value), str(value), [value])
        )
    if isinstance(value, float):
        return st.sampled_from((-value, value * 1e30, value / 1e30, str(value), [value], int(value), not value))
    if isinstance(value, Raw):
        return hostile
    if isinstance(value, str):
        return st.sampled_from(
            (value + "x", value[:-1], value.upper(), [value], value * 50, f"../{value}", value + ESCAPE)
        )
    if isinstance(value, list):
        return st.sampled_from((value[:-1], value + value[-1:], value * 3, value[::-1], list(value), [value]))
    return hostile


@st.composite
def damaged(draw: Draw, data: bytes) -> bytes:
    """A file that was cut, joined, transcoded, or changed in single bytes."""
    kind = draw(st.integers(0, 7))
    place = draw(st.integers(0, max(len(data) - 1, 0)))
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data + draw(st.sampled_from((b"x", b"\0" * 600, data, b"]", b"\xff")))
    if kind == 2:
        return b"\xef\xbb\xbf" + data
    if kind == 3:
        return data.decode("utf-8", "replace").encode(draw(st.sampled_from(("utf-16", "utf-16-be", "utf-32"))))
    if kind == 4:
        return data[:place] + draw(st.binary(min_size=1, max_size=8)) + data[place:]
    if kind == 5:
        return data[:place] + data[place + draw(st.integers(1, 64)) :]
    if kind == 6:
        return draw(
            st.sampled_from(
                (b"", b"\0" * 100, b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"\x80\x04.")
            )
        )
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        if changed:
            changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)
