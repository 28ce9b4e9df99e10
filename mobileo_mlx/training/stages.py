"""What each stage of training trains, and at which rates: the paper's three, and one that is meant for a 16 GB Mac.

The numbers are those of the paper (arXiv 2602.20161, section 4.1 and its appendix) and of the original's scripts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from ..errors import OptionError, format_number
from .trainable import TrainableModel

Trained = Literal["full", "lora", "frozen"]
BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 0.01
# Far beyond what makes sense, and still without harm: what can't be a float32, or takes all memory.
_LARGEST = {"learning_rate": 3e38, "batch_size": 2**16, "epochs": 10**6, "clip": 3e38}
# Start of a parameter's name to its share of the stage's rate; the first that fits.
_POST_TRAINING = {
    "diffusion_connector.": 1.0,
    "dit.": 0.1,
    "vision_tower.": 0.01,
    "mm_projector.": 0.1,
    "llm.layers.": 0.01,
    "llm.embed_tokens.": 0.01,
    "lm_head.": 0.01,
}
_ALIGNMENT = {"diffusion_connector.layer_weights": 10.0}


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: in `STAGES`.
        questions: whether answers are trained too; a stage without them takes prompt-image pairs.
        llm, dit, vision: how the language model, the DiT and the vision tower are trained.
        projector: whether the tower's projector is trained.
        learning_rate: of whatever `shares` do not name.
        minimum: where the cosine ends, for that rate; the others shrink by the same factor.
        shares: start of a parameter's name to its share of the rate.
        connector: whether the connector is trained.
        batch_size: samples in one step, over all processes.
        epochs: passes over the data.
        warmup: share of the steps until the rate is full.
        clip: the largest norm of the gradient.
        anneal: whether the connector's temperature falls from epoch to epoch (section 3.2).
    """

    name: str
    questions: bool
    llm: Trained
    dit: Trained
    vision: Trained
    projector: bool
    learning_rate: float
    minimum: float
    batch_size: int
    epochs: int
    warmup: float
    clip: float
    anneal: bool
    shares: dict[str, float] = field(default_factory=dict)
    connector: bool = True

    @property
    def dit_alone(self) -> bool:
        """Whether the DiT is trained, and nothing else."""
        others = self.connector or self.projector or self.questions or self.llm != "frozen" or self.vision != "frozen"
        return not others and self.dit != "frozen"

    def adjusted(self, **changes: Any) -> Stage:
        """The stage with what is not None changed. A new learning rate moves its minimum along.

        Raises:
            OptionError: a component can't be trained so, or a number is out of range.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        rate = changes.get("learning_rate", self.learning_rate)
        stage = replace(self, **{"minimum": self.minimum * rate / self.learning_rate, **changes})
        possible = {"dit": ("full", "lora", "frozen"), "vision": ("full", "frozen"), "llm": ("lora", "frozen")}
        for part, ways in possible.items():
            if getattr(stage, part) not in ways:
                raise OptionError(f"{part} can be {', '.join(ways)}, and not {getattr(stage, part)!r}.")
        for name, largest in _LARGEST.items():
            if not 0 < (value := getattr(stage, name)) <= largest:
                raise OptionError(
                    f"{name} {format_number(value)} makes no sense; choose a number above 0, {largest:g} at most."
                )
        if not 0 <= stage.warmup < 1:
            raise OptionError(
                f"warmup {format_number(stage.warmup)} makes no sense; it is a share of the steps, from 0 to below 1."
            )
        return stage


_ALIGN = Stage(
    name="align",
    questions=False,
    llm="frozen",
    dit="full",
    vision="frozen",
    projector=False,
    learning_rate=2e-4,
    minimum=2e-6,
    batch_size=512,
    epochs=5,
    warmup=0.02,
    clip=0.5,
    anneal=True,
    shares=_ALIGNMENT,
)
_PAPER = Stage(
    name="paper",
    questions=True,
    llm="lora",
    dit="full",
    vision="full",
    projector=True,
    learning_rate=1e-4,
    minimum=1e-6,
    batch_size=128,
    epochs=7,
    warmup=0.05,
    clip=1.0,
    anneal=True,
    shares=_POST_TRAINING,
)
STAGES = {
    # Gradients and moments for the connector, the projector and the adapters alone: the rest stays as it is loaded.
    "lora": replace(_PAPER, name="lora", dit="lora", vision="frozen", batch_size=8, epochs=1, anneal=False),
    "paper": _PAPER,
    "align": _ALIGN,
    "sft": replace(_ALIGN, name="sft", minimum=1e-6, batch_size=384, epochs=20, warmup=0.05, clip=1.0),
    # For the objective "consistency"; see `mobileo_mlx.training.consistency`.
    "student": replace(
        _ALIGN, name="student", dit="lora", connector=False, batch_size=8, epochs=1, warmup=0.05, clip=1.0, anneal=False
    ),
}


def stage_named(name: str) -> Stage:
    """One of `STAGES`.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in STAGES:
        raise OptionError(f"there is no stage {name!r}; choose one of {', '.join(STAGES)}.")
    return STAGES[name]


