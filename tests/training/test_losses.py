from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.load import load_component
from mobileo_mlx.conditioning import IGNORED_LABEL, hidden_states, text_input
from mobileo_mlx.latents import noised
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX
from mobileo_mlx.training.losses import answer_losses, flow_matching_loss, upstream_sigmas
from mobileo_mlx.training.stages import STAGES, set_mode, set_trainable
from mobileo_mlx.training.trainable import Batch, JointLoss, TokenBatch, TrainableModel

KEY = mx.random.key(0)


@pytest.fixture(scope="module")
def network(tiny_model: Path) -> TrainableModel:
    checkpoint = Checkpoint.open(tiny_model)
    names = ("vision_tower", "mm_projector", "llm", "lm_head", "diffusion_connector", "dit")
    network = TrainableModel({name: load_component(checkpoint, name, dtype=mx.float32) for name in names})
    set_trainable(network, STAGES["paper"])
    return network


def rows(lengths: tuple[int, ...], *, image: bool = True, seed: int = 0) -> TokenBatch:
    rng = np.random.default_rng(seed)
    ids = [[IMAGE_TOKEN_INDEX] * image + rng.integers(3, 90, length).tolist() for length in lengths]
    labels = [[IGNORED_LABEL] * (len(row) - 3) + row[-3:] for row in ids]
    pixels = mx.array(rng.random((len(lengths), 64, 64, 3), np.float32)) if image else None
    return TokenBatch(ids, labels, pixels=pixels)


def batch(lengths: tuple[int, ...], *, joint: bool = False, seed: int = 0) -> Batch:
    count = len(lengths)
    rng = np.random.default_rng(seed)
    drawing = rows(lengths, image=joint, seed=seed)
    return Batch(
        drawing=drawing,
        answers=drawing if joint else rows(lengths[::-1], seed=seed + 1),
        latents=mx.array(rng.standard_normal((count, 4, 4, 8), np.float32)),
        noise=mx.array(rng.standard_normal((count, 4, 4, 8), np.float32)),
        sigmas=mx.array(rng.random(count, np.float32)),
        dropped=mx.zeros(count, mx.bool_),
        answer_tokens=3.0 * count,
    )


def gradients(network: TrainableModel, objective: JointLoss, data: Batch) -> tuple[float, dict[str, mx.array]]:
    (loss, _), grads = nn.value_and_grad(network, objective)(network, data, KEY)
    return float(loss), dict(tree_flatten(grads))


def test_noise_is_mixed_in_by_level() -> None:
    latents, noise = mx.full((2, 1, 1, 1), 3.0), mx.full((2, 1, 1, 1), -1.0)
    assert noised(latents, noise, mx.array([0.0, 0.75])).flatten().tolist() == [3.0, 0.0]


def test_the_target_is_the_velocity() -> None:
    class Dit:
        def encode_text(self, conditioning: mx.array, mask: mx.array | None) -> None:
            assert mask is None

        def __call__(self, x: mx.array, timesteps: mx.array, context: None) -> mx.array:
            assert timesteps.tolist() == [500.0]
            return mx.zeros_like(x)

    latents, noise = mx.full((1, 2, 2, 1), 3.0), mx.full((1, 2, 2, 1), -1.0)
    loss = flow_matching_loss(Dit(), latents, noise, mx.array([0.5]), mx.zeros((1, 1, 1)))  # type: ignore[arg-type]
    assert float(loss) == 16.0


def test_upstream_noise_levels_are_those_of_its_table() -> None:
    assert np.allclose(upstream_sigmas(mx.array([0.0, 0.1379, 0.8626, 0.9999])), [1.0, 0.863, 0.138, 0.001], atol=1e-7)


def test_answers_count_label_by_label() -> None:
    hidden = mx.random.normal((2, 5, 8), key=KEY)
    head = nn.Linear(8, 11)
    labels = np.array([[IGNORED_LABEL, 3, IGNORED_LABEL, 4, 5], [7, IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL, 1]])
    losses = answer_losses(head, hidden, labels)
    logits = np.array(nn.log_softmax(head(hidden), axis=-1))
    expected = [-logits[0, 0, 3], -logits[0, 2, 4], -logits[0, 3, 5], -logits[1, 3, 1]]
    assert np.allclose(losses, expected, atol=1e-5)


