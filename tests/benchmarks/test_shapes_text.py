import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.shapes.edits import EDIT_TYPES, free_place, sample_edit
from benchmarks.shapes.questions import QUESTION_TYPES, questions_about, sample_question
from benchmarks.shapes.text import (
    MIXTURE,
    a,
    all_descriptions,
    describe,
    plural,
    sample_caption,
    split_words,
    vocabulary,
)
from benchmarks.shapes.world import CATEGORIES, COLOURS, HELD_OUT, SHAPES, WORLD, Object, Scene
from mobileo_mlx.errors import OptionError

C, S, BG = "|".join(COLOURS), "|".join(SHAPES), "white|gray|cyan|beige"
REL = "to the left of|to the right of|above|below"
ENDING = rf"( on a ({BG}) background)?"
CAPTIONS = {
    "single": rf"an? (({C}) )?({S}){ENDING}",
    "two": rf"an? (({C}) )?({S}) and an? (({C}) )?({S}){ENDING}",
    "count": rf"(one ({C}) ({S})|(two|three|four) ({C}) ({S})(es|s)){ENDING}",
    "position": rf"an? (({C}) )?({S}) ({REL}) an? (({C}) )?({S}){ENDING}",
}
QUESTIONS = {
    "colour": (rf"what color (is the ({S})|are the ({S})(es|s))\?", C),
    "shape": (rf"what shape is the ({C}) object\?", S),
    "count": (rf"how many (objects|({S})(es|s)) are there\?", "one|two|three|four"),
    "presence": (rf"is there an? (({C}) )?({S})\?", "yes|no"),
    "relation": (rf"is the ({S}) ({REL}) the ({S})\?", "yes|no"),
    "where": (rf"where is the ({S}) relative to the ({S})\?", "to the left|to the right|above|below"),
    "background": (r"what color is the background\?", BG),
    "describe": (r"describe the image\.", "|".join(CAPTIONS.values())),
}
EDITS = {
    "colour": rf"make the ({S}) ({C})",
    "shape": rf"change the ({S}) into an? ({S})",
    "remove": rf"remove the ({S})",
    "add": rf"add an? ({C}) ({S})",
    "background": rf"change the background to ({BG})",
}


def test_words() -> None:
    assert a("orange star") == "an orange star"
    assert a("star") == "a star"
    assert [plural(shape) for shape in ("cross", "star")] == ["crosses", "stars"]


