"""An answer to a whole conversation equals one that is computed from the beginning, whatever was kept of it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from PIL import Image

from mobileo_mlx import Answer, MobileO, Turn
from mobileo_mlx.conditioning import embed_prompts, encode_image
from mobileo_mlx.conversation_caches import ConversationCaches, Kept
from mobileo_mlx.conversations import read_conversation
from mobileo_mlx.decoding import DecodedToken, decode
from mobileo_mlx.errors import ImageError, OptionError, PromptError
from mobileo_mlx.models.qwen2 import DecoderLayer, KVCache
from mobileo_mlx.parts import Parts
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX, encode_prompt, first_turn, next_turn

FIRST, SECOND, THIRD = "What is this?", "And why is it a circle?", "Is there a star?"


def turns(*texts: str, images: Sequence[Image.Image] = ()) -> list[Turn]:
    """The user and the assistant in turn; the images are shown first."""
    roles = ("user", "assistant")
    return [Turn(roles[i % 2], text, images if i == 0 else ()) for i, text in enumerate(texts)]  # type: ignore[arg-type]


def picture(color: str) -> Image.Image:
    image = Image.new("RGB", (96, 64), color)
    image.paste((240, 220, 90), (0, 0, 48, 64))
    return image


class Asked:
    """A model whose answers are compared with those from the beginning; the head's logits are remembered."""

    def __init__(self, model: MobileO, monkeypatch: pytest.MonkeyPatch):
        self.model, self.logits = model, list[mx.array]()
        self.head = model.parts.lm_head
        monkeypatch.setattr(Parts, "lm_head", property(lambda parts: self.called))

    def called(self, hidden: mx.array) -> mx.array:
        self.logits.append(self.head(hidden))
        return self.logits[-1]

    def anew(self, messages: Sequence[Turn], max_tokens: int = 6) -> list[DecodedToken]:
        """The tokens from the beginning, by none of the functions that keep anything."""
        parts = self.model.parts
        conversation = read_conversation(parts, messages)
        features = [encode_image(parts, image)[0] for image in conversation.images]
        embeds = embed_prompts(parts.llm.embed_tokens, [conversation.ids], features).inputs_embeds
        ends = self.model.config.eos_token_ids
        cache = parts.llm.make_cache()
        return list(decode(parts.llm, self.head, embeds, cache, max_tokens=max_tokens, eos_token_ids=ends))

    def check(self, messages: Sequence[Turn], max_tokens: int = 6, *, cached: int | None = None) -> Answer:
        """Asks, compares, and returns the answer; `cached` positions were known."""
        self.logits.clear()
        answer = self.model.answer(messages, max_tokens=max_tokens)
        first, anew = self.logits[0].reshape(-1), self.anew(messages, max_tokens)
        assert mx.allclose(first, anew[0].logits, atol=1e-4)
        assert answer.tokens == [token.token for token in anew]
        length = self.positions(messages)
        assert answer.prompt_tokens + answer.cached_tokens == length
        if cached is not None:
            assert answer.cached_tokens == cached
        return answer

    def positions(self, messages: Sequence[Turn]) -> int:
        conversation = read_conversation(self.model.parts, messages)
        return len(conversation.ids) + len(conversation.images) * (self.model.config.image_tokens - 1)

    def common(self, one: Sequence[Turn], other: Sequence[Turn]) -> int:
        """How many ids two conversations without images begin with in common."""
        ids = [read_conversation(self.model.parts, messages).ids for messages in (one, other)]
        return next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)


