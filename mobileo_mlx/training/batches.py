"""From samples to batches. A batch is a function of the options and the step alone, so that resuming is exact.

Sample --- sequences ---> TokenSequence   what the language model reads: token ids and labels
       --- latents -----> what the DiT learns to generate, encoded once
       --- position ----> question, noise, noise level and dropout, from a generator of this position's own
and some of these together are a `Batch`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence

import mlx.core as mx
import numpy as np

from ..images import cover_crop, preprocess, to_signed
from ..latents import encode_latents
from ..pipeline import MobileO
from ..schedulers import shift
from ..tokenizer import END_OF_TEXT
from .losses import upstream_sigmas
from .options import Options
from .quadruplets import ImageRef, Problem, Sample
from .sequences import TokenSequence, answer_sequence, drawing_sequence, upstream_pair_sequence, upstream_sequence
from .trainable import Batch, TokenBatch

CACHE_BYTES = 2**30
_ORDER, _TRAINED, _HELD_OUT = range(3)  # streams of random numbers

Choices = tuple[Sample, np.random.Generator]  # a sample, and what all choices for it are taken from


class EpochCache:
    """Keeps what is costly to compute, first come, up to a number of bytes; the rest is computed every time.

    Every epoch asks for everything once. So what is kept is found in each, whereas dropping the least recently used
    would find next to nothing.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._bytes_left = limit
        self._kept: dict[Hashable, mx.array] = {}

    def get(self, key: Hashable, compute: Callable[[], mx.array]) -> mx.array:
        """The array of a key, evaluated."""
        if key in self._kept:
            return self._kept[key]
        value = compute()
        mx.eval(value)
        if value.nbytes <= self._bytes_left:
            self._kept[key] = value
            self._bytes_left -= value.nbytes
        return value


