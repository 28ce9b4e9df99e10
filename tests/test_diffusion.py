from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mobileo_mlx.diffusion import denoise, guided_steps
from mobileo_mlx.models.layers import GLUMBConv
from mobileo_mlx.models.sana import CrossAttention, SanaConfig, SanaTransformer
from mobileo_mlx.models.sana_cross_attention import TextInput
from mobileo_mlx.models.sana_prepared import PreparedSana
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.schedulers import make_scheduler

CONFIG = SanaConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=8,
    num_cross_attention_heads=2,
    cross_attention_head_dim=8,
    caption_channels=6,
    in_channels=4,
    out_channels=4,
)


@pytest.fixture(scope="module")
def dit() -> SanaTransformer:
    mx.random.seed(0)
    return SanaTransformer(CONFIG).eval()


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> MobileO:
    return MobileO.load(tiny_model)


def noise(batch: int) -> mx.array:
    return mx.random.normal((batch, 3, 2, 4), key=mx.random.key(0))


def states(batch: int) -> mx.array:
    return mx.random.normal((batch, 5, 6), key=mx.random.key(1))


def text(batch: int) -> TextInput:
    return TextInput(states(batch))


def opposite(batch: int) -> TextInput:
    return TextInput(-states(batch))


def counted(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[tuple[int, ...]]:
    """The shapes of the first array in all calls of a method."""
    shapes: list[tuple[int, ...]] = []
    method = getattr(kind, name)

    def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        shapes.append(next(a.shape for a in arguments if isinstance(a, mx.array)))
        return method(self, *arguments, **options)

    monkeypatch.setattr(kind, name, counting)
    return shapes


@pytest.mark.parametrize("name", ["dpm++", "euler"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_step_is_yielded(dit: SanaTransformer, name: str, batch: int) -> None:
    scheduler = make_scheduler(name, 4)
    steps = list(denoise(dit, scheduler, noise(batch), text(batch)))
    assert [(step.step, step.steps) for step in steps] == [(i, 4) for i in (1, 2, 3, 4)]
    assert [step.timestep for step in steps] == scheduler.timesteps.tolist()
    assert [step.sigma for step in steps] == scheduler.sigmas[1:].tolist()
    for step in steps:
        for field in (step.latents, step.velocity, step.denoised):
            assert field.shape == (batch, 3, 2, 4)
            assert field.dtype == mx.float32
    assert mx.array_equal(steps[-1].latents, steps[-1].denoised)


def test_without_guidance_the_network_runs_once_a_step(dit: SanaTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = counted(monkeypatch, PreparedSana, "__call__")
    options = {"unconditional": opposite(2), "guidance_scale": 1.0}
    list(denoise(dit, make_scheduler("dpm++", 5), noise(2), text(2), **options))
    assert shapes == [(2, 3, 2, 4)] * 5


def test_with_guidance_both_halves_run_together(dit: SanaTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = counted(monkeypatch, PreparedSana, "__call__")
    convolved = counted(monkeypatch, GLUMBConv, "__call__")
    monkeypatch.setattr(mx, "compile", lambda function: function)  # else it is traced once and not called again
    options = {"unconditional": opposite(2), "guidance_scale": 1.5}
    list(denoise(dit, make_scheduler("dpm++", 5), noise(2), text(2), **options))
    assert shapes == [(2, 3, 2, 4)] * 5
    assert convolved == [(4, 3, 2, 16)] * 5 * CONFIG.num_layers


def test_guidance_needs_an_unconditional_text(dit: SanaTransformer) -> None:
    with pytest.raises(ValueError, match="unconditional"):
        list(denoise(dit, make_scheduler("euler", 2), noise(1), text(1), guidance_scale=1.5))


def test_keys_and_values_of_the_text_are_computed_once(dit: SanaTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = counted(monkeypatch, CrossAttention, "read")
    projections = []
    for block in dit.transformer_blocks:
        for layer in (block.attn2.to_k, block.attn2.to_v):
            projections.append(layer)
    calls: list[int] = []
    linear = type(projections[0])
    call = linear.__call__

    def counting(self: Any, x: mx.array) -> mx.array:
        calls.extend(i for i, layer in enumerate(projections) if layer is self)
        return call(self, x)

    monkeypatch.setattr(linear, "__call__", counting)
    options = {"unconditional": opposite(1), "guidance_scale": 2.0}
    list(denoise(dit, make_scheduler("dpm++", 6), noise(1), text(1), **options))
    assert len(shapes) == 2 * CONFIG.num_layers  # for each half
    assert sorted(calls) == sorted(2 * list(range(2 * CONFIG.num_layers)))


def test_guidance_of_equal_halves_changes_nothing(dit: SanaTransformer) -> None:
    scheduler = make_scheduler("euler", 3)
    *_, plain = denoise(dit, scheduler, noise(1), text(1))
    *_, guided = denoise(dit, scheduler, noise(1), text(1), unconditional=text(1), guidance_scale=7.0)
    assert mx.allclose(plain.latents, guided.latents, atol=1e-5)


def test_guidance_leads_away_from_the_unconditional_text(dit: SanaTransformer) -> None:
    scheduler = make_scheduler("euler", 1)
    conditional, unconditional = text(1), opposite(1)
    (c,) = denoise(dit, scheduler, noise(1), conditional)
    (u,) = denoise(dit, scheduler, noise(1), unconditional)
    (guided,) = denoise(dit, scheduler, noise(1), conditional, unconditional=unconditional, guidance_scale=2.5)
    expected = u.velocity + 2.5 * (c.velocity - u.velocity)
    assert mx.allclose(guided.velocity, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["dpm++", "dpm++3", "euler"])
@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_a_drawing_is_that_of_the_plain_form(dit: SanaTransformer, name: str, guidance_scale: float) -> None:
    guided = guidance_scale != 1
    latents, history = noise(1), []
    scheduler = make_scheduler(name, 6)
    context = dit.encode_text(mx.concatenate([-states(1), states(1)]) if guided else states(1))
    options: dict[str, Any] = {"unconditional": opposite(1), "guidance_scale": guidance_scale}
    for index, step in enumerate(denoise(dit, scheduler, noise(1), text(1), **options)):
        rows = mx.concatenate([latents, latents]) if guided else latents
        velocity = dit(rows, mx.full((rows.shape[0],), float(scheduler.timesteps[index])), context)
        if guided:
            velocity = velocity[:1] + guidance_scale * (velocity[1:] - velocity[:1])
        latents, x_0 = scheduler.step(index, latents, velocity, history)
        history = [x_0, *history]
        assert mx.abs(step.latents - latents).max() <= 1e-5 * mx.abs(latents).max()


def test_positions_that_are_equal_are_known_by_the_halo(dit: SanaTransformer) -> None:
    scheduler, prompt = make_scheduler("euler", 2), states(1)
    uniform = mx.concatenate([-prompt[:, :1], *[prompt[:, 1:2]] * 3, -prompt[:, 4:]], axis=1)

    def drawn(halo: int | None) -> mx.array:
        unconditional = TextInput(uniform, halo=halo)
        *_, last = denoise(dit, scheduler, noise(2), text(1), unconditional=unconditional, guidance_scale=3.0)
        return last.latents

    plain = drawn(None)
    assert mx.abs(plain - drawn(1)).max() <= 1e-5 * mx.abs(plain).max()
    # A halo too narrow leaves positions out that differ.
    assert mx.abs(plain - drawn(0)).max() > 1e-4


def test_the_texts_may_have_different_lengths(dit: SanaTransformer) -> None:
    """Each reads as it would alone, and as it would padded and masked to the length of the other."""
    scheduler, short = make_scheduler("euler", 2), states(1)[:, :3]
    padded = mx.concatenate([short, mx.full((1, 2, 6), 9.0)], axis=1)
    masked = TextInput(padded, mask=mx.array([[True] * 3 + [False] * 2]))
    for first, second in ((TextInput(short), masked), (text(1), text(1))):
        *_, ours = denoise(dit, scheduler, noise(1), first, unconditional=opposite(1), guidance_scale=3.0)
        *_, same = denoise(dit, scheduler, noise(1), second, unconditional=opposite(1), guidance_scale=3.0)
        assert mx.abs(ours.latents - same.latents).max() <= 1e-5 * mx.abs(same.latents).max()


MIDDLE = (0.1, 0.9)  # of the levels 1, 0.86, 0.6, 0.01 of four steps: the second and the third


def guided_somewhere(
    dit: SanaTransformer, interval: tuple[float, float] | None, halo: int | None = None, **options: Any
) -> list[Any]:
    options = {"guidance_scale": 3.0, "unconditional": TextInput(-states(1), halo=halo), **options}
    return list(denoise(dit, make_scheduler("euler", 4), noise(2), text(1), guidance_interval=interval, **options))


def test_the_steps_of_an_interval() -> None:
    scheduler = make_scheduler("euler", 4)
    assert guided_steps(scheduler, 1.5, MIDDLE) == [False, True, True, False]
    assert guided_steps(scheduler, 1.5, None) == guided_steps(scheduler, 1.5, (0, 1)) == [True] * 4
    assert guided_steps(scheduler, 1.0, None) == [False] * 4
    above, at = float(scheduler.sigmas[2]), float(scheduler.sigmas[1])
    assert guided_steps(scheduler, 1.5, (above, at)) == [False, True, False, False]  # low < sigma <= high


@pytest.mark.parametrize("halo", [None, 2])
def test_outside_the_interval_a_step_is_conditional_and_inside_guided(dit: SanaTransformer, halo: int | None) -> None:
    latents, scheduler = noise(2), make_scheduler("euler", 4)
    contexts = [dit.encode_text(mx.concatenate([each] * 2)) for each in (-states(1), states(1))]
    for index, step in enumerate(guided_somewhere(dit, MIDDLE, halo)):
        timestep = mx.full((2,), float(scheduler.timesteps[index]))
        unconditional, conditional = (dit(latents, timestep, context) for context in contexts)
        guided = unconditional + 3.0 * (conditional - unconditional)
        expected, other = (guided, conditional) if index in (1, 2) else (conditional, guided)
        assert mx.abs(step.velocity - expected).max() <= 1e-5 * mx.abs(expected).max()
        assert mx.abs(step.velocity - other).max() > 1e-3
        latents = step.latents


def test_an_interval_of_everything_changes_nothing(dit: SanaTransformer) -> None:
    everywhere, covered = (guided_somewhere(dit, interval) for interval in (None, (0, 1)))
    assert all(mx.array_equal(a.latents, b.latents) for a, b in zip(everywhere, covered, strict=True))


def test_an_interval_of_nothing_is_no_guidance(dit: SanaTransformer) -> None:
    *_, empty = guided_somewhere(dit, (0.1, 0.2))
    *_, plain = denoise(dit, make_scheduler("euler", 4), noise(2), text(1))
    assert mx.array_equal(empty.latents, plain.latents)


def test_an_interval_counts_from_the_steps_that_are_run(dit: SanaTransformer) -> None:
    late = guided_somewhere(dit, MIDDLE, start=2)
    first, second = guided_somewhere(dit, None, start=2)
    assert mx.array_equal(late[0].velocity, first.velocity)
    assert mx.abs(late[1].velocity - second.velocity).max() > 1e-3


def test_a_masked_text_keeps_its_mask_where_it_is_alone(dit: SanaTransformer) -> None:
    masked = TextInput(states(1), mask=mx.array([[True] * 4 + [False]]))
    options = {"unconditional": opposite(1), "guidance_scale": 3.0, "guidance_interval": (0.1, 0.2)}
    *_, ours = denoise(dit, make_scheduler("euler", 4), noise(2), masked, **options)
    *_, short = denoise(dit, make_scheduler("euler", 4), noise(2), TextInput(states(1)[:, :4]))
    assert mx.abs(ours.latents - short.latents).max() <= 1e-5 * mx.abs(short.latents).max()


def test_outside_the_interval_one_half_runs_on_what_is_prepared(
    dit: SanaTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    convolved = counted(monkeypatch, GLUMBConv, "__call__")
    prepared = counted(monkeypatch, CrossAttention, "read")
    monkeypatch.setattr(mx, "compile", lambda function: function)
    guided_somewhere(dit, MIDDLE)
    rows = [shape[0] for shape in convolved[:: CONFIG.num_layers]]
    assert rows == [2, 4, 4, 2]
    assert len(prepared) == 2 * CONFIG.num_layers


def test_a_later_start_leaves_steps_out(dit: SanaTransformer) -> None:
    scheduler = make_scheduler("dpm++", 5)
    steps = list(denoise(dit, scheduler, noise(1), text(1), start=3))
    assert [(step.step, step.steps) for step in steps] == [(1, 2), (2, 2)]
    assert [step.timestep for step in steps] == scheduler.timesteps[3:].tolist()


@pytest.mark.parametrize("ends", ["exhausted", "closed"])
def test_nothing_holds_the_network_after_the_last_step(ends: str) -> None:
    network = SanaTransformer(CONFIG).eval()
    alive = weakref.ref(network)
    gc.disable()  # no cycle may need it
    try:
        steps = denoise(
            network, make_scheduler("euler", 2), noise(1), text(1), unconditional=opposite(1), guidance_scale=2.0
        )
        del network
        next(steps)
        assert alive() is not None
        if ends == "closed":
            steps.close()  # type: ignore[attr-defined]
        else:
            list(steps)
        assert alive() is None
    finally:
        gc.enable()


def test_nothing_is_computed_before_it_is_asked_for(dit: SanaTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = counted(monkeypatch, PreparedSana, "__call__")
    steps: Iterator[Any] = denoise(dit, make_scheduler("euler", 9), noise(1), text(1))
    assert shapes == []
    next(steps)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert len(shapes) == 2


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"negative_prompt": "blue"}, {"scheduler": "euler"}])
def test_a_seed_gives_the_same_image_alone_and_in_a_batch(model: MobileO, options: dict[str, Any]) -> None:
    options = {"steps": 3, "width": 64, "height": 32, **options}
    together = model.generate("a red circle", seed=[5, 6, 7], **options)
    alone = model.generate("a red circle", seed=6, **options)
    assert mx.allclose(together.latents[1:2], alone.latents, atol=1e-4)
    first, second = (np.asarray(image, np.int16) for image in (together.images[1], alone.images[0]))
    assert np.abs(first - second).max() <= 1
    assert not mx.allclose(together.latents[0], together.latents[1], atol=0.1)


def test_the_same_seed_gives_the_same_image_again(model: MobileO) -> None:
    options = {"seed": 3, "steps": 2, "width": 32, "height": 32}
    first, second = (model.generate("a tree", **options) for _ in range(2))
    assert mx.array_equal(first.latents, second.latents)
    other = model.generate("a tree", **{**options, "seed": 4})
    assert not mx.allclose(first.latents, other.latents, atol=0.1)


def test_steps_are_immutable(dit: SanaTransformer) -> None:
    (step,) = denoise(dit, make_scheduler("euler", 1), noise(1), text(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.step = 2  # type: ignore[misc]