def set_trainable(network: TrainableModel, stage: Stage) -> None:
    """Freezes all but what the stage trains in full; adapters unfreeze themselves when they are added."""
    network.freeze()
    chosen = ["diffusion_connector"] if stage.connector else []
    chosen += ["dit"] if stage.dit == "full" else []
    chosen += ["vision_tower"] if stage.vision == "full" else []
    chosen += ["mm_projector"] if stage.projector else []
    for name in chosen:
        network[name].unfreeze()
    # No gradient reaches these; weight decay would change them.
    network.diffusion_connector.freeze(keys=["temperature"], recurse=False)
    for _, module in network.named_modules():
        if isinstance(module, nn.BatchNorm):
            module.freeze(keys=["running_mean", "running_var"], recurse=False)


def set_mode(network: TrainableModel, stage: Stage, *, training: bool) -> None:
    """Turns dropout on or off. A vision tower takes BatchNorm's statistics from the batch only while it is trained."""
    network.train(training)
    if "vision_tower" in network:
        network.vision_tower.train(training and stage.vision == "full")


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate and a weight decay."""

    learning_rate: float
    weight_decay: float
    names: frozenset[str]


def parameter_groups(network: TrainableModel, stage: Stage, *, upstream: bool = False) -> list[Group]:
    """The trainable parameters by learning rate and weight decay, the stage's own rate first.

    As in the original, biases and the connector's LayerNorms do not decay, and RMSNorm, BatchNorm and layer scales do.

    Args:
        upstream: adapters fall into the language model's group, whose rate barely trains them, as in the original;
            otherwise they have the stage's rate.
    """
    norms = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if name.startswith("diffusion_connector.") and isinstance(module, nn.LayerNorm)
    }
    found: dict[tuple[float, float], set[str]] = {}
    trainable: dict[str, mx.array] = tree_flatten(network.trainable_parameters(), destination={})  # type: ignore[assignment]
    for name in trainable:
        share = next((share for start, share in stage.shares.items() if name.startswith(start)), 1.0)
        if ".lora_" in name and not upstream:
            share = 1.0
        fixed = name.endswith(".bias") or name in norms
        fixed |= not stage.questions and name == "diffusion_connector.layer_weights"
        # Ten digits, so that equal rates stay equal.
        rate = float(f"{stage.learning_rate * share:.10g}")
        found.setdefault((rate, 0.0 if fixed else WEIGHT_DECAY), set()).add(name)
    order = sorted(found, key=lambda key: (key[0] != stage.learning_rate, -key[0], -key[1]))
    return [Group(rate, decay, frozenset(found[rate, decay])) for rate, decay in order]


def make_optimizer(groups: list[Group], factor: Callable[[mx.array], mx.array] | None = None) -> optim.Optimizer:
    """AdamW as PyTorch has it, one for each group.

    Args:
        factor: of all rates, by the step from 0; constant by default.
    """

    def rate(peak: float) -> Any:
        return peak if factor is None else lambda step: peak * factor(step)

    def has(names: frozenset[str]) -> Callable[[str, mx.array], bool]:
        return lambda name, _: name in names

    optimizers = [
        optim.AdamW(
            rate(group.learning_rate),
            betas=list(BETAS),
            eps=EPS,
            weight_decay=group.weight_decay,
            bias_correction=True,  # PyTorch's AdamW has it, MLX's by default has not
        )
        for group in groups
    ]
    return optim.MultiOptimizer(optimizers, [has(group.names) for group in groups[:-1]])


def warmup_cosine(steps: int, warmup: float, floor: float) -> Callable[[mx.array], mx.array]:
    """The factor of the learning rates, by the step from 0: a straight line up to 1, then half a cosine down.

    Args:
        steps: of the whole run.
        warmup: share of the steps until the factor is 1.
        floor: the factor at the end.
    """
    rising = max(1, round(warmup * steps))
    cosine = optim.cosine_decay(1.0, max(1, steps - rising), floor)
    if rising == 1:
        return cosine
    return optim.join_schedules([optim.linear_schedule(1 / rising, 1.0, rising - 1), cosine], [rising - 1])
