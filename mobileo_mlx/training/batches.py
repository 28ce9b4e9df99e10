"""From samples to what a step sees. Everything is a function of the seed and the step, so that resuming is exact."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import numpy as np

from ..images import cover_crop, preprocess, to_signed
from ..latents import encode_latents
from ..pipeline import MobileO
from ..tokenizer import END_OF_TEXT
from .data import ImageRef, Problem, Sample
from .losses import upstream_sigmas
from .sequences import (
    TokenSequence,
    answer_sequence,
    drawing_sequence,
    upstream_pair_sequence,
    upstream_sequence,
)
from .trainable import Batch, TokenBatch

Layout = Literal["inference", "upstream"]
LAYOUTS = ("inference", "upstream")
CACHE_BYTES = 2**30
_ORDER, _DRAW, _HELD_OUT = range(3)  # streams of random numbers


@dataclass(frozen=True)
class BatchConfig:
    """How samples become batches.

    Attributes:
        layout: "inference": two sequences a sample, as when the model is used. "upstream": one, with upstream's images.
        questions: whether answers are trained.
        batch_size: samples in a step.
        parts: that a step is computed in, over all processes.
        seed: of the order of the samples, the noise and all choices.
        cond_dropout: share of the samples that are drawn from zero hidden states.
        flow_shift: of the noise levels; 1 leaves them uniform.
        pixels: whether batches hold the images themselves, for a tower that is trained, or what the tower says of them.
    """

    layout: Layout
    questions: bool
    batch_size: int
    parts: int
    seed: int
    cond_dropout: float
    flow_shift: float
    pixels: bool


class Cache:
    """Keeps what is costly to compute, up to a number of bytes; what comes later is computed every time."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._room = limit
        self._kept: dict[Hashable, mx.array] = {}

    def get(self, key: Hashable, compute: Callable[[], mx.array]) -> mx.array:
        if key in self._kept:
            return self._kept[key]
        value = compute()
        mx.eval(value)
        if value.nbytes <= self._room:
            self._kept[key] = value
            self._room -= value.nbytes
        return value


@dataclass(frozen=True)
class _NoisySample:
    """One sample as one step sees it."""

    sample: Sample
    drawing: TokenSequence
    answer: TokenSequence | None
    noise: np.ndarray
    u: float
    dropped: bool


