"""The texts about emoji are true of their scenes, by a reading of them that shares nothing with what wrote them."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.emoji import names
from benchmarks.emoji.edits import EDIT_TYPES, sample_edit
from benchmarks.emoji.questions import QUESTION_TYPES, sample_question
from benchmarks.emoji.recipe.curriculum import CURRICULUM
from benchmarks.emoji.recipe.tokenizer import emoji_tokenizer, learn_merges
from benchmarks.emoji.sprites import TONES, emoji
from benchmarks.emoji.text import CATEGORIES, all_descriptions, describe, sample_caption
from benchmarks.emoji.world import BACKGROUNDS, Scene, render_batch
from mobileo_mlx.conditioning import IGNORED_LABEL
from mobileo_mlx.errors import OptionError
from mobileo_mlx.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("made_up")

# What the words mean that are no emoji's own name; the rest means itself.
MEANINGS = {
    "face": {"grinning face", "slightly smiling face", "crying face", "monkey face", "dog face"},
    "happy face": {"grinning face", "slightly smiling face"},
    "heart": {"red heart", "blue heart"},
    "hand": {"raised hand", "waving hand"},
    "person": {"woman"},
    "dog": {"dog", "dog face"},
    "puppy": {"dog", "dog face"},
    "apple": {"red apple", "green apple"},
    "monkey": {"monkey", "monkey face"},
    "mouse": {"mouse"},
    "slice of pizza": {"pizza"},
    "cup of coffee": {"hot beverage"},
    "coffee": {"hot beverage"},
    "car": {"automobile"},
    "santa": {"Santa Claus"},
    "santa claus": {"Santa Claus"},
    "statue of liberty": {"Statue of Liberty"},
}
SINGULARS = {
    "wolves": "wolf", "mice": "mouse", "women": "woman", "puppies": "puppy", "people": "person",
    "cups of coffee": "cup of coffee", "slices of pizza": "slice of pizza",
}  # fmt: skip
NUMBERS = {"two": 2, "three": 3, "four": 4, "2": 2, "3": 3, "4": 4}
SIZES = {"small": "small", "tiny": "small", "little": "small", "large": "large", "big": "large"}
# How the first thing lies from the second: the signs of x and y.
RELATIONS = {
    "to the left of": (-1, 0), "left of": (-1, 0), "to the right of": (1, 0), "right of": (1, 0), "above": (0, -1),
    "over": (0, -1), "below": (0, 1), "under": (0, 1), "and": (-1, 0), "next to": (-1, 0), "beside": (-1, 0),
}  # fmt: skip


def called(index: int) -> str:
    return emoji(toned=True)[index].name


def means(noun: str, index: int) -> bool:
    return called(index) in MEANINGS.get(noun, {noun})


def without_article(phrase: str) -> str:
    return re.sub(r"^(a|an|the) ", "", phrase)


def assert_true(text: str, scene: Scene) -> None:
    """Every word of a caption is read, and holds in the scene."""
    text = re.sub(r"\.$", "", text[0].lower() + text[1:])
    found = re.search(r" (?:on|with) (?:an? )?(\w+)(?: background)?$", text)
    colour = "white"
    if found and found[1].replace("grey", "gray") in BACKGROUNDS:
        colour, text = found[1].replace("grey", "gray"), text[: found.start()]
    assert scene.background == colour
    first, *rest = text.split(" ", 1)
    if first in NUMBERS and rest:
        noun = SINGULARS.get(rest[0], rest[0].removesuffix("s"))
        assert len(scene.things) == NUMBERS[first]
        assert all(means(noun, thing.index) for thing in scene.things), text
        assert {thing.size for thing in scene.things} == {"small"}
        return
    for words, (x, y) in RELATIONS.items():
        left, joint, right = text.partition(f" {words} ")
        if joint:
            assert len(scene.things) == 2
            one, other = scene.things
            assert means(without_article(left), one.index), text
            assert means(without_article(right), other.index), text
            assert (np.sign(one.x - other.x), np.sign(one.y - other.y)) == (x, y)
            return
    assert len(scene.things) == 1
    thing = scene.things[0]
    text = without_article(text)
    size, _, rest_of_text = text.partition(" ")
    if size in SIZES:
        assert thing.size == SIZES[size]
        text = rest_of_text
    else:
        assert thing.size == "normal"
    tone = re.search(r" with ([\w-]+) skin$", text)
    assert emoji(toned=True)[thing.index].tone == (tone[1] if tone else None)
    assert means(text[: tone.start()] if tone else text, thing.index), text


def samples(sample, kinds, count=150, **options):
    rng = np.random.default_rng(0)
    return [sample(rng, kind, **options) for kind in kinds for _ in range(count)]


def test_captions_are_true_of_their_scenes():
    captions = samples(sample_caption, CATEGORIES)
    for caption in captions:
        assert_true(caption.text, caption.scene)
        assert len(caption.spec.things) == len(caption.scene.things)
        assert caption.spec.background == caption.scene.background
        for named, thing in zip(caption.spec.things, caption.scene.things, strict=True):
            assert thing.index in named.indices
            assert named.size in (None, thing.size)
    assert len({caption.text for caption in captions}) > 500


def test_the_checker_finds_what_is_wrong():
    wrong = 0
    texts = samples(sample_caption, CATEGORIES, 20)
    for one, other in zip(texts, texts[20:] + texts[:20], strict=True):
        try:
            assert_true(one.text, other.scene)
        except AssertionError:
            wrong += 1
    assert wrong >= 0.95 * len(texts)


def test_plain_captions_have_one_wording():
    for caption in samples(sample_caption, CATEGORIES, 50, plain=True):
        assert caption.text == caption.text.lower()
        assert not caption.text.endswith(".")
        assert not re.search(r"\b(big|tiny|little|beside|over|under|grey|puppy|puppies)\b", caption.text)
        assert caption.text in all_descriptions(caption.scene) or caption.category in ("two", "position")
    assert "a dog next to a pizza" in {c.text for c in samples(sample_caption, ["two"], 3000, plain=True)}


def test_descriptions_are_true_and_all_of_them_accepted():
    for caption in samples(sample_caption, CATEGORIES, 60):
        description = describe(caption.scene)
        assert description in all_descriptions(caption.scene)
        ordered = sorted(caption.scene.things, key=lambda thing: (thing.x, thing.y))
        for text in all_descriptions(caption.scene):
            # "X to the right of Y" and "X and Y" name the same two things in another order.
            scenes = [Scene(tuple(things), caption.scene.background) for things in (ordered, ordered[::-1])]
            assert _holds(text, scenes) or re.search(r"\b(and|next to|beside)\b", text), text


def _holds(text: str, scenes: list[Scene]) -> bool:
    for scene in scenes:
        try:
            assert_true(text, scene)
        except AssertionError:
            continue
        return True
    return False


def test_typed_captions_vary_as_people_type():
    texts = [caption.text for caption in samples(sample_caption, ["single"], 1000)]
    shares = [
        np.mean([text.endswith(".") for text in texts]),
        np.mean([text[0].isupper() for text in texts]),
    ]
    assert all(0.06 < share < 0.14 for share in shares)
    assert {"dog", "a dog", "A dog", "a dog."} <= set(texts)


def held_out_shown(scene: Scene) -> bool:
    return any(called(thing.index) in names.HELD_OUT for thing in scene.things)


def test_held_out_emoji_are_seen_alone_only():
    words = {"monkey", "mouse", "camera", "hammer", "monkeys", "mice", "cameras", "hammers"}
    alone = 0
    for caption in samples(sample_caption, CATEGORIES, 300):
        if len(caption.scene.things) > 1:
            assert not held_out_shown(caption.scene)
            assert not words & set(re.findall(r"\w+(?! face)", caption.text.lower()))
        alone += held_out_shown(caption.scene)
    assert alone > 0
    for question in samples(sample_question, QUESTION_TYPES):
        assert len(question.scene.things) == 1 or not held_out_shown(question.scene)
    for edit in samples(sample_edit, EDIT_TYPES):
        composes = edit.kind in ("replace", "add", "remove")
        several = any(len(scene.things) > 1 for scene in (edit.before, edit.after))
        shown = held_out_shown(edit.before) or held_out_shown(edit.after)
        assert not (shown and (composes or several)), edit


def test_compositions_of_held_out_emoji_can_be_asked_for():
    assert all(
        held_out_shown(each.scene)
        for each in samples(sample_caption, CATEGORIES[:3] + CATEGORIES[4:], 20, held_out=True)
    )
    assert all(
        held_out_shown(each.scene)
        for each in samples(sample_question, ["presence", "place", "count"], 20, held_out=True)
    )
    for edit in samples(sample_edit, ["replace", "add", "remove"], 20, held_out=True):
        assert held_out_shown(edit.before) or held_out_shown(edit.after)
    rng = np.random.default_rng(0)
    with pytest.raises(OptionError, match="compose nothing"):
        sample_edit(rng, "tone", held_out=True)
    with pytest.raises(OptionError, match="single things only"):
        sample_question(rng, "size", held_out=True)


def test_answers_are_right():
    for question in samples(sample_question, QUESTION_TYPES):
        assert question.answer in question.accepted
        text = re.sub(r"[?.]$", "", question.text[0].lower() + question.text[1:])
        things = question.scene.things
        if question.kind == "background":
            assert question.answer == question.scene.background
        elif question.kind == "size":
            assert question.answer == things[0].size
        elif question.kind == "count":
            asked = re.fullmatch("how many (.*) are there", text)[1]
            noun = SINGULARS.get(asked, asked.removesuffix("s"))
            anything = asked in ("things", "objects", "items", "emoji")
            assert (
                question.answer
                == ["one", "two", "three", "four"][sum(anything or means(noun, t.index) for t in things) - 1]
            )
        elif question.kind == "presence":
            asked = re.fullmatch("(?:is|are) there (.*)", text)[1]
            noun = without_article(asked)
            several = len(things) > 1 and len({thing.index for thing in things}) == 1
            noun = SINGULARS.get(noun, noun.removesuffix("s")) if several else noun
            assert question.answer == ("yes" if any(means(noun, thing.index) for thing in things) else "no"), question
        elif question.kind in ("place", "where"):
            place = question.answer if question.kind == "where" else text.removeprefix("what is ")
            key = {"on the left": 0, "on the right": 0, "at the top": 1, "at the bottom": 1}[place]
            chosen = (min if place in ("on the left", "at the top") else max)(things, key=lambda t: (t.x, t.y)[key])
            noun = re.sub("^where (is|are) ", "", text) if question.kind == "where" else question.answer
            assert means(without_article(noun), chosen.index), question
        elif question.kind == "name" and len(things) > 1:
            assert means(SINGULARS.get(question.answer, question.answer.removesuffix("s")), things[0].index)
        elif question.kind == "name":
            assert_true(question.answer, Scene((things[0].__class__(things[0].index),)))
        elif question.kind == "describe":
            assert question.accepted == all_descriptions(question.scene)


def test_presence_is_asked_for_what_is_there_half_of_the_time():
    answers = Counter(question.answer for question in samples(sample_question, ["presence"], 600))
    assert 0.44 < answers["yes"] / 600 < 0.56


def test_kinds_are_plain_words():
    kinds = {called(index): found for index, found in names.kinds().items()}
    assert kinds["dog"] == ("an animal",)
    assert kinds["grapes"] == ("a fruit", "food")
    assert kinds["grinning face"] == ("a face",)


def test_edits_change_what_they_say():
    for edit in samples(sample_edit, EDIT_TYPES):
        text = re.sub(r"\.$", "", edit.text[0].lower() + edit.text[1:])
        before, after = edit.before, edit.after
        assert before != after
        if edit.kind == "background":
            assert text.split(" ")[-1].replace("grey", "gray") == after.background
            assert before.things == after.things
            continue
        assert before.background == after.background
        old, new = [t.index for t in before.things], [t.index for t in after.things]
        if edit.kind == "size":
            sizes = ("small", "normal", "large")
            step = sizes.index(after.things[0].size) - sizes.index(before.things[0].size)
            assert old == new
            assert step == (-1 if text.endswith("smaller") else 1)
        elif edit.kind == "tone":
            tone = re.search(r"skin ([\w-]+)$|([\w-]+) skin$", text)
            assert emoji(toned=True)[new[0]].tone == (tone[1] or tone[2])
            assert called(new[0]) == called(old[0])
        elif edit.kind == "add":
            added = re.sub(" next to it$", "", re.sub("^(add|put) ", "", text))
            assert new[0] == old[0]
            assert means(without_article(added), new[1])
            assert [(t.x, t.size) for t in after.things] == [(32, "small"), (96, "small")]
        elif edit.kind == "remove":
            (kept,) = new
            (gone,) = set(old) - {kept}
            assert means(without_article(text.removeprefix("remove ")), gone)
            assert after.things[0].size == "normal"
        else:
            subject, added = re.fullmatch("(?:replace|change|turn) (.*?) (?:with|into) (.*)", text).groups()
            (at,) = [i for i, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
            assert means(without_article(added), new[at])
            assert means(without_article(subject), old[at]) or (subject == "it" and len(old) == 1)
            assert before.things[at].x == after.things[at].x
            assert before.things[at].size == after.things[at].size


def test_sampling_is_decided_by_the_generator():
    for sample in (sample_caption, sample_question, sample_edit):
        first, second = ([sample(rng) for _ in range(50)] for rng in map(np.random.default_rng, (3, 3)))
        assert first == second
        assert first != [sample(np.random.default_rng(4)) for _ in range(50)]


def test_all_tones_are_shown():
    tones = {emoji(toned=True)[c.scene.things[0].index].tone for c in samples(sample_caption, ["tone"])}
    assert tones == set(TONES)


def test_scenes_can_be_drawn():
    scenes = [caption.scene for caption in samples(sample_caption, CATEGORIES, 3)]
    assert len(np.unique(render_batch(scenes).reshape(len(scenes), -1), axis=0)) > 10


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("cup of coffee", "cups of coffee"), ("strawberry", "strawberries"), ("key", "keys"), ("box", "boxes"),
        ("green leaf", "green leaves"), ("face with a mask", None), ("bus", "buses"), ("sheep", "sheep"),
    ],
)  # fmt: skip
def test_plurals(noun, plural):
    assert names.plural_of(noun) == plural


@pytest.mark.parametrize(
    "phrase", ["an owl", "a unicorn", "an umbrella", "an hourglass", "an herb", "a ewe", "an x-ray", "a one-piece"]
)
def test_articles_are_as_spoken(phrase):
    assert names.a(phrase.split(" ", 1)[1]) == phrase


@pytest.fixture(scope="module")
def tokenizer(made_up):
    return Tokenizer(emoji_tokenizer())


def test_each_word_is_one_token_and_a_plural_its_singular_and_s(tokenizer):
    texts = [each.text for each in samples(sample_caption, CATEGORIES)]
    texts += [each.text for each in samples(sample_edit, EDIT_TYPES)]
    for text in texts:
        nouns = re.findall(r" [a-z]+", f" {text}".lower() if text[0] in "ATFM" else f" {text}")
        for noun in nouns:
            parts = [tokenizer.decode([token]) for token in tokenizer.encode(noun)]
            assert len(parts) == 1 or (len(parts) == 2 and parts[1] == "s"), (text, parts)
    dogs, dog = tokenizer.encode(" dogs"), tokenizer.encode(" dog")
    assert dogs[:1] == dog
    assert len(dogs) == 2
    for question in samples(sample_question, QUESTION_TYPES, 40):
        text = f"{question.text} {question.answer}"
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_build_the_words():
    merges = learn_merges(["\u0120apple", "\u0120ape", "\u0120desk"])
    assert {"".join(pair) for pair in merges} >= {"\u0120apple", "\u0120ape", "\u0120desk"}
    assert all(right != "s" or left.startswith("\u0120") for left, right in merges)
    assert learn_merges(["b", "a"]) == []


def test_sequences_are_those_of_inference(tokenizer):
    rng = np.random.default_rng(0)
    drawn = CURRICULUM.captions(rng, tokenizer, 4)
    assert len(drawn.drawn) == 4
    assert not drawn.seen
    assert (drawn.labels == IGNORED_LABEL).all()
    edited = CURRICULUM.edits(rng, tokenizer, 4)
    assert len(edited.drawn) == len(edited.seen) == 4
    asked = replace(CURRICULUM, phases=((1.0, ("background",)),)).questions(rng, tokenizer, 4)
    answers = [tokenizer.decode([i for i in row if i != IGNORED_LABEL], skip_special=True) for row in asked.labels]
    assert answers == [scene.background for scene in asked.seen]
    assert set(CURRICULUM.kinds_at(0)) < set(CURRICULUM.kinds_at(1)) == set(QUESTION_TYPES)
