"""What can be chosen when the model is finetuned."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import OptionError, format_number
from .consistency import MOST_STEPS
from .lora import LoRAConfig
from .stages import STAGES, Stage

Layout = Literal["inference", "upstream"]
LAYOUTS = ("inference", "upstream")
Objective = Literal["flow", "consistency"]
OBJECTIVES = ("flow", "consistency")
COND_DROPOUT = 0.1
LARGEST = 10**9  # number of steps


@dataclass(frozen=True)
class Options:
    """What can be chosen; None leaves it to the stage, the layout or the size of the run.

    Attributes:
        stage: of `mobileo_mlx.training.stages.STAGES`, perhaps adjusted; by default what suits the objective.
        layout: "inference": two sequences a sample, as when the model is used. "upstream": one, as the original packs
            it, with its noise levels and smaller images.
        rank, alpha, dropout: of the low-rank updates, see `LoRAConfig`.
        steps: of the optimizer; by default what the stage's epochs make.
        accumulate: micro-batches in which each process computes its share of a step, one after the other.
        cond_dropout: share of the samples whose conditioning is that of zero hidden states; None becomes 0.1, and 0
            in upstream's layout.
        flow_shift: of the noise levels, see `mobileo_mlx.schedulers.shift`; 1 leaves them uniform, as upstream's are.
        seed: of the order of the samples, the noise, the adapters' start and all other choices.
        held_out: share of the samples that is not trained on but evaluated.
        sample_every: steps between held-out losses, images and answers; by default a tenth of the run, or 20.
        save_every: steps between checkpoints; by default a twentieth of the run, from 10 to 500.
        recompute: gradient checkpointing; by default where the model is large.
        dtype: "float32" or "bfloat16"; trained parameters are float32 in any case.
        objective: "flow": flow matching on the images. "consistency": the model teaches a student that draws in few
            steps, see `mobileo_mlx.training.consistency`.
        teacher_steps: from noise to an image; for the objective "consistency" alone, and so is the next one.
        guidance_scale: of the teacher, with which the student draws without guidance.
        adapter: folder of the adapter whose values the parameters have at first, trained with the same rank and alpha;
            None starts from the model itself.

    Raises:
        OptionError: a value is out of range.
    """

    stage: Stage = field(default=None)  # type: ignore[assignment]  # is filled in below
    layout: Layout = "inference"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    steps: int | None = None
    accumulate: int = 1
    cond_dropout: float | None = None
    flow_shift: float = 1.0
    seed: int = 0
    held_out: float = 0.05
    sample_every: int | None = None
    save_every: int | None = None
    recompute: bool | None = None
    dtype: str | None = None
    adapter: str | Path | None = None
    objective: Objective = "flow"
    teacher_steps: int = 20
    guidance_scale: float = 1.5

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise OptionError(f"objective {self.objective!r} is unknown; choose one of {', '.join(OBJECTIVES)}.")
        if self.stage is None:
            object.__setattr__(self, "stage", STAGES["student" if self.distills else "lora"])
        if self.layout not in LAYOUTS:
            raise OptionError(f"layout {self.layout!r} is unknown; choose one of {', '.join(LAYOUTS)}.")
        for name in ("steps", "accumulate", "sample_every", "save_every"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST:
                raise OptionError(
                    f"{name} {format_number(value)} makes no sense; choose a number from 1 to {LARGEST:,}."
                )
        for name in ("cond_dropout", "held_out"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise OptionError(f"{name} {format_number(value)} makes no sense; it is a share, from 0 to below 1.")
        if not (0 < self.flow_shift < 1000):
            raise OptionError(
                f"flow_shift {format_number(self.flow_shift)} makes no sense; choose a number from 0 to 1000."
            )
        if self.upstream and (self.flow_shift != 1 or self.cond_dropout):
            raise OptionError("the upstream layout has neither flow_shift nor cond_dropout; leave them out.")
        if self.distills:
            self._check_distillation()
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"seed {format_number(self.seed)} is out of range; choose a number from 0 to 2**32 - 1.")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise OptionError(f"training in {self.dtype} is not possible; choose float32 or bfloat16.")
        if self.cond_dropout is None:
            object.__setattr__(self, "cond_dropout", 0.0 if self.upstream or self.distills else COND_DROPOUT)
        _ = self.lora  # which checks its own values

    def _check_distillation(self) -> None:
        if not self.stage.dit_alone:
            raise OptionError(
                "the objective consistency trains the DiT and nothing else; choose the stage student, and leave llm "
                "and vision frozen."
            )
        if self.upstream or self.flow_shift != 1 or self.cond_dropout:
            raise OptionError(
                "the objective consistency has neither a layout nor flow_shift nor cond_dropout; leave them out."
            )
        if not (MOST_STEPS <= self.teacher_steps <= 1000 and self.teacher_steps % MOST_STEPS == 0):
            raise OptionError(
                f"{format_number(self.teacher_steps)} steps of the teacher are not possible; choose a multiple of "
                f"{MOST_STEPS}, up to 1000."
            )
        if not 1 <= self.guidance_scale <= 100:
            raise OptionError(
                f"guidance_scale {format_number(self.guidance_scale)} makes no sense; choose a number from 1 to 100."
            )

    @property
    def distills(self) -> bool:
        """Whether the model teaches a student to draw in few steps."""
        return self.objective == "consistency"

    @property
    def upstream(self) -> bool:
        """Whether samples are laid out, noised and padded as in the original's training."""
        return self.layout == "upstream"

    @property
    def lora(self) -> LoRAConfig | None:
        """What the low-rank updates look like; None where there are none."""
        components = tuple(name for name in ("llm", "dit") if getattr(self.stage, name) == "lora")
        return LoRAConfig(self.rank, self.alpha, self.dropout, components) if components else None
