"""A conversation equals one that is computed anew, whatever happened in it, and pays for what is new only."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from PIL import Image

from mobileo_mlx.chat import Chat
from mobileo_mlx.conditioning import embed_prompts, encode_image
from mobileo_mlx.decoding import decode
from mobileo_mlx.errors import OptionError, PromptError
from mobileo_mlx.models.qwen2 import DecoderLayer
from mobileo_mlx.parts import Parts
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.prompts import encode_prompt, first_turn, next_turn
from mobileo_mlx.tokenizer import IM_END

FIRST, SECOND, THIRD = "What is this?", "And why is it a circle?", "Is there a star?"


@pytest.fixture
def model(tiny_model: Path) -> MobileO:
    return MobileO.load(tiny_model)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    image = Image.new("RGB", (96, 64), (200, 60, 40))
    image.paste((240, 220, 90), (0, 0, 48, 64))
    return image


class Head:
    """Takes the place of the model's head: remembers logits, and can name a token or fail at a call, counted from 0."""

    def __init__(self, model: MobileO, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real = model.parts.lm_head
        self.forced: dict[int, int] = {}
        self.fails_at: int | None = None
        self.logits: list[mx.array] = []
        monkeypatch.setattr(Parts, "lm_head", property(lambda parts: self))

    def begin(self, *, forced: dict[int, int] | None = None, fails_at: int | None = None) -> None:
        """A new turn begins."""
        self.forced, self.fails_at, self.logits = forced or {}, fails_at, []

    def __call__(self, hidden: mx.array) -> mx.array:
        call = len(self.logits)
        if call == self.fails_at:
            raise KeyboardInterrupt
        self.logits.append(self.real(hidden))
        if call not in self.forced:
            return self.logits[-1]
        named = mx.arange(self.logits[-1].shape[-1]) == self.forced[call]
        return mx.broadcast_to(mx.where(named, 100.0, 0.0), self.logits[-1].shape)


@pytest.fixture
def head(model: MobileO, monkeypatch: pytest.MonkeyPatch) -> Head:
    return Head(model, monkeypatch)


class Script:
    """What was said so far, as token ids that owe nothing to the chat."""

    def __init__(self, model: MobileO, head: Head) -> None:
        self.model, self.head = model, head
        self.chat = model.chat()
        self.ids: list[int] = []
        self.images: list[Image.Image] = []
        # Tokens of the answer that the model has not read: the last one, where `max_tokens` ended it. Where the
        # template's end token did, the model has read one more, the first of the next turn.
        self.unread = 0

    def heard(self, text: str, images: Sequence[Image.Image] = ()) -> int:
        """A turn of the user; returns how many positions it takes."""
        turn = first_turn if not self.ids else next_turn
        new = encode_prompt(self.model.tokenizer, turn(text, images=len(images)))
        self.ids += new
        self.images += images
        return len(new) + len(images) * (self.model.config.image_tokens - 1)

    def said(self, tokens: Sequence[int], *, unread: int = 0) -> None:
        """An answer; its end is written by the turn that follows."""
        self.ids += [token for token in tokens if token not in self.model.config.eos_token_ids]
        self.unread = unread

    def check_next(self, text: str, images: Sequence[Image.Image] = ()) -> None:
        """Says `text`: it computes the new positions only, and answers as if all that was said were computed anew."""
        new = self.heard(text, images)
        self.head.begin()
        answer = self.chat.send(text, images=images, max_tokens=6)
        first = self.head.logits[0].reshape(-1)
        assert answer.prompt_tokens == new + self.unread

        llm = self.model.parts.llm
        features = [encode_image(self.model.parts, image)[0] for image in self.images]
        embeds = embed_prompts(llm.embed_tokens, [self.ids], features).inputs_embeds
        anew = list(
            decode(
                llm,
                self.head.real,
                embeds,
                llm.make_cache(),
                max_tokens=6,
                eos_token_ids=self.model.config.eos_token_ids,
            )
        )
        assert mx.allclose(first, anew[0].logits, atol=1e-4)
        assert answer.tokens == [decoded.token for decoded in anew]
        self.said(answer.tokens, unread=1 if answer.finish_reason == "length" else self.read_ahead(answer.tokens))

    def read_ahead(self, tokens: Sequence[int]) -> int:
        """`unread` after an answer that ended by itself."""
        return -1 if tokens[-1] == self.model.tokenizer.token_id(IM_END) else 0


@pytest.fixture
def script(model: MobileO, head: Head) -> Script:
    return Script(model, head)


def test_every_turn_equals_a_conversation_computed_anew(script: Script, picture: Image.Image) -> None:
    for text, images in ((FIRST, [picture]), (SECOND, []), (THIRD, [picture, picture]), (FIRST, [])):
        script.check_next(text, images)
        assert script.unread == 1
    assert [(message.role, message.images) for message in script.chat.messages] == [
        *[("user", 1), ("assistant", 0)],
        *[("user", 0), ("assistant", 0)],
        *[("user", 2), ("assistant", 0)],
        *[("user", 0), ("assistant", 0)],
    ]


@pytest.mark.parametrize("end", ["template", "other"])
@pytest.mark.parametrize("length", [0, 3])
def test_after_an_answer_that_ended_by_itself(script: Script, head: Head, end: str, length: int) -> None:
    """Its end stands in the conversation once, and as the template writes it, whichever token the model chose."""
    eos, im_end = script.model.config.eos_token_ids, script.model.tokenizer.token_id(IM_END)
    assert im_end is not None
    token = im_end if end == "template" else next(other for other in eos if other != im_end)
    script.heard(FIRST)
    head.begin(forced={length: token})
    answer = script.chat.send(FIRST, max_tokens=20)
    assert (answer.finish_reason, len(answer.tokens), answer.tokens[-1]) == ("stop", length + 1, token)
    script.said(answer.tokens, unread=script.read_ahead(answer.tokens))
    script.check_next(SECOND)
    script.check_next(THIRD)


def test_the_end_of_a_turn_ends_an_answer_that_the_configuration_lets_go_on(script: Script, head: Head) -> None:
    im_end = script.model.tokenizer.token_id(IM_END)
    others = tuple(token for token in script.model.config.eos_token_ids if token != im_end)
    script.model.parts.config = dataclasses.replace(script.model.config, eos_token_ids=others)
    head.begin(forced={2: im_end})  # type: ignore[dict-item]
    assert script.chat.send(FIRST, max_tokens=20).finish_reason == "stop"


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("way", ["closed", "dropped"])
def test_after_an_answer_that_was_closed_early(script: Script, head: Head, count: int, way: str) -> None:
    script.check_next(FIRST)
    script.heard(SECOND)
    head.begin()
    stream = script.chat.stream(SECOND, max_tokens=20)
    tokens = [next(stream) for _ in range(count)]
    if way == "closed":
        stream.close()
    del stream
    gc.collect()
    assert len(script.chat.messages) == 4
    assert script.chat.messages[-1].content == "".join(token.text for token in tokens).strip()
    script.said([token.token for token in tokens])
    script.check_next(THIRD)
    script.check_next(FIRST)


def failing_layer(model: MobileO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts the language model between its layers, when some have extended their cache and others have not."""
    third, call = model.parts.llm.layers[2], DecoderLayer.__call__

    def interrupted(self: DecoderLayer, *arguments: Any) -> mx.array:
        if self is third:
            raise KeyboardInterrupt
        return call(self, *arguments)

    monkeypatch.setattr(DecoderLayer, "__call__", interrupted)


@pytest.mark.parametrize("where", ["layers", "head"])
@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_turn_interrupted_before_its_first_token_has_not_been(
    script: Script, head: Head, picture: Image.Image, where: str, turns: int
) -> None:
    for text in (FIRST, SECOND)[:turns]:
        script.check_next(text)
    before = list(script.chat.messages)
    head.begin(fails_at=0 if where == "head" else None)
    with pytest.MonkeyPatch.context() as patch:
        if where == "layers":
            failing_layer(script.model, patch)
        with pytest.raises(KeyboardInterrupt):
            script.chat.send("Is this a star or a house?", images=[picture])
    assert script.chat.messages == before
    script.check_next(THIRD)
    script.check_next(FIRST)


@pytest.mark.parametrize("where", ["layers", "head"])
def test_an_answer_interrupted_in_a_computation_keeps_what_was_yielded(script: Script, head: Head, where: str) -> None:
    """The computation is that of a later token: the model has read the one before, which nobody has seen yet."""
    script.check_next(FIRST)
    script.heard(SECOND)
    head.begin(fails_at=3 if where == "head" else None)
    stream = script.chat.stream(SECOND, max_tokens=20)
    tokens = [next(stream).token for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        if where == "layers":
            failing_layer(script.model, patch)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    script.said(tokens)
    script.check_next(THIRD)


def test_a_new_turn_closes_the_one_before(script: Script, head: Head) -> None:
    script.heard(FIRST)
    stream = script.chat.stream(FIRST, max_tokens=20)
    tokens = [next(stream).token for _ in range(2)]
    script.said(tokens)
    script.check_next(SECOND)
    stream.close()
    assert list(stream) == []
    assert len(script.chat.messages) == 4
    script.check_next(THIRD)


def test_a_turn_that_was_never_begun_is_closed_too(script: Script) -> None:
    stream = script.chat.stream(FIRST)
    script.check_next(SECOND)
    assert list(stream) == []
    script.check_next(THIRD)


def test_a_refused_turn_leaves_an_open_one_alone(script: Script) -> None:
    stream = script.chat.stream(FIRST, max_tokens=3)
    tokens = [next(stream).token]
    with pytest.raises(OptionError):
        script.chat.stream(SECOND, max_tokens=0)
    with pytest.raises(PromptError):
        script.chat.stream(" ")
    tokens += [token.token for token in stream]
    assert len(tokens) == 3


@pytest.mark.parametrize("begun", [0, 2])
def test_clear_forgets_an_open_turn_too(script: Script, picture: Image.Image, begun: int) -> None:
    script.chat.send(FIRST, images=[picture], max_tokens=4)
    stream = script.chat.stream(SECOND, max_tokens=20)
    for _ in range(begun):
        next(stream)
    script.chat.clear()
    stream.close()
    assert script.chat.messages == []
    script.check_next(THIRD)
    script.check_next(FIRST)


def with_context(model: MobileO, positions: int) -> Chat:
    """A chat with the model as if its context had so many positions."""
    llm = dataclasses.replace(model.config.llm, max_position_embeddings=positions)
    model.parts.config = dataclasses.replace(model.config, llm=llm)
    return model.chat()


@pytest.mark.parametrize("turns", [0, 1])
def test_a_turn_beyond_the_context_leaves_the_chat_usable(script: Script, picture: Image.Image, turns: int) -> None:
    for text in (FIRST, SECOND)[:turns]:
        script.check_next(text)
    before = list(script.chat.messages)
    context = script.model.config.llm.max_position_embeddings
    with pytest.raises(PromptError, match=rf"context has {context};"):
        script.chat.send("Why? " * context, images=[picture])
    assert script.chat.messages == before
    script.check_next(THIRD)


def test_an_answer_ends_where_the_context_does(model: MobileO) -> None:
    positions = len(encode_prompt(model.tokenizer, first_turn(FIRST)))
    full = model.chat().send(FIRST, max_tokens=3)
    assert full.finish_reason == "length"
    chat = with_context(model, positions + 3)
    answer = chat.send(FIRST)
    assert (answer.tokens, answer.finish_reason) == (full.tokens, "length")
    with pytest.raises(PromptError, match=f"context has {positions + 3};"):
        chat.send(SECOND)
    chat.clear()
    assert chat.send(FIRST).tokens == full.tokens
    assert with_context(model, positions + 1).send(FIRST).tokens == full.tokens[:1]
    with pytest.raises(PromptError, match=f"takes {positions} positions"):
        with_context(model, positions).send(FIRST)


def test_the_head_is_loaded_before_the_rest(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unquantized it is the largest weight: a peak that is not on top of the language model's."""
    model = MobileO.load(tiny_model, precision="small")
    loaded: list[str] = []
    load = Parts.__getitem__
    monkeypatch.setattr(Parts, "__getitem__", lambda parts, name: loaded.append(name) or load(parts, name))
    model.chat().send("Hello", max_tokens=1)
    assert loaded.index("lm_head") < loaded.index("llm")