def test_parts_add_up_to_the_whole(network: TrainableModel) -> None:
    set_mode(network, STAGES["lora"], training=False)
    whole = batch((9, 12, 7, 10))
    drawing, answers = whole.drawing, whole.answers
    assert answers is not None
    assert answers.pixels is not None
    loss, grads = gradients(network, JointLoss(), whole)
    parts = []
    for part in (slice(0, 1), slice(1, 4)):
        halves = (
            TokenBatch(drawing.input_ids[part], drawing.labels[part]),
            TokenBatch(answers.input_ids[part], answers.labels[part], pixels=answers.pixels[part]),
        )
        arrays = (whole.latents[part], whole.noise[part], whole.sigmas[part], whole.dropped[part])
        # A part's answers are divided by the mean number of tokens in the parts; here one sample of four, then three.
        size = (part.stop - part.start) / 4
        parts.append((size, gradients(network, JointLoss(), Batch(*halves, *arrays, answer_tokens=12 * size))))
    assert np.isclose(sum(size * found for size, (found, _) in parts), loss, rtol=1e-5)
    for name in ("dit.proj_out.weight", "mm_projector.layers.0.weight", "diffusion_connector.layer_weights"):
        total = sum(size * found[name] for size, (_, found) in parts)
        assert np.allclose(total, grads[name], atol=1e-5 * float(mx.abs(grads[name]).max()) + 1e-7)


def conditioned(network: TrainableModel, rows: TokenBatch, dropped: mx.array) -> mx.array:
    inputs = network.inputs(rows)
    return text_input(network, hidden_states(network, inputs), mask=inputs.padding_mask, dropped=dropped).states


def test_padding_changes_nothing(network: TrainableModel) -> None:
    set_mode(network, STAGES["lora"], training=False)
    padded = rows((7, 30), image=False)
    kept = mx.zeros(2, mx.bool_)
    together = conditioned(network, padded, kept)[:1, :7]
    alone = conditioned(network, TokenBatch(padded.input_ids[:1], padded.labels[:1]), kept[:1])
    assert np.allclose(together, alone, atol=1e-5)


def test_dropped_samples_do_not_read_their_prompt(network: TrainableModel) -> None:
    set_mode(network, STAGES["lora"], training=False)
    dropped = mx.array([True, False])
    found = []
    for seed in (0, 5):
        found.append(conditioned(network, rows((8, 8), image=False, seed=seed), dropped))
    assert np.allclose(found[0][0], found[1][0])
    assert not np.allclose(found[0][1], found[1][1])


@pytest.mark.parametrize("joint", [False, True])
def test_activations_can_be_computed_twice(network: TrainableModel, joint: bool) -> None:
    set_mode(network, STAGES["lora"], training=False)
    data = batch((9, 12), joint=joint)
    blocks = list(network.llm.layers)
    loss, grads = gradients(network, JointLoss(upstream=joint), data)
    again, others = gradients(network, JointLoss(upstream=joint, recompute=True), data)
    assert np.isclose(loss, again, rtol=1e-6)
    assert grads.keys() == others.keys()
    for name, value in grads.items():
        assert np.allclose(value, others[name], atol=1e-5 * float(mx.abs(value).max()) + 1e-8), name
    assert network.llm.layers == blocks


def test_half_precision_leaves_the_parameters_alone(network: TrainableModel) -> None:
    set_mode(network, STAGES["lora"], training=False)
    loss, grads = gradients(network, JointLoss(), batch((9, 12)))
    half, others = gradients(network, JointLoss(dtype=mx.bfloat16), batch((9, 12)))
    assert half != loss
    assert np.isclose(loss, half, rtol=0.05)
    assert {value.dtype for value in others.values()} == {mx.float32}
    assert {value.dtype for _, value in tree_flatten(network.trainable_parameters())} == {mx.float32}
    name = "dit.proj_out.weight"
    assert float(mx.abs(grads[name] - others[name]).max()) < 0.1 * float(mx.abs(grads[name]).max())


def test_the_padding_token_is_not_trained(network: TrainableModel) -> None:
    network.llm.embed_tokens.unfreeze()
    try:
        set_mode(network, STAGES["lora"], training=False)
        data = batch((4, 9))
        padded = TokenBatch(data.drawing.input_ids, data.drawing.labels, padding=2)
        assert all(2 not in row for row in padded.input_ids)
        arrays = (data.latents, data.noise, data.sigmas, data.dropped)
        _, grads = gradients(network, JointLoss(upstream=True), Batch(padded, None, *arrays, answer_tokens=0))
        gradient = grads["llm.embed_tokens.weight"]
        assert not gradient[2].any()
        assert gradient[padded.input_ids[0][1]].any()
    finally:
        network.llm.embed_tokens.freeze()
