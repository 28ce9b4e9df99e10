"""Which messages ask for a picture."""

import pytest

from mobileo_mlx.serving.picture_wishes import Wish, read_wish


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Draw a cat.", "a cat"),
        ("please draw me a cat!", "a cat"),
        ("Can you draw a cat, please?", "a cat"),
        ("hey, could you paint a red house for me?", "a red house"),
        ("Hello! Sketch: two dogs", "two dogs"),
        ("generate an image of a red star", "a red star"),
        ("Generate 3 images of a boat", "a boat"),
        ("make me\na picture of a\ncat", "a cat"),
        ("make me a picture: two dogs", "two dogs"),
        ("show me a picture of a cat", "a cat"),
        ("I want a photo of a beach", "a photo of a beach"),
        ("I'd like an image with three squares", "an image with three squares"),
        ("Create a watercolor painting of a fox, thanks!", "a watercolor painting of a fox"),
        ("i'd like you to draw a horse", "a horse"),
    ],
)
@pytest.mark.parametrize("has_picture", [False, True])
def test_drawing(text, prompt, has_picture):
    assert read_wish(text, has_picture=has_picture) == Wish("generate", prompt)


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        ("make it blue", "make it blue"),
        ("Please make the star blue.", "make the star blue"),
        ("turn this into a cartoon", "turn this into a cartoon"),
        ("Add a hat, please", "Add a hat"),
        ("could you remove the dog?", "remove the dog"),
        ("replace the sky with a sunset", "replace the sky with a sunset"),
        ("change its color to red", "change its color to red"),
        ("draw a hat on him", "draw a hat on him"),
        ("put a hat on it", "put a hat on it"),
        ("give it a hat", "give it a hat"),
        ("draw it as a cartoon", "draw it as a cartoon"),
        ("paint the star red", "paint the star red"),
    ],
)
def test_editing(text, instruction):
    assert read_wish(text, has_picture=True) == Wish("edit", instruction)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is this?",
        "how do I draw a cat?",
        "What does the drawing show?",
        "describe the image",
        "show me the picture",
        "Draw a conclusion from this",
        "draw",
        "draw .",
        "generate images",
        "make a list of images",
        "make a summary",
        "I drew a cat",
        "The painter said: draw a cat",
        "add 3 and 4",
        "give me an example",
    ],
)
@pytest.mark.parametrize("has_picture", [False, True])
def test_questions(text, has_picture):
    assert read_wish(text, has_picture=has_picture) is None


@pytest.mark.parametrize("text", ["make it blue", "add a hat", "draw it", "remove the dog"])
def test_nothing_is_edited_where_there_is_no_picture(text):
    assert read_wish(text, has_picture=False) is None


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("draw x" + " " * 3900 + "y", "x y"),
        ("draw " + "!" * 3900 + "y", "y"),
        ("draw x" + " please" * 560, "x"),
        ("please, " * 480 + "draw x", "x"),
        ("please" + "." * 3900, None),
        ("make a" + " x" * 1900, None),
        ("make a" + "-" * 3900, None),
        ("add" + " a" * 1900 + "\n", "add" + " a" * 1900),
        ("draw a" + " on" * 1300, "a" + " on" * 1300),
        ("draw a cat " * 100_000, None),
    ],
)
def test_texts_that_are_made_to_take_long(text, prompt):
    """What backtracks does not end."""
    wish = read_wish(text, has_picture=True)
    assert (None if wish is None else wish.prompt) == prompt
