"""Distillation into a student that draws in 1, 2 or 4 steps, with the effect of guidance and without its second pass.

The teacher is the DiT as it was before, with its sampler and guidance; the student is the DiT with what is trained of
it. The student takes k steps of its own sampler from noise, to the latents x at noise level s. From there the teacher
goes to the end of its path, x_0*(x), and the student learns to predict that end at once:

    d = v(x, s, text) - (x - x_0*(x)) / s,    loss = sqrt(mean d^2 + c^2) - c

which is the distance of x_0*(x) and the student's x - s v, divided by s. The root (pseudo-Huber, Song and Dhariwal,
arXiv 2310.14189) gives the last steps, whose errors are small and are seen, as much weight as the first.
It is what a consistency model predicts (Song et al., arXiv 2303.01469: any point of a path to its end), with guidance
folded in as in latent consistency models (Luo et al., arXiv 2310.04378). In place of their bootstrap, one step of the
solver and a running mean of the student, the teacher's solver goes all the way, which needs neither; and the points are
those that the student itself arrives at, so that each of its steps learns to repair what the steps before it left (as
DAgger does, Ross et al., arXiv 1011.0686; DMD2, Yin et al., arXiv 2405.14867, trains on the student's own latents for
the same reason). No images are needed but those that an edit starts from: the teacher draws what is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import mlx.core as mx

from ..conditioning import hidden_states, text_input
from ..diffusion import denoise
from ..models.mobileo import MobileOConfig
from ..models.sana import SanaTransformer
from ..models.sana_cross_attention import TextInput
from ..schedulers import make_scheduler
from .trainable import Batch, JointLoss, TrainableModel

STUDENT_SCHEDULER = "dpm++"
MOST_STEPS = 4
# The student's steps in all and those before the latents that it learns from. The first of them is that of 1, 2 and 4;
# the second of 2 has the longest way to go of those that end in an image, and so half of all turns.
STATES = ((4, 0), (2, 1), (4, 1), (2, 1), (4, 2), (2, 1), (4, 3), (2, 1))
HUBER = 0.01  # c of the loss; latents are near 1
TEACHER_SCHEDULER = "dpm++3"  # closer to the exact path than the second order, where a path starts in its middle too


def drawing_options() -> dict[str, Any]:
    """Options of drawing by name that a student is trained for, as its adapter records them."""
    return {"steps": MOST_STEPS, "guidance_scale": 1.0, "scheduler": STUDENT_SCHEDULER}


@dataclass(frozen=True)
class StudentBatch:
    """What the student learns from in one pass.

    Attributes:
        text: what the rows read.
        latents: (B, h, w, latent_channels), all at one noise level.
        sigma: this level.
        timestep: what the network gets with it.
        velocity: that leads to the end of the teacher's path in one step, of the latents' shape.
        names: of the samples, for messages.
    """

    text: TextInput
    latents: mx.array
    sigma: float
    timestep: float
    velocity: mx.array
    names: tuple[str, ...] = ()
    answer_tokens: float = 0.0  # no question is trained


@dataclass(frozen=True)
class StudentLoss(JointLoss):
    """How far the student's velocity is from the one to be learned; see the module."""

    def _loss(self, network: TrainableModel, batch: StudentBatch) -> tuple[mx.array, dict[str, mx.array]]:  # type: ignore[override]
        context = network.dit.encode_text(batch.text.states, batch.text.mask)
        timesteps = mx.full((len(batch.latents),), batch.timestep)
        velocity = network.dit(batch.latents, timesteps, context)
        squares = mx.square(velocity.astype(mx.float32) - batch.velocity).mean(axis=(1, 2, 3))
        loss = (mx.sqrt(squares + HUBER**2) - HUBER).mean()
        return loss, {"diffusion_loss": loss}


@dataclass(frozen=True)
class Distillation:
    """Makes of a batch what the student learns from it; nothing here has a gradient.

    Attributes:
        network: the student, and what reads the prompts.
        teacher: the DiT as it was.
        loss: whose precision the student draws in.
        config: the model's.
        steps: of the teacher from noise, a multiple of `MOST_STEPS`.
        guidance_scale: of the teacher.
    """

    network: TrainableModel
    teacher: SanaTransformer
    loss: StudentLoss
    config: MobileOConfig
    steps: int = 20
    guidance_scale: float = 1.5

    def __call__(self, batch: Batch, turn: int) -> StudentBatch:
        """The student's latents of one of `STATES`, which take turns, and what it is to make of them, evaluated.

        Raises:
            NotFiniteError: a step of the teacher or the student gives NaN or infinity.
        """
        steps, done = STATES[turn % len(STATES)]
        text, unconditional = self._texts(batch)
        own = make_scheduler(STUDENT_SCHEDULER, steps, self.config.flow_shift, self.config.num_train_timesteps)
        scheduler = make_scheduler(
            TEACHER_SCHEDULER, self.steps, self.config.flow_shift, self.config.num_train_timesteps
        )
        latents = batch.noise
        with self._drawing():
            for step in islice(denoise(self.network.dit, own, latents, text), done):
                latents = step.latents
        *_, last = denoise(
            self.teacher,
            scheduler,
            latents,
            text,
            unconditional=unconditional,
            guidance_scale=self.guidance_scale,
            start=done * self.steps // steps,
        )
        sigma = float(own.sigmas[done])
        velocity = (latents - last.latents) / sigma
        mx.eval(latents, velocity)
        return StudentBatch(text, latents, sigma, float(own.timesteps[done]), velocity, batch.names)

    def _texts(self, batch: Batch) -> tuple[TextInput, TextInput]:
        """What the rows read, and what guidance leads away from."""
        inputs = self.network.inputs(batch.drawing)
        states = hidden_states(self.network, inputs)
        all_rows = mx.ones((len(batch.noise),), mx.bool_)
        text, unconditional = (
            text_input(self.network, states, mask=inputs.padding_mask, dropped=dropped) for dropped in (None, all_rows)
        )
        mx.eval(text.states, unconditional.states)
        return text, unconditional

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """The student as it draws: in evaluation mode, in the precision of the loss."""
        training = self.network.dit.training
        self.network.dit.train(False)
        try:
            with self.loss.computing(self.network):
                yield
        finally:
            self.network.dit.train(training)
