"""Whatever stands in a request for a chat: it is read, or refused by name."""

import asyncio
import copy

import pytest

pytest.importorskip("starlette")
pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from mobileo_mlx.serving.chat_api import _tool_call
from mobileo_mlx.serving.chat_requests import read_asked
from mobileo_mlx.serving.errors import ApiError

CALL = {"id": "1", "type": "function", "function": {"name": "generate_image", "arguments": "{}"}}
SCHEMA = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}, "image_urls": {"type": "array"}, "size": {"enum": ["a"]}},
    "required": ["prompt", "size"],
}
REQUEST = {
    "model": "x",
    "stream": True,
    "stream_options": {"include_usage": True},
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "name": "me",
            "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "AAAA"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "name": "generate_image", "content": '{"images": [{"url": "x"}]}'},
        {"role": "assistant", "content": "![x](/v1/pictures/5/content)"},
        {"role": "user", "content": "draw a cat"},
    ],
    "max_tokens": 5,
    "temperature": 0.5,
    "stop": ["a"],
    "tools": [
        {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
        for name in ("generate_image", "edit_image")
    ],
    "tool_choice": {"type": "function", "function": {"name": "edit_image"}},
    "response_format": {"type": "text"},
    "n": 1,
}
WORDS = ["user", "tool", "assistant", "generate_image", "edit_image", "text", "required", "make it blue"]
NUMBERS = st.integers(-3, 2**70) | st.floats(allow_nan=False)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=9) | st.sampled_from(WORDS),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=5,
)


def places(value, path=()):
    """The paths to all that stands in a JSON value."""
    yield path
    for name, inside in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(inside, (*path, name))


PLACES = [path for path in places(REQUEST) if path]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=3), st.integers(1, 6))
def test_junk_anywhere(changes, count):
    fields = copy.deepcopy(REQUEST)
    fields["messages"] = fields["messages"][:count]
    for path, junk in changes:
        value = fields
        try:
            for name in path[:-1]:
                value = value[name]
            value[path[-1]] = junk
        except (IndexError, KeyError, TypeError):  # an earlier change has replaced it
            continue
    refusal = None
    try:
        asked = asyncio.run(read_asked(fields))
        asked.wish()
        _tool_call(asked)
    except ApiError as error:
        refusal = error
    assert refusal is None or (refusal.status == 400 and refusal.param)