class Batches:
    """Batches for `mobileo_mlx.training.loop.TrainingLoop`.

    Args:
        samples: at least one.
        model: whose tokenizer, autoencoder and, where it is frozen, vision tower are used.
        recipe: see `BatchConfig`.
    """

    def __init__(self, samples: Sequence[Sample], model: MobileO, recipe: BatchConfig) -> None:
        self.samples, self.model, self.recipe = samples, model, recipe
        self._sequences: dict[tuple[str, int], tuple[TokenSequence, TokenSequence | None]] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._cache = Cache()

    def __call__(self, step: int, part: int) -> Batch:
        """The samples of one part of a step (0 for the first of both)."""
        positions = self._positions(step)
        size = len(positions) // self.recipe.parts
        # The token count is that of the whole step, so that its parts add up to one mean; see `Batch.answer_tokens`.
        tokens = sum(self._predicted(position) for position in positions) / self.recipe.parts
        return self._batch([self._drawn(p) for p in positions[part * size : (part + 1) * size]], tokens)

    def one_by_one(self, step: int) -> Iterator[Batch]:
        """The samples of a step, each alone."""
        for position in self._positions(step):
            yield self._batch([self._drawn(position)], self._predicted(position))

    def names(self, step: int) -> list[str]:
        """The samples of a step, for messages."""
        return [self._at(position).name for position in self._positions(step)]

    def held_out(self, samples: Sequence[Sample], size: int) -> Iterator[Batch]:
        """Batches of other samples, always with the same noise and with nothing dropped."""
        for start in range(0, len(samples), size):
            drawn = [
                self._draw(sample, np.random.default_rng([self.recipe.seed, _HELD_OUT, start + i]), drop=False)
                for i, sample in enumerate(samples[start : start + size])
            ]
            yield self._batch(drawn, sum(one.answer.predicted for one in drawn if one.answer is not None))

    def sequences(self, sample: Sample, choice: int) -> tuple[TokenSequence, TokenSequence | None]:
        """The sequence that conditions the drawing, and that whose labels are predicted; may be one and the same.

        Args:
            choice: which of the sample's questions.
        """
        key = (sample.name, choice)
        if key not in self._sequences:
            self._sequences[key] = self._encoded(sample, choice)
        return self._sequences[key]

    def too_long(self) -> list[Problem]:
        """The samples that the model's context can't hold, or the layout has no place for."""
        context = self.model.config.llm.max_position_embeddings
        problems = []
        for sample in self.samples:
            if self.recipe.layout == "upstream" and not self.recipe.questions and sample.source_image is not None:
                problems.append(Problem(sample.name, "is an edit, and upstream's pairs have no place for its image"))
            longest = 0
            for choice in range(max(1, len(sample.qa))):
                for sequence in self.sequences(sample, choice):
                    if sequence is not None:
                        longest = max(longest, sequence.positions(self.image_tokens))
            if longest > context:
                reason = f"takes {longest} positions, and the model's context has {context}"
                problems.append(Problem(sample.name, reason))
        return problems

    @property
    def image_tokens(self) -> int:
        """Positions of one image; upstream trains with images of half the side."""
        return self.model.config.image_tokens // (4 if self.recipe.layout == "upstream" else 1)

    def _encoded(self, sample: Sample, choice: int) -> tuple[TokenSequence, TokenSequence | None]:
        tokenizer, edit = self.model.tokenizer, sample.source_image is not None
        if self.recipe.layout == "inference":
            drawing = drawing_sequence(tokenizer, sample.prompt, edit=edit)
            if not self.recipe.questions:
                return drawing, None
            qa = sample.qa[choice]
            return drawing, answer_sequence(tokenizer, qa.question, qa.answer)
        if not self.recipe.questions:
            return upstream_pair_sequence(tokenizer, sample.prompt), None
        qa = sample.qa[choice]
        both = upstream_sequence(tokenizer, sample.prompt, qa.question, qa.answer, edit=edit)
        return both, both

    def _at(self, position: int) -> Sample:
        """The sample at a position of the run; every epoch has an order of its own."""
        epoch, index = divmod(position, len(self.samples))
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.recipe.seed, _ORDER, epoch])
            self._order = (epoch, rng.permutation(len(self.samples)))
        return self.samples[self._order[1][index]]

    def _positions(self, step: int) -> range:
        return range(step * self.recipe.batch_size, (step + 1) * self.recipe.batch_size)

    def _rng(self, position: int) -> np.random.Generator:
        """A generator for each position: what is drawn for a sample does not depend on how a step is divided."""
        return np.random.default_rng([self.recipe.seed, _DRAW, position])

    def _predicted(self, position: int) -> int:
        sample = self._at(position)
        answer = self.sequences(sample, _choice(sample, self._rng(position)))[1]
        return 0 if answer is None else answer.predicted

    def _drawn(self, position: int) -> _NoisySample:
        return self._draw(self._at(position), self._rng(position), drop=True)

    def _draw(self, sample: Sample, rng: np.random.Generator, *, drop: bool) -> _NoisySample:
        config = self.model.config
        width, height = (side // config.vae.factor for side in config.default_size)
        drawing, answer = self.sequences(sample, _choice(sample, rng))
        noise = rng.standard_normal((height, width, config.dit.in_channels), np.float32)
        u = float(rng.random(dtype=np.float32))
        return _NoisySample(sample, drawing, answer, noise, u, drop and bool(rng.random() < self.recipe.cond_dropout))

    def _batch(self, drawn: Sequence[_NoisySample], answer_tokens: float) -> Batch:
        upstream = self.recipe.layout == "upstream"
        u = mx.array([one.u for one in drawn])
        if upstream:
            sigmas = upstream_sigmas(u, self.model.config.num_train_timesteps)
        else:
            sigmas = self.recipe.flow_shift * u / (1 + (self.recipe.flow_shift - 1) * u)
        seen = [(one.sample.source_image or one.sample.seen) if upstream else one.sample.source_image for one in drawn]
        drawing = self._rows([one.drawing for one in drawn], seen)
        answers = None
        if self.recipe.questions:
            sequences = [one.answer for one in drawn if one.answer is not None]
            answers = drawing if upstream else self._rows(sequences, [one.sample.seen for one in drawn])
        return Batch(
            drawing=drawing,
            answers=answers,
            latents=mx.concatenate([self._latents(one.sample.image) for one in drawn]),
            noise=mx.array(np.stack([one.noise for one in drawn])),
            sigmas=sigmas,
            dropped=mx.array([one.dropped for one in drawn]),
            answer_tokens=answer_tokens,
            names=tuple(one.sample.name for one in drawn),
        )

    def _rows(self, sequences: Sequence[TokenSequence], pictures: Sequence[ImageRef | None]) -> TokenBatch:
        """TokenBatch of a batch, and the images of those that have a place for one."""
        images = [
            self._tower_input(picture)
            for sequence, picture in zip(sequences, pictures, strict=True)
            if sequence.images and picture is not None
        ]
        joined = mx.concatenate(images) if images else None
        pairs = self.recipe.layout == "upstream" and not self.recipe.questions
        return TokenBatch(
            [sequence.input_ids for sequence in sequences],
            [sequence.labels for sequence in sequences],
            pixels=joined if self.recipe.pixels else None,
            features=None if self.recipe.pixels else joined,
            padding=self.model.tokenizer.token_id(END_OF_TEXT) if pairs else None,
        )

    def _tower_input(self, picture: ImageRef) -> mx.array:
        """An image for the tower, (1, H, W, 3), or what a frozen tower says of it, (1, tokens, channels)."""
        if self.recipe.pixels:
            return self._pixels(picture)
        return self._cache.get(("tower", picture), lambda: self._features(self._pixels(picture)))

    def _features(self, pixels: mx.array) -> mx.array:
        tower = self.model.parts.vision_tower
        return tower.in_turn(pixels.astype(tower.patch_embed[0].reparam_conv.weight.dtype))

    def _pixels(self, picture: ImageRef) -> mx.array:
        side = self.model.config.image_size
        if self.recipe.layout == "inference":
            return preprocess(picture.open(), side)
        return to_signed(cover_crop(picture.open(), side // 2, side // 2))

    def _latents(self, picture: ImageRef) -> mx.array:
        def encode() -> mx.array:
            return encode_latents(self.model.parts, cover_crop(picture.open(), *self.model.config.default_size))

        return self._cache.get(("latents", picture), encode)


def _choice(sample: Sample, rng: np.random.Generator) -> int:
    """Which of a sample's questions is asked; the first thing that is drawn."""
    return int(rng.integers(max(1, len(sample.qa))))