class Batches:
    """Batches for `mobileo_mlx.training.loop.TrainingLoop`.

    Args:
        samples: to train on, at least one.
        model: whose tokenizer, autoencoder and, where it is frozen, vision tower are used.
        options: see `Options`.
        micro_batches: that a step is computed in, over all processes.
    """

    def __init__(self, samples: Sequence[Sample], model: MobileO, options: Options, micro_batches: int = 1) -> None:
        self.samples, self.model, self.options, self.micro_batches = samples, model, options, micro_batches
        self._questions = options.stage.questions
        # A tower that is trained sees the images themselves; what a frozen one makes of them is computed once.
        self._tower_trained = options.stage.vision == "full"
        self._sequences: dict[tuple[str, int], tuple[TokenSequence, TokenSequence | None]] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._cache = EpochCache()

    def __call__(self, step: int, index: int) -> Batch:
        """One micro-batch of a step; both count from 0."""
        positions = self._positions(step)
        size = len(positions) // self.micro_batches
        # The mean over the micro-batches, so that their mean is that over all tokens; see `Batch.answer_tokens`.
        tokens = sum(self._predicted(position) for position in positions) / self.micro_batches
        return self._batch([self._at(p) for p in positions[index * size : (index + 1) * size]], answer_tokens=tokens)

    def one_by_one(self, step: int) -> Iterator[Batch]:
        """The samples of a step, each alone."""
        for position in self._positions(step):
            yield self._batch([self._at(position)])

    def names(self, step: int) -> list[str]:
        """The samples of a step, for messages."""
        return [self._at(position)[0].name for position in self._positions(step)]

    def held_out(self, samples: Sequence[Sample], size: int) -> Iterator[Batch]:
        """Batches of other samples, always with the same noise and with nothing dropped."""
        for start in range(0, len(samples), size):
            yield self._batch(
                [
                    (sample, np.random.default_rng([self.options.seed, _HELD_OUT, start + i]))
                    for i, sample in enumerate(samples[start : start + size])
                ],
                drop=False,
            )

    def sequences(self, sample: Sample, choice: int) -> tuple[TokenSequence, TokenSequence | None]:
        """The sequence that conditions the image, and that whose labels are predicted; may be one and the same.

        Args:
            choice: which of the sample's questions.
        """
        key = (sample.name, choice)
        if key not in self._sequences:
            self._sequences[key] = self._encode(sample, choice)
        return self._sequences[key]

    def fingerprint(self) -> str:
        """A digest of all token ids and labels, which the tokenizer and the layout decide."""
        digest = hashlib.sha256()
        for sample in self.samples:
            for choice in range(max(1, len(sample.qa))):
                for sequence in self.sequences(sample, choice):
                    for ids in ((), ()) if sequence is None else (sequence.input_ids, sequence.labels):
                        digest.update(np.array([len(ids), *ids], np.int64).tobytes())
        return digest.hexdigest()

    def too_long(self, samples: Sequence[Sample]) -> list[Problem]:
        """The samples that the model's context can't hold, or the layout has no place for."""
        context = self.model.config.llm.max_position_embeddings
        problems = []
        for sample in samples:
            if self.options.upstream and not self._questions and sample.source_image is not None:
                problems.append(Problem(sample.name, "is an edit, and upstream's pairs have no place for its image"))
            pairs = [self.sequences(sample, choice) for choice in range(max(1, len(sample.qa)))]
            longest = max(s.positions(self.image_tokens) for pair in pairs for s in pair if s is not None)
            if longest > context:
                reason = f"takes {longest} positions, and the model's context has {context}"
                problems.append(Problem(sample.name, reason))
        return problems

    @property
    def image_tokens(self) -> int:
        """Positions of one image; upstream trains with images of half the side."""
        return self.model.config.image_tokens // (4 if self.options.upstream else 1)

    def _encode(self, sample: Sample, choice: int) -> tuple[TokenSequence, TokenSequence | None]:
        tokenizer, edit = self.model.tokenizer, sample.source_image is not None
        qa = sample.qa[choice] if self._questions else None
        if not self.options.upstream:
            drawing = drawing_sequence(tokenizer, sample.prompt, edit=edit)
            return drawing, None if qa is None else answer_sequence(tokenizer, qa.question, qa.answer)
        if qa is None:
            return upstream_pair_sequence(tokenizer, sample.prompt), None
        both = upstream_sequence(tokenizer, sample.prompt, qa.question, qa.answer, edit=edit)
        return both, both

    def _positions(self, step: int) -> range:
        size = self.options.stage.batch_size
        return range(step * size, (step + 1) * size)

    def _at(self, position: int) -> Choices:
        """The sample at a position of the run; every epoch has an order of its own.

        So does each position have a generator: what is chosen for a sample does not depend on how a step is divided.
        """
        epoch, index = divmod(position, len(self.samples))
        seed = self.options.seed
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([seed, _ORDER, epoch]).permutation(len(self.samples)))
        return self.samples[self._order[1][index]], np.random.default_rng([seed, _TRAINED, position])

    def _predicted(self, position: int) -> int:
        answer = self._chosen_sequences(*self._at(position))[1]
        return 0 if answer is None else answer.predicted

    def _chosen_sequences(self, sample: Sample, rng: np.random.Generator) -> tuple[TokenSequence, TokenSequence | None]:
        """The sequences with one of the sample's questions, which is the first choice of all."""
        return self.sequences(sample, int(rng.integers(max(1, len(sample.qa)))))

    def _batch(self, chosen: Sequence[Choices], *, answer_tokens: float | None = None, drop: bool = True) -> Batch:
        """Samples and their choices, in the order question, noise, noise level, dropout.

        Args:
            answer_tokens: by default those of these samples.
            drop: whether some conditioning is dropped.
        """
        config, options = self.model.config, self.options
        samples, rngs = zip(*chosen, strict=True)
        sequences = [self._chosen_sequences(sample, rng) for sample, rng in chosen]
        width, height = (side // config.vae.factor for side in config.default_size)
        noise = [rng.standard_normal((height, width, config.dit.in_channels), np.float32) for rng in rngs]
        u = mx.array([rng.random(dtype=np.float32) for rng in rngs])
        dropped = [drop and rng.random() < (options.cond_dropout or 0.0) for rng in rngs]

        if options.upstream:
            conditioned = [sample.source_image or sample.question_image for sample in samples]
        else:
            conditioned = [sample.source_image for sample in samples]
        drawing = self._token_batch([drawing for drawing, _ in sequences], conditioned)
        predicted = [answer for _, answer in sequences if answer is not None]
        answers = None
        if predicted:
            shared = options.upstream
            answers = drawing if shared else self._token_batch(predicted, [sample.question_image for sample in samples])
        if answer_tokens is None:
            answer_tokens = sum(answer.predicted for answer in predicted)
        noises = mx.array(np.stack(noise))
        # A student learns what the teacher draws.
        latents = noises if options.distills else mx.concatenate([self._latents(sample.image) for sample in samples])
        return Batch(
            drawing=drawing,
            answers=answers,
            latents=latents,
            noise=noises,
            sigmas=upstream_sigmas(u, config.num_train_timesteps) if options.upstream else shift(u, options.flow_shift),
            dropped=mx.array(dropped),
            answer_tokens=answer_tokens,
            names=tuple(sample.name for sample in samples),
        )

    def _token_batch(self, sequences: Sequence[TokenSequence], images: Sequence[ImageRef | None]) -> TokenBatch:
        """The sequences, and the images of those that have a place for one."""
        tower_inputs = [
            self._tower_input(image)
            for sequence, image in zip(sequences, images, strict=True)
            if sequence.images and image is not None
        ]
        joined = mx.concatenate(tower_inputs) if tower_inputs else None
        upstream_pairs = self.options.upstream and not self._questions
        return TokenBatch(
            [sequence.input_ids for sequence in sequences],
            [sequence.labels for sequence in sequences],
            pixels=joined if self._tower_trained else None,
            features=None if self._tower_trained else joined,
            padding=self.model.tokenizer.token_id(END_OF_TEXT) if upstream_pairs else None,
        )

    def _tower_input(self, image: ImageRef) -> mx.array:
        """The pixels for a tower that is trained, (1, H, W, 3), or a frozen one's output, (1, tokens, channels)."""
        if self._tower_trained:
            return self._pixels(image)
        return self._cache.get(("tower", image), lambda: self.model.parts.vision_tower.encode(self._pixels(image)))

    def _pixels(self, image: ImageRef) -> mx.array:
        side = self.model.config.image_size
        if self.options.upstream:
            return to_signed(cover_crop(image.open(), side // 2, side // 2))
        return preprocess(image.open(), side)

    def _latents(self, image: ImageRef) -> mx.array:
        size = self.model.config.default_size
        return self._cache.get(
            ("latents", image), lambda: encode_latents(self.model.parts, cover_crop(image.open(), *size))
        )
