"""Sums in half precision are accumulated in float32, in the forms of a GPU, where MLX would add them up as they are.

It is read off the exported graph of each network, all of it in float16. What is one kernel of MLX's (norms, attention)
shows as the steps that it is made of; on a GPU these are one kernel, which accumulates in float32 too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from benchmarks.op_counter import tracing_only
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.conditioning import unconditional_input
from mobileo_mlx.models.batch_norm import BatchNorm
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.models.sana_cross_attention import TextInput
from mobileo_mlx.models.sana_prepared import PreparedSana
from mobileo_mlx.parts import Parts
from mobileo_mlx.schedulers import SCHEDULERS, make_scheduler
from mobileo_mlx.training.losses import answer_losses, flow_matching_loss

Compute = Callable[[mx.array], Any]
# Operations that add up or multiply many elements; Softmax does so in float32 where its argument says "precise".
REDUCTIONS = ("Reduce", "Scan", "LogSumExp", "Softmax")


def half_reductions(compute: Compute, x: mx.array, form: str = "metal") -> tuple[list[str], int]:
    """The reductions of half precision in what `compute` makes of an array, and how many operations there are."""
    nodes: list[dict[str, Any]] = []
    mx.disable_compile()  # a compiled kernel can't be exported; its operations can
    try:
        with tracing_only(form):
            mx.export_function(nodes.append, compute, x)
    finally:
        mx.enable_compile()
    found = [node for node in nodes if node["type"] == "primitive"]
    return [
        f"{node['name']} of {shape} {dtype}"
        for node in found
        for _, shape, dtype in node["inputs"]
        if node["name"] in REDUCTIONS and dtype in (mx.float16, mx.bfloat16)
        if not (node["name"] == "Softmax" and node["arguments"] == [True])
    ], len(found)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    from mobileo_mlx.checkpoints.random_model import write_random_model

    path: Path = tmp_path_factory.mktemp("half") / "model"
    write_random_model(path)
    parts = Parts(Checkpoint.open(path), dtypes={"all": mx.float16})
    for name in COMPONENTS:
        mx.eval(parts[name].parameters())  # reading a file can't be exported
    return parts


MASK = mx.array([[True] * 5, [True] * 3 + [False] * 2])


def half(*shape: int) -> mx.array:
    return mx.random.normal(shape).astype(mx.float16)


def plain_dit(parts: Parts) -> Compute:
    texts = half(2, 5, parts.config.dit.caption_channels)
    return lambda x: parts.dit(x, mx.array([500.0, 3.0]), parts.dit.encode_text(texts, MASK))


def prepared_dit(parts: Parts) -> Compute:
    text = TextInput(half(1, 5, parts.config.dit.caption_channels))
    unconditional = unconditional_input(parts, [half(1, 90, parts.config.llm.hidden_size)] * 4)
    mx.eval(unconditional.states)
    long = TextInput(half(2, 200, parts.config.dit.caption_channels))  # which is not absorbed

    def run(x: mx.array) -> list[mx.array]:
        guided = PreparedSana(parts.dit, mx.array([500.0]), text, unconditional)(0, x, guided=True)
        return [guided, PreparedSana(parts.dit, mx.array([500.0]), long)(0, x, guided=False)]

    return run


NETWORKS: dict[str, tuple[Callable[[Parts], Compute], tuple[int, ...]]] = {
    "vision_tower, in bands": (lambda p: p.vision_tower.encode, (1, 256, 128, 3)),
    "vision_tower, whole": (lambda p: p.vision_tower, (2, 128, 128, 3)),
    "vision_tower, trained": (lambda p: lambda x: training(p.vision_tower, x), (2, 128, 128, 3)),
    "mm_projector": (lambda p: p.mm_projector, (1, 16, 256)),
    "llm": (lambda p: lambda x: p.llm.hidden_states(x, 4), (1, 9, 64)),
    "llm, padded": (lambda p: lambda x: p.llm.hidden_states(x, 4, attention_mask=MASK), (2, 5, 64)),
    "llm, a token": (lambda p: lambda x: p.llm(x, cache=p.llm.make_cache(), last_only=True), (1, 1, 64)),
    "lm_head": (lambda p: p.lm_head, (1, 1, 64)),
    "diffusion_connector": (lambda p: lambda x: p.diffusion_connector([x] * 4), (2, 5, 64)),
    "diffusion_connector, padded": (lambda p: lambda x: p.diffusion_connector([x] * 4, MASK), (2, 5, 64)),
    "dit": (plain_dit, (2, 4, 4, 8)),
    "dit, prepared": (prepared_dit, (2, 4, 4, 8)),
    "vae_encoder, in bands": (lambda p: p.vae_encoder.encode, (1, 128, 64, 3)),
    "vae_encoder, whole": (lambda p: p.vae_encoder, (1, 128, 64, 3)),
    "vae_decoder, in bands": (lambda p: p.vae_decoder.decode, (1, 4, 2, 8)),
    "vae_decoder, whole": (lambda p: p.vae_decoder, (1, 4, 2, 8)),
}


def training(module: nn.Module, x: mx.array) -> mx.array:
    """The network in training mode; its statistics stay as they are."""
    before = module.parameters()
    try:
        return module.train()(x)
    finally:
        module.update(before)
        module.eval()


@pytest.mark.parametrize("form", ["metal", "cuda"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_accumulate_in_float32(parts: Parts, name: str, form: str) -> None:
    make, shape = NETWORKS[name]
    found, operations = half_reductions(make(parts), half(*shape), form)
    assert operations > (0 if name == "lm_head" else 3)
    assert found == []


def test_all_reductions_of_a_network_are_seen(parts: Parts) -> None:
    """With what was wrong before put back, each of them is found: the test above can fail."""
    from mobileo_mlx.models import dc_ae, fastvithd, mcp, sana

    def squeezed(x: mx.array) -> mx.array:
        return x * x.mean(axis=(1, 2), keepdims=True)

    def in_half(module: Any, name: str, compute: Compute, x: mx.array) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, lambda _, x, *rest: squeezed(x[..., None])[..., 0])
            return half_reductions(compute, x)[0]

    gate = in_half(mcp.ChannelAttention, "__call__", lambda x: parts.diffusion_connector([x] * 4), half(2, 5, 64))
    assert gate == ["Reduce of (2, 5, 64, 1) mlx.core.float16"] * 2
    excite = in_half(fastvithd.SqueezeExcite, "__call__", parts.vision_tower.encode, half(1, 128, 128, 3))
    assert excite == ["Reduce of (1, 2, 2, 256, 1) mlx.core.float16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dc_ae, "_averaged", lambda x, dim: x.reshape(*x.shape[:-1], dim, -1).mean(axis=-1))
        assert len(half_reductions(parts.vae_encoder.encode, half(1, 128, 64, 3))[0]) == 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchNorm, "__call__", nn.BatchNorm.__call__)
        found = half_reductions(lambda x: training(parts.vision_tower, x), half(2, 128, 128, 3))[0]
        assert len(found) >= 5  # a block and more in each stage
    blocks = parts.config.dit.num_layers
    for make in (plain_dit, prepared_dit):
        compute = make(parts)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sana, "modulated_norm", lambda x, *rest: x - x.mean(axis=-1, keepdims=True))
            found = half_reductions(compute, half(2, 4, 4, 8))[0]
        assert len(found) == (2 * blocks + 1) * (1 if make is plain_dit else 2)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.sum(),
        lambda x: x @ mx.ones((4, 2), mx.float16).mean(axis=0, keepdims=True).swapaxes(0, 1),
        lambda x: mx.var(x, axis=0),
        lambda x: mx.softmax(x, axis=-1),
        lambda x: mx.logsumexp(x, axis=-1),
        lambda x: mx.cumsum(x, axis=-1),
        lambda x: mx.linalg.norm(x),
        lambda x: x.astype(mx.bfloat16).mean(),
    ],
)
def test_every_kind_of_reduction_is_seen(compute: Compute) -> None:
    x = half(3, 2) if "ones" in compute.__code__.co_names else half(3, 4)
    assert half_reductions(compute, x)[0]


def test_what_accumulates_in_float32_is_not_taken_for_one() -> None:
    weight = half(4)
    assert half_reductions(lambda x: mx.fast.rms_norm(x, weight, 1e-5), half(3, 4))[0] == []
    assert half_reductions(lambda x: mx.fast.layer_norm(x, weight, weight, 1e-5), half(3, 4))[0] == []
    assert half_reductions(lambda x: mx.softmax(x, axis=-1, precise=True), half(3, 4))[0] == []
    assert half_reductions(lambda x: x.astype(mx.float32).sum(), half(3, 4))[0] == []


# What is not a network


def test_losses_accumulate_in_float32(parts: Parts) -> None:
    text, noise, sigmas = half(2, 5, parts.config.dit.caption_channels), mx.ones((2, 4, 4, 8)), mx.array([0.2, 0.9])
    found, operations = half_reductions(
        lambda x: flow_matching_loss(parts.dit, x, noise, sigmas, text, attention_mask=MASK), mx.zeros((2, 4, 4, 8))
    )
    assert operations > 100
    assert found == []
    labels = np.array([[-100, 3, 5, -100, 2]])
    found, operations = half_reductions(lambda x: answer_losses(parts.lm_head, x, labels).sum(), half(1, 5, 64))
    assert operations > 3
    assert found == []


@pytest.mark.parametrize("name", SCHEDULERS)
def test_samplers_keep_float32(name: str) -> None:
    """They take the network's velocity in float32 and add nothing up."""
    scheduler = make_scheduler(name, 20)
    x = mx.random.normal((1, 4, 4, 8))
    history: list[mx.array] = []
    for index in range(4):
        x, x_0 = scheduler.step(index, x, x, history)
        history.insert(0, x_0)
        assert x.dtype == x_0.dtype == mx.float32