@pytest.fixture
def asked(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(MobileO.load(tiny_model), monkeypatch)


def test_a_conversation_is_read_as_a_chat_is(asked: Asked) -> None:
    tokenizer = asked.model.tokenizer
    image = picture("red")
    conversation = read_conversation(asked.model.parts, turns(FIRST, "A circle.", SECOND, images=[image, image]))
    answered = tokenizer.encode("A circle.")
    expected = [*encode_prompt(tokenizer, first_turn(FIRST, images=2)), *answered]
    assert conversation.ids == [*expected, *encode_prompt(tokenizer, next_turn(SECOND))]
    assert len(conversation.images) == 2
    own = [Turn("system", "Be brief."), *turns(FIRST)]
    assert read_conversation(asked.model.parts, own).ids == encode_prompt(
        tokenizer, first_turn(FIRST, system_prompt="Be brief.")
    )
    for silent in ([Turn("system", ""), *turns(FIRST)], turns(FIRST)):
        ids = read_conversation(asked.model.parts, silent, system_prompt="").ids
        assert ids == encode_prompt(tokenizer, first_turn(FIRST, system_prompt=""))


def test_an_answer_that_was_begun_goes_on(asked: Asked) -> None:
    begun = turns(FIRST, "It is a")
    tokenizer = asked.model.tokenizer
    ids = read_conversation(asked.model.parts, begun).ids
    assert ids == [*encode_prompt(tokenizer, first_turn(FIRST)), *tokenizer.encode("It is a")]
    asked.check(begun)


def test_what_marks_an_image_is_text_in_an_answer(asked: Asked) -> None:
    """The model may have written it, and its owner can't write it another way."""
    messages = turns(FIRST, "<image> is a tag<image>", SECOND)
    ids = read_conversation(asked.model.parts, messages).ids
    assert IMAGE_TOKEN_INDEX not in ids
    assert "assistant\n<image> is a tag<image><|im_end|>\n" in asked.model.tokenizer.decode(ids)
    asked.check(messages)


def test_an_empty_answer_is_none(asked: Asked) -> None:
    """Of an assistant that called a tool."""
    parts = asked.model.parts
    assert (
        read_conversation(parts, turns(FIRST, "", SECOND)).ids
        == read_conversation(parts, [Turn("user", FIRST), Turn("user", SECOND)]).ids
    )


def test_every_turn_computes_what_is_new(asked: Asked) -> None:
    messages = turns(FIRST, images=[picture("red")])
    known = 0
    for text in (SECOND, THIRD, FIRST):
        answer = asked.check(messages, cached=None if known else 0)
        assert answer.cached_tokens >= known
        known = asked.positions(messages)
        messages += turns(text) if not answer.text else [Turn("assistant", answer.text), Turn("user", text)]
    assert asked.check(messages).cached_tokens >= known
    assert asked.check(messages, cached=asked.positions(messages) - 1)


def test_an_answer_is_known_where_its_text_gives_its_tokens(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    said = asked.model.tokenizer.encode("It is a red circle.")
    answered = turns(FIRST, "It is a red circle.", SECOND)
    head, calls = asked.head, iter(range(100))

    def forced(hidden: mx.array) -> mx.array:
        logits = head(hidden)
        named = mx.arange(logits.shape[-1]) == said[next(calls)]
        return mx.broadcast_to(mx.where(named, 100.0, 0.0), logits.shape)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "lm_head", property(lambda parts: forced))
        assert asked.model.answer(turns(FIRST), max_tokens=len(said)).tokens == said
    # All but the last token, which nothing was computed from.
    asked.check(answered, cached=asked.positions(turns(FIRST)) + len(said) - 1)


def test_a_branch_leaves_the_conversation_as_it_is(asked: Asked) -> None:
    long = "This is rather a long answer about nothing at all, and it goes on and on until it ends at last."
    trunk, branch = turns(FIRST, long, SECOND), turns(FIRST, long, THIRD)
    edited = turns("What is that, then?", long, SECOND)
    asked.check(trunk, cached=0)
    asked.check(branch, cached=asked.common(trunk, branch))
    asked.check(edited, cached=asked.common(trunk, edited))
    asked.check(trunk, cached=asked.positions(trunk) - 1)
    asked.check(branch, cached=asked.positions(branch) - 1)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("way", ["closed", "dropped"])
def test_after_an_answer_that_was_stopped_early(asked: Asked, count: int, way: str) -> None:
    stream = asked.model.stream_messages(turns(FIRST), max_tokens=20)
    tokens = [next(stream) for _ in range(count)]
    assert [token.token for token in tokens] == [token.token for token in asked.anew(turns(FIRST), 20)[:count]]
    if way == "closed":
        stream.close()  # type: ignore[attr-defined]
    del stream
    gc.collect()
    asked.check(turns(FIRST), cached=asked.positions(turns(FIRST)) - 1)
    said = "".join(token.text for token in tokens)
    answer = asked.check([*turns(FIRST), Turn("assistant", said), Turn("user", SECOND)])
    assert answer.cached_tokens >= asked.positions(turns(FIRST))


@pytest.mark.parametrize("length", [1, 4])
def test_after_an_answer_that_max_tokens_cut(asked: Asked, length: int) -> None:
    answer = asked.check(turns(FIRST), length)
    assert answer.finish_reason == "length"
    asked.check([*turns(FIRST), Turn("assistant", answer.text), Turn("user", SECOND)])
    asked.check([*turns(FIRST), Turn("assistant", answer.text)])


def test_after_an_answer_that_a_stop_text_ended(asked: Asked) -> None:
    anew = asked.model.tokenizer.decode(token.token for token in asked.anew(turns(FIRST), 20))
    stop = anew[6:9]
    answer = asked.model.answer(turns(FIRST), max_tokens=20, stop=[stop, "never"])
    assert (answer.text, answer.finish_reason) == (anew[: anew.index(stop)].strip(), "stop")
    assert answer.timings["decode"] > 0
    assert len(answer.tokens) < 20
    stream = list(asked.model.stream_messages(turns(FIRST), max_tokens=20, stop=stop))
    assert "".join(token.text for token in stream) == anew[: anew.index(stop)]
    asked.check(turns(FIRST), 20)
    asked.check([*turns(FIRST), Turn("assistant", answer.text), Turn("user", SECOND)])


def test_images_are_told_apart(asked: Asked) -> None:
    red, blue = picture("red"), picture("blue")
    images = asked.model.config.image_tokens
    asked.check(turns(FIRST, images=[red, blue]), cached=0)
    system = asked.common(turns(FIRST), turns(SECOND))  # the system turn and the head of the user's
    beginning = asked.check(turns(FIRST, images=[blue, red])).cached_tokens
    assert beginning == system
    assert asked.check(turns(SECOND, images=[red, red])).cached_tokens > images  # the first one is known
    assert asked.check(turns(SECOND, images=[red, blue])).cached_tokens > 2 * images
    assert asked.check(turns(SECOND, images=[red, red, blue])).cached_tokens > 2 * images
    later = [*turns(SECOND, "Yes.", images=[red, blue]), Turn("user", THIRD, [blue, red])]
    assert asked.check(later).cached_tokens > 2 * images
    assert asked.check(later, cached=asked.positions(later) - 1)


def test_what_is_not_kept_any_more_is_computed(asked: Asked) -> None:
    caches = asked.model.parts.conversations = ConversationCaches(asked.model.config.image_tokens, count=2)
    texts = [f"{text} {FIRST}" for text in ("Apples and pears.", "Some bread.", "Salt.")]
    for text in texts:
        asked.check(turns(text))
    assert len(caches) == 2
    assert asked.check(turns(texts[2])).prompt_tokens == 1
    assert asked.check(turns(texts[1])).prompt_tokens == 1
    assert asked.check(turns(texts[0])).prompt_tokens > 1

    size = caches.nbytes // 2
    caches = asked.model.parts.conversations = ConversationCaches(asked.model.config.image_tokens, limit=5 * size // 2)
    for text in texts:
        asked.check(turns(text))
    assert len(caches) == 2
    assert 0 < caches.nbytes <= 5 * size // 2
    caches = asked.model.parts.conversations = ConversationCaches(asked.model.config.image_tokens, limit=size // 2)
    asked.check(turns(FIRST), cached=0)
    assert len(caches) == caches.nbytes == 0
    asked.check(turns(FIRST), cached=0)


def test_two_open_streams_never_share_a_cache(asked: Asked) -> None:
    asked.check(turns(FIRST))
    messages = [turns(FIRST), turns(FIRST), turns(SECOND)]
    expected = [[token.token for token in asked.anew(each, 12)] for each in messages]
    streams = [asked.model.stream_messages(each, max_tokens=12) for each in messages]
    got: list[list[int]] = [[], [], []]
    for _ in range(12):
        for stream, tokens in zip(streams, got, strict=True):
            tokens += [token.token for token in (next(stream, None),) if token is not None]
    assert got == expected
    del streams
    asked.check(turns(FIRST), cached=asked.positions(turns(FIRST)) - 1)


def test_other_weights_know_nothing(asked: Asked) -> None:
    llm = asked.model.parts.llm
    before = asked.check(turns(FIRST))
    llm.update(tree_map(lambda array: array * 1.5, llm.parameters()))
    mx.eval(llm)
    assert asked.check(turns(FIRST), cached=0).tokens != before.tokens
    asked.check(turns(FIRST), cached=asked.positions(turns(FIRST)) - 1)


def test_the_first_image_does_not_forget_what_was_said_without(asked: Asked) -> None:
    asked.check(turns(FIRST))
    asked.check(turns(SECOND, images=[picture("red")]))
    asked.check(turns(FIRST), cached=asked.positions(turns(FIRST)) - 1)
    tower = asked.model.parts.vision_tower
    tower.update(tree_map(lambda array: array * 1.5, tower.parameters()))
    mx.eval(tower)
    asked.check(turns(FIRST), cached=asked.positions(turns(FIRST)) - 1)
    answer = asked.check(turns(SECOND, images=[picture("red")]))
    assert answer.prompt_tokens > asked.model.config.image_tokens


def test_released_parts_keep_nothing(asked: Asked) -> None:
    asked.check(turns(FIRST))
    asked.model.release()
    assert len(asked.model.parts.conversations) == 0
    asked.model.parts["lm_head"]
    assert asked.model.answer(turns(FIRST), max_tokens=6).cached_tokens == 0


def test_parts_that_keep_nothing_answer_as_well(tiny_model: Path, asked: Asked) -> None:
    staged = MobileO.load(tiny_model, keep_loaded=False)
    messages = turns(FIRST, "A circle.", SECOND, images=[picture("red")])
    for _ in range(2):
        answer = staged.answer(messages, max_tokens=6)
        assert answer.tokens == [token.token for token in asked.anew(messages)]
        assert answer.cached_tokens == 0
    assert len(staged.parts.conversations) == 0


def test_an_interrupted_computation_is_not_kept(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.check(turns(FIRST))
    third, call = asked.model.parts.llm.layers[2], DecoderLayer.__call__
    left = iter([True, False])

    def interrupted(self: DecoderLayer, *arguments: Any) -> mx.array:
        if self is third and not next(left):
            raise KeyboardInterrupt
        return call(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DecoderLayer, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            asked.model.answer(turns(FIRST, "A circle.", SECOND), max_tokens=6)
    asked.check(turns(FIRST, "A circle.", SECOND))
    asked.check(turns(FIRST))


def test_a_conversation_may_go_from_thread_to_thread(asked: Asked) -> None:
    found: list[Any] = []

    def in_thread(function: Any) -> Any:
        thread = threading.Thread(target=lambda: found.append(function()))
        thread.start()
        thread.join()
        return found.pop()

    stream = asked.model.stream_messages(turns(FIRST), max_tokens=20)
    for _ in range(3):
        in_thread(lambda: next(stream))
    in_thread(stream.close)  # type: ignore[attr-defined]
    answer = in_thread(lambda: asked.model.answer(turns(FIRST), max_tokens=6))
    assert answer.tokens == [token.token for token in asked.anew(turns(FIRST))]
    assert answer.prompt_tokens == 1


@pytest.mark.parametrize(
    ("messages", "error", "match"),
    [
        ([], PromptError, "no turn of the user"),
        (turns(" "), PromptError, "question is empty"),
        (turns("an <image>"), PromptError, "literal text <image>"),
        ([Turn("system", "an <image>"), *turns(FIRST)], PromptError, "system prompt holds"),
        (turns(FIRST, "\ud800", FIRST), PromptError, "answer is not valid Unicode"),
        ([*turns(FIRST), Turn("tool", "3")], OptionError, "'tool'"),  # type: ignore[arg-type]
        ([Turn("system", "", picture("red")), *turns(FIRST)], OptionError, "'system' with 1 images"),
        ([Turn("user", FIRST, "/nowhere.png")], ImageError, "nowhere"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(
    asked: Asked, messages: list[Turn], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        asked.model.stream_messages(messages)


def test_an_image_needs_no_words(asked: Asked) -> None:
    asked.check([Turn("user", "", picture("red"))])


@pytest.mark.parametrize("text", ["Why? ", "?", "w h y "])
def test_what_is_beyond_the_context_is_refused_at_once(asked: Asked, text: str) -> None:
    context = asked.model.config.llm.max_position_embeddings
    with pytest.raises(PromptError, match=rf"context has {context};"):
        asked.model.stream_messages(turns(text * context))
    with pytest.raises(PromptError, match=rf"context has {context};"):
        asked.model.stream_messages(turns(FIRST, text * context, SECOND))


# The caches alone


def kept(key: Sequence[int | str], version: int = 0) -> Kept:
    layer = KVCache()
    length = len(key) + 3 * sum(isinstance(entry, str) for entry in key)
    array = mx.arange(length, dtype=mx.float32).reshape(1, 1, length, 1)
    layer.update_and_fetch(array, array)
    return Kept(tuple(key), [layer], ("llm",), (version,))


@pytest.fixture
def caches() -> Iterator[ConversationCaches]:
    return ConversationCaches(4)  # type: ignore[return-value]


def current(networks: Sequence[str]) -> tuple[int, ...]:
    return tuple(0 for _ in networks)


def test_the_longest_common_beginning_is_found(caches: ConversationCaches) -> None:
    for end in (1, 2, 3):
        caches.put(kept([*range(100), "x", *[end] * 40]))
    found = caches.take((*range(100), "x", 2, 2, 9, 9), current)
    assert found is not None
    count, (layer,) = found
    assert (count, layer.offset) == (103, 106)
    assert mx.array_equal(layer.state[0].reshape(-1), mx.arange(106))
    assert len(caches) == 3  # it was a copy


def test_a_conversation_that_goes_on_takes_its_cache(caches: ConversationCaches) -> None:
    one = kept(range(100))
    caches.put(one)
    count, cache = caches.take((*range(99), 7, 8), current) or (0, [])
    assert (count, cache, len(caches)) == (99, one.cache, 0)
    assert caches.take((0, 1, 2), current) is None


def test_what_a_longer_conversation_holds_is_kept_once(caches: ConversationCaches) -> None:
    for length in (50, 80, 60):
        caches.put(kept(range(length)))
    assert len(caches) == 2
    assert (caches.take(tuple(range(99)), current) or [0])[0] == 80


def test_the_last_id_is_always_computed(caches: ConversationCaches) -> None:
    caches.put(kept(range(10)))
    count, cache = caches.take(tuple(range(10)), current) or (0, [])
    assert (count, cache[0].offset) == (9, 9)


def test_other_versions_are_forgotten(caches: ConversationCaches) -> None:
    caches.put(kept(range(10), version=1))
    assert caches.take(tuple(range(20)), current) is None
    assert len(caches) == 0


def test_what_comes_back_while_the_caches_are_in_use_waits(caches: ConversationCaches) -> None:
    """The garbage collector closes streams in the midst of anything, in the same thread, too."""
    caches.put(kept([5, 6, 7]))

    def versions(networks: Sequence[str]) -> tuple[int, ...]:
        caches.put(kept(range(10)))
        return current(networks)

    assert caches.take((1, 2), versions) is None
    assert (caches.take(tuple(range(20)), current) or [0])[0] == 10
