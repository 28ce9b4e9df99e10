"""A small convolutional network that names the emoji in a picture: the judge of what a model draws.

It is trained on renders alone, degraded in many ways, and never on anything that a model drew. Hands in other skin
tones count as the same emoji; the tone is read by `rules`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mobileo_mlx.atomic import atomic_write
from mobileo_mlx.errors import CheckpointError
from mobileo_mlx.training.loop import StepReport, TrainingLoop

from .augment import SIDE, augmented
from .sprites import cache_folder, emoji, sprites

STEPS, BATCH, LEARNING_RATE = 1200, 256, 3e-3
WIDTHS = (32, 96, 192, 256)
SMOOTHING = 0.05  # of the labels: some emoji look the same, and no render is worth any certainty
SEED = 0


class Classifier(nn.Module):
    """Pictures of one thing, (B, SIDE, SIDE, 3) in [0, 1], to logits of all names, (B, N).

    What is seen where counts: each emoji has one shape, which is shifted a little at most. Sides are halved by putting
    pixels together, as MLX's gradient of convolutions with strides is slow on CPUs.
    """

    def __init__(self, names: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        first, second, third, last = widths
        self.narrow = [
            _Layer(nn.Linear(4 * 4 * 3, first, bias=False), first),  # (B, 12, 12, first)
            _Layer(nn.Linear(2 * 2 * first, second, bias=False), second),  # (B, 6, 6, second)
            _Layer(nn.Linear(2 * 2 * second, third, bias=False), third),  # (B, 3, 3, third)
        ]
        self.look = [_Layer(nn.Conv2d(width, width, 3, padding=1, bias=False), width) for width in (first, second)]
        self.hidden = _Layer(nn.Linear((SIDE // 16) ** 2 * third, last, bias=False), last)
        self.head = nn.Linear(last, names)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.narrow[0](_together(2 * x - 1, 4))
        x = x + self.look[0](x)
        x = self.narrow[1](_together(x, 2))
        x = x + self.look[1](x)
        x = self.narrow[2](_together(x, 2))
        return self.head(self.hidden(x.flatten(1)))


class _Layer(nn.Module):
    def __init__(self, linear: nn.Module, width: int) -> None:
        super().__init__()
        self.linear, self.norm = linear, nn.BatchNorm(width)

    def __call__(self, x: mx.array) -> mx.array:
        return nn.relu(self.norm(self.linear(x)))


def _together(x: mx.array, k: int) -> mx.array:
    """Squares of k x k pixels as one: (B, H, W, C) to (B, H / k, W / k, k k C)."""
    b, height, width, channels = x.shape
    parts = x.reshape(b, height // k, k, width // k, k, channels)
    return parts.transpose(0, 1, 3, 2, 4, 5).reshape(b, height // k, width // k, -1)


@cache
def classes() -> np.ndarray:
    """The class of each of `emoji(toned=True)`, (M,): the index of the same emoji in the usual skin tone."""
    places = {each.name: index for index, each in enumerate(emoji())}
    return np.array([places[each.name] for each in emoji(toned=True)])


@cache
def looks() -> np.ndarray:
    """The first class whose picture is the same, of each class, (N,): the classifier can't tell these apart."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(sprites("small")[i].tobytes(), i) for i in range(len(emoji()))])


def weights() -> Path:
    """Where the trained network is kept."""
    return cache_folder() / "classifier.safetensors"


def train(folder: Path, steps: int = STEPS) -> Iterator[StepReport]:
    """Trains the network, or what is left of it, yielding its steps; at the end it is kept as `weights()`.

    Args:
        folder: of checkpoints.
        steps: batches of `BATCH`.

    Raises:
        CheckpointError, OutputError: see `TrainingLoop`.
    """
    mx.random.seed(SEED)  # of the initial weights
    model = Classifier(len(emoji()))
    warmup = min(100, steps // 4)
    rate = optim.join_schedules(
        [
            optim.linear_schedule(0.001 * LEARNING_RATE, LEARNING_RATE, warmup),
            optim.cosine_decay(LEARNING_RATE, steps - warmup, 0.003 * LEARNING_RATE),
        ],
        [warmup],
    )
    yield from TrainingLoop(
        model=model,
        loss=_loss,
        batches=_batch,
        optimizer=optim.AdamW(rate, betas=[0.9, 0.98], weight_decay=0.02, bias_correction=True),
        steps=steps,
        batch_size=BATCH,
        seed=SEED,
        folder=folder,
        save_every=100,
    ).run()
    with atomic_write(weights(), overwrite=True) as temporary:
        model.save_weights(str(temporary))


def _batch(step: int, part: int) -> dict[str, mx.array]:
    rng = np.random.default_rng([SEED, step, part])
    indices = rng.integers(len(classes()), size=BATCH)
    return {"image": mx.array(augmented(indices, rng)), "label": mx.array(classes()[indices])}


def _loss(model: Any, batch: dict[str, mx.array], key: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
    logits = model(batch["image"])
    loss = nn.losses.cross_entropy(logits, batch["label"], label_smoothing=SMOOTHING, reduction="mean")
    return loss, {"accuracy": (logits.argmax(axis=-1) == batch["label"]).mean()}


def load(path: Path | None = None) -> Classifier:
    """The trained network, by default `weights()`.

    Raises:
        CheckpointError: it is not there.
    """
    path = path or weights()
    if not path.exists():
        raise CheckpointError(f"There is no classifier '{path}': run `python -m benchmarks.emoji classifier`.")
    model = Classifier(len(emoji()))
    model.load_weights(str(path))
    model.eval()
    return model


def rank(model: Classifier, pictures: np.ndarray) -> np.ndarray:
    """All classes of each picture, the likeliest first, (B, N); pictures are (B, SIDE, SIDE, 3) float32 in [0, 1]."""
    parts = [pictures[i : i + BATCH] for i in range(0, len(pictures), BATCH)]
    return np.concatenate([np.argsort(-np.array(model(mx.array(part))), axis=-1, kind="stable") for part in parts])
