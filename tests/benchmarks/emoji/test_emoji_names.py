"""The lists of names, against the real data: where it has not been fetched, these tests are skipped."""

from collections import Counter, defaultdict
from fnmatch import fnmatchcase

import numpy as np
import pytest

from benchmarks.emoji import names, words
from benchmarks.emoji.edits import sample_edit
from benchmarks.emoji.questions import sample_question
from benchmarks.emoji.recipe.tokenizer import emoji_tokenizer
from benchmarks.emoji.sprites import TONES, emoji, sprites
from benchmarks.emoji.text import sample_caption
from mobileo_mlx.prompts import encode_prompt, generate_prompt
from mobileo_mlx.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("fetched")


def test_every_entry_of_the_lists_is_of_an_emoji_that_exists():
    known = [each.name for each in emoji()]
    listed = {*names._entries(words.PHRASES), *names._entries(words.KINDS), *words.UNNAMED, *words.UNCOUNTED}
    assert listed | set(names.HELD_OUT) <= set(known)
    for patterns in names._entries(words.SHORT).values():
        assert all(any(fnmatchcase(name, pattern) for name in known) for pattern in patterns.split(", ")), patterns
    nouns = {name.noun for own in names.names().values() for name in own}
    assert nouns >= words.PROPER


def test_every_emoji_has_a_name_of_its_own():
    unnamed = {each.name for index, each in enumerate(emoji()) if index not in names.names()}
    assert unnamed == words.UNNAMED
    own = Counter(names.names()[index][0].phrase() for index in range(len(emoji())) if index in names.names())
    assert own.most_common(1)[0][1] == 1


def test_a_phrase_draws_one_emoji():
    drawn = defaultdict(set)
    for own in names.names().values():
        for name in own:
            drawn[name.phrase()].add(name.index)
            assert name.index in name.indices
    assert {len(indices) for indices in drawn.values()} == {1}


def test_the_held_out_are_fifty_that_could_be_composed():
    assert len(names.HELD_OUT) == len(set(names.HELD_OUT)) == len(names.held_out()) == 50
    assert all(names.names()[index][0].plural for index in names.held_out())


def test_no_name_says_what_captions_say_of_layout():
    for own in names.names().values():
        for name in own:
            assert name.noun.split(" ")[0] not in ("small", "large", "big", "tiny", "little"), name
            assert name.phrase().split(" ")[0] not in ("two", "three", "four"), name
            assert not {"next", "beside", "above", "below", "under", "background"} & set(name.noun.split(" ")), name
            assert name.noun == name.noun.lower()


def test_skin_tones_are_those_that_the_pictures_show():
    everything, pictures = emoji(toned=True), sprites("small")
    brightness = defaultdict(dict)
    for index, each in enumerate(everything):
        if each.tone:
            opaque = pictures[index][pictures[index][..., 3] > 250]
            brightness[each.name][each.tone] = opaque[:, :3].mean()
    assert len(brightness) == 40
    for name, found in brightness.items():
        assert sorted(found, key=found.get, reverse=True) == list(TONES), name


def test_kinds():
    kinds = {each.name: names.kinds()[index][0] for index, each in enumerate(emoji())}
    expected = {
        "dog": "an animal", "owl": "a bird", "red apple": "a fruit", "pizza": "food", "red heart": "a heart",
        "automobile": "a vehicle", "guitar": "an instrument", "house": "a building", "rose": "a flower",
        "hammer": "a tool", "woman": "a person", "star": "a star", "pirate flag": "a flag", "socks": "clothing",
    }  # fmt: skip
    assert {name: kinds[name] for name in expected} == expected
    assert all(kinds.values())


def test_what_newcomers_type_is_in_the_language():
    drawn = {name.phrase(): name.index for own in names.names().values() for name in own}
    called = {phrase: emoji()[index].name for phrase, index in drawn.items() if index < len(emoji())}
    for phrase, name in [
        ("a red apple", "red apple"), ("an apple", "red apple"), ("a dog", "dog"), ("a cat", "cat"),
        ("a pizza", "pizza"), ("a car", "automobile"), ("a heart", "red heart"), ("a tree", "deciduous tree"),
        ("a flower", "blossom"), ("a house", "house"), ("a sun", "sun"), ("a moon", "crescent moon"),
        ("coffee", "hot beverage"),
        ("a phone", "mobile phone"), ("a bike", "bicycle"), ("a plane", "airplane"), ("a cake", "birthday cake"),
    ]:  # fmt: skip
        assert called[phrase] == name


def test_the_vocabulary_is_small_and_every_word_few_tokens():
    tokenizer = Tokenizer(emoji_tokenizer())
    assert tokenizer.vocab_size < 3400
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(1000):
        text = sample_caption(rng).text
        lengths.append(len(encode_prompt(tokenizer, generate_prompt(text))))
        # A hyphen is a token, and an "s" that makes a plural.
        assert len(tokenizer.encode(f" {text[0].lower()}{text[1:]}")) <= len(text.replace("-", " - ").split()) * 2 + 1
    assert np.mean(lengths) < 18
    for sample in (sample_question, sample_edit):
        for _ in range(300):
            text = sample(rng).text
            assert tokenizer.decode(tokenizer.encode(text)) == text
            for word in f" {text}".rstrip("?.").replace("-", " ").split()[1:]:
                assert len(tokenizer.encode(f" {word}")) <= 2, text
