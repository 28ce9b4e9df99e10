"""What a model reads of messages, and which pictures are in them."""

import json

import pytest

pytest.importorskip("starlette")

from mobileo_mlx.serving.errors import ApiError
from mobileo_mlx.serving.messages import read_messages, reference

ID = "20261126-120820-788760-225097b4ffe82f48a88aa2d6f280cfdd"
URL = f"http://localhost:8642/v1/pictures/{ID}/content"
DATA = "data:image/png;base64,iVBORw0KGgo="


def spoken(*messages):
    return [(one.role, one.text) for one in read_messages(list(messages)).spoken]


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def test_roles():
    messages = [said("developer", "Be brief."), said("user", "Hi"), said("assistant", "Hello"), said("user", "Why?")]
    assert spoken(*messages) == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")]
    read = read_messages(messages)
    assert (read.wish, read.pictures, read.result) == ("Why?", [], None)


def test_parts():
    parts = [
        {"type": "image_url", "image_url": {"url": "one", "detail": "high"}},
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": "two"},
        {"type": "input_image", "image_url": "three"},
        {"type": "text", "text": "this?"},
    ]
    (message,) = read_messages([said("user", parts)]).spoken
    assert message.text == "What is\nthis?"
    assert [(image.url, image.param) for image in message.images] == [
        ("one", "messages[0].content[0].image_url"),
        ("two", "messages[0].content[2].image_url"),
        ("three", "messages[0].content[3].image_url"),
    ]


@pytest.mark.parametrize("url", [URL, f"/v1/pictures/{ID}/content", DATA])
def test_a_picture_in_an_answer_is_an_image_and_a_word(url):
    text = f"Look:\n![a red star, bright]({url})\nThere."
    read = read_messages([said("user", "draw a star"), said("assistant", text), said("user", "make it blue")])
    assert read.spoken[1].text == "Look:\n(a picture)\nThere."
    assert [image.url for image in read.pictures] == [url]
    assert not read.pictures[0].needed  # it may be gone long since


def test_other_links_are_text():
    text = "![x](https://example.org/a.png) [y](data:image/png;base64,AA) ![z](http://h/v1/pictures/x)"
    read = read_messages([said("assistant", text), said("user", "?")])
    assert (read.spoken[0].text, read.pictures) == (text, [])


def test_addresses_of_this_server_are_pictures():
    assert reference(URL) == f"picture:{ID}"
    for other in (DATA, "https://example.org/a.png", f"{URL}?x", f"file:///v1/pictures/{ID}/content"):
        assert reference(other) == other


def call(name, id="call_1"):
    function = {"name": name, "arguments": '{"prompt": "a star"}'}
    return said("assistant", None, tool_calls=[{"id": id, "type": "function", "function": function}])


def test_calls_for_pictures_and_their_results_are_not_read():
    result = json.dumps({"status": "success", "images": [{"url": "/api/v1/files/5/content"}]})
    messages = [said("user", "draw a star"), call("generate_image"), said("tool", result, tool_call_id="call_1")]
    read = read_messages(messages)
    assert [(one.role, one.text) for one in read.spoken] == [("user", "draw a star"), ("assistant", "")]
    assert (read.result, read.wish) == (result, "")
    assert [picture.url for picture in read.pictures] == ["/api/v1/files/5/content"]
    later = read_messages([*messages, said("assistant", "Here is the picture."), said("user", "make it blue")])
    assert (later.result, later.wish) == (None, "make it blue")
    assert [picture.url for picture in later.pictures] == ["/api/v1/files/5/content"]


@pytest.mark.parametrize("result", ["done", '{"images": 5}', '{"images": [5, {"url": 5}]}', "[]", "{", ""])
def test_results_of_any_kind(result):
    read = read_messages([call("generate_image"), said("tool", result, tool_call_id="call_1")])
    assert (read.result, read.pictures) == (result, [])


def test_results_of_other_tools_are_read():
    messages = [said("user", "How warm is it?"), call("weather"), said("tool", "30 C", tool_call_id="call_1")]
    read = read_messages(messages)
    assert read.result is None
    assert [(one.role, one.text) for one in read.spoken][-1] == ("user", "30 C")


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hello", "messages"),
        ([5], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([said("king", "x")], "messages[0].role"),
        ([said(["user"], "x")], "messages[0].role"),
        ([said("user", None)], "messages[0].content"),
        ([said("user", 5)], "messages[0].content"),
        ([said("user", [{"type": "text"}])], "messages[0].content[0]"),
        ([said("user", [{"type": "image_url"}])], "messages[0].content[0].image_url"),
        ([said("user", [{"type": "input_audio", "input_audio": {}}])], "messages[0].content[0]"),
        ([said("user", [5])], "messages[0].content[0]"),
        ([said("system", [{"type": "image_url", "image_url": DATA}])], "messages[0].content"),
    ],
)
def test_what_has_another_form_is_refused_by_name(value, param):
    with pytest.raises(ApiError) as caught:
        read_messages(value)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    "text", ["![" * 10**6, "![](data:image/" * 10**5, "![](http://" * 10**5, "![x](" + "/v1/pictures/" * 10**5]
)
def test_texts_that_are_made_to_take_long(text):
    """What backtracks does not end."""
    assert read_messages([said("user", text)]).spoken[0].text == text