@pytest.mark.parametrize("category", CATEGORIES)
def test_captions_say_what_the_scene_is(category: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        caption = sample_caption(rng, category)
        assert re.fullmatch(CAPTIONS[category], caption.text)
        assert caption.category == category
        assert not re.search(r"\b(a orange|an [^o])", caption.text)
        assert caption.spec.background == caption.scene.background
        assert ("background" in caption.text) or caption.scene.background == "white"
        for (shape, colour), thing in zip(caption.spec.objects, caption.scene.objects, strict=True):
            assert thing.shape == shape
            assert colour in (None, thing.colour)
        if category == "position":
            first, second = caption.scene.objects
            dx, dy = first.x - second.x, first.y - second.y
            expected = {(-4, 0): "to the left of", (4, 0): "to the right of", (0, -4): "above", (0, 4): "below"}[dx, dy]
            assert caption.spec.relation == expected
            assert f" {expected} " in caption.text


def test_caption_texts() -> None:
    rng = np.random.default_rng(0)
    caption = sample_caption(rng, "count", named_background=1.0)
    shape, colour = caption.scene.objects[0].pair
    number = ("one", "two", "three", "four")[len(caption.scene.objects) - 1]
    noun = shape if number == "one" else plural(shape)
    assert caption.text == f"{number} {colour} {noun} on a {caption.scene.background} background"
    assert sample_caption(rng, "two", coloured=False).spec.objects[0][1] is None


def test_mixture() -> None:
    rng = np.random.default_rng(4)
    counts = Counter(sample_caption(rng).category for _ in range(3000))
    assert all(counts[category] / 3000 == pytest.approx(share, abs=0.04) for category, share in MIXTURE.items())


def test_unnamed_colours_leave_no_doubt() -> None:
    rng = np.random.default_rng(5)
    for _ in range(500):
        things = sample_caption(rng, "position").spec.objects
        if None in (things[0][1], things[1][1]):
            assert things[0][0] != things[1][0]


def test_descriptions() -> None:
    red, blue = Object("star", "red", 6, 2), Object("cross", "orange", 2, 2)
    assert describe(Scene((red,))) == "a red star"
    assert describe(Scene((red, blue), "gray")) == "an orange cross and a red star on a gray background"
    assert describe(Scene((Object("star", "red", 2, 6), blue))) == "an orange cross above a red star"
    assert describe(Scene((red, Object("star", "red", 2, 6)))) == "two red stars"
    assert describe(Scene((red, blue, Object("circle", "red", 4, 6)))) is None
    assert all_descriptions(Scene((red,))) == {
        f"{start} red star{end}" for start in ("a", "one") for end in ("", " on a white background")
    }
    assert "a red star to the right of an orange cross on a gray background" in all_descriptions(
        Scene((blue, red), "gray")
    )
    assert not any("left of an orange" in text for text in all_descriptions(Scene((blue, red))))


@pytest.mark.parametrize("kind", QUESTION_TYPES)
def test_questions_have_their_answers(kind: str) -> None:
    rng = np.random.default_rng(6)
    answers: Counter[str] = Counter()
    for _ in range(400):
        question = sample_question(rng, kind)
        pattern, answer = QUESTIONS[kind]
        assert re.fullmatch(pattern, question.text)
        assert re.fullmatch(answer, question.answer)
        assert question.answer in question.accepted
        assert question.answer == answer_of(question.text, question.scene) or kind == "describe"
        answers[question.answer] += 1
    if kind in ("presence", "relation"):
        assert 0.4 < answers["yes"] / 400 < 0.6


def answer_of(text: str, scene: Scene) -> str:
    """Answers by rules that know nothing of how the question was made."""
    words = re.findall(r"\w+", text)
    things = scene.objects
    shapes = [shape for word in words for shape in SHAPES if word in (shape, plural(shape))]
    colours = [word for word in words if word in COLOURS]
    if "background" in words:
        return scene.background
    if words[:2] == ["how", "many"]:
        return ["zero", "one", "two", "three", "four"][sum(not shapes or t.shape == shapes[0] for t in things)]
    if words[:2] == ["is", "there"]:
        return "yes" if any(t.shape == shapes[0] and colours in ([], [t.colour]) for t in things) else "no"
    if words[:2] == ["what", "shape"]:
        (shape,) = {t.shape for t in things if t.colour == colours[0]}
        return shape
    if words[:2] == ["what", "color"]:
        (colour,) = {t.colour for t in things if t.shape == shapes[0]}
        return colour
    if words[0] == "describe":
        return ""
    first, second = (next(t for t in things if t.shape == shape) for shape in shapes)
    across = {-4: "to the left", 4: "to the right"}.get(first.x - second.x)
    place = across or {-4: "above", 4: "below"}[first.y - second.y]
    return place if words[0] == "where" else "yes" if place in text else "no"


def test_all_questions_about_a_scene() -> None:
    scene = Scene((Object("star", "red", 2, 4), Object("circle", "pink", 6, 4)), "beige")
    kinds = [question.kind for question in questions_about(np.random.default_rng(0), scene)]
    assert kinds == list(QUESTION_TYPES)
    one = questions_about(np.random.default_rng(0), Scene((Object("star", "red", 2, 4),)))
    assert {question.kind for question in one} == set(QUESTION_TYPES) - {"relation", "where"}


@pytest.mark.parametrize("kind", EDIT_TYPES)
def test_edits_change_one_thing(kind: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(300):
        edit = sample_edit(rng, kind)
        assert re.fullmatch(EDITS[kind], edit.text)
        before, after = set(edit.before.objects), set(edit.after.objects)
        gone, come = before - after, after - before
        changes = {"colour": (1, 1), "shape": (1, 1), "remove": (1, 0), "add": (0, 1), "background": (0, 0)}
        assert (len(gone), len(come)) == changes[kind]
        assert (edit.before.background != edit.after.background) == (kind == "background")
        if kind in ("colour", "shape"):
            (old,), (new,) = gone, come
            assert (old.x, old.y) == (new.x, new.y)
            assert (old.colour != new.colour, old.shape != new.shape) == (kind == "colour", kind == "shape")
        if kind in ("colour", "shape", "remove"):
            assert sum(thing.shape == next(iter(gone)).shape for thing in before) == 1
        places = [(thing.x, thing.y) for thing in after]
        assert all(max(abs(p[0] - q[0]), abs(p[1] - q[1])) >= 4 for p in places for q in places if p is not q)


def test_free_place() -> None:
    assert free_place(Scene((Object("star", "red", 2, 4),))) == (6, 4)
    assert free_place(Scene((Object("star", "red", 4, 6),))) == (4, 2)
    assert free_place(Scene((Object("star", "red", 4, 4),))) is None
    assert free_place(Scene((Object("star", "red", 2, 2), Object("cross", "red", 6, 2)))) == (4, 6)
    assert free_place(Scene((Object("star", "red", 6, 6), Object("cross", "red", 6, 2)))) == (2, 4)
    assert free_place(Scene((Object("star", "red", 2, 4), Object("cross", "red", 6, 4)))) is None


def test_held_out_pairs_are_neither_shown_nor_mentioned() -> None:
    rng = np.random.default_rng(8)
    mentions = re.compile("|".join(rf"\b{colour} {shape}" for shape, colour in HELD_OUT))
    for _ in range(1500):
        caption, question, edit = sample_caption(rng), sample_question(rng), sample_edit(rng)
        text = f"{caption.text} {question.text} {question.answer} {edit.text}"
        assert not mentions.search(text)
        shown = caption.scene.pairs | question.scene.pairs | edit.before.pairs | edit.after.pairs
        assert not shown & HELD_OUT


@pytest.mark.parametrize("sample", [sample_question, sample_edit])
def test_held_out_samples(sample: Callable) -> None:
    rng = np.random.default_rng(9)
    for _ in range(200):
        thing = sample(rng, held_out=True)
        pairs = thing.pairs if sample is sample_question else thing.before.pairs | thing.after.pairs
        assert pairs & HELD_OUT


def test_no_held_out_question_is_about_the_background() -> None:
    with pytest.raises(OptionError, match="background"):
        sample_question(np.random.default_rng(0), "background", held_out=True)


def test_held_out_captions_name_the_pair() -> None:
    rng = np.random.default_rng(10)
    for _ in range(200):
        assert set(sample_caption(rng, held_out=True).spec.objects) & HELD_OUT


@pytest.mark.parametrize("name", [None, "brown", "ring"])
def test_vocabulary_has_all_words(name: str | None) -> None:
    world = WORLD if name is None else WORLD.extended(name)
    rng = np.random.default_rng(11)
    words = set()
    for _ in range(2500):
        question = sample_question(rng, world=world)
        texts = (
            sample_caption(rng, world=world).text,
            question.text,
            question.answer,
            sample_edit(rng, world=world).text,
        )
        words |= {word for text in texts for word in split_words(text)}
    assert words == set(vocabulary(world))
