"""What the production code does, counted from its graph: the targets for the published 0.5B model.

They hold for the forms of a GPU. On a CPU a convolution may be written with more arithmetic, or less, where that is
faster there.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest
from compiler import COMPILES

from benchmarks import flops, op_counter
from benchmarks.synthetic import official_config
from mobileo_mlx.models.mobileo import MobileOConfig

GIGA = 1e9


@pytest.fixture(scope="module")
def config() -> MobileOConfig:
    return official_config("0.5b")


@pytest.fixture(params=op_counter.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_denoising_step_with_guidance(config: MobileOConfig) -> None:
    assert flops.dit_step(config).flops == pytest.approx(475.7 * GIGA, rel=0.002)


def test_the_decoder(config: MobileOConfig) -> None:
    assert 1500 * GIGA < flops.decoder(config).flops <= 1850 * GIGA


def test_a_prefill_of_300(config: MobileOConfig, backend: str) -> None:
    count = flops.prefill(config, backend=backend)
    assert not count.flops_of("vision_tower")
    assert 200 * GIGA < count.flops <= 223 * GIGA


def test_a_second_question_on_the_same_image(config: MobileOConfig, backend: str) -> None:
    count = flops.second_question(config, backend=backend)
    assert not any(count.readers[name] for name in flops.VISION)
    assert 15 * GIGA < count.flops <= 25 * GIGA


def test_a_question_on_another_image_sees_it(config: MobileOConfig) -> None:
    first = op_counter.trace(config, flops.asking(config, [(0, "what", 1)]))
    both = op_counter.trace(config, flops.asking(config, [(0, "what", 1), (1, "what", 1)]))
    assert (both - first).flops_of("vision_tower") > 400 * GIGA


def test_one_more_token_reads_the_language_model_once(config: MobileOConfig) -> None:
    weights = flops.token(config).weights()
    assert set(weights) == {"llm", "lm_head"}
    assert weights["lm_head"] == config.llm.hidden_size * config.llm.vocab_size


def test_operations_in_a_block_of_the_dit(config: MobileOConfig) -> None:
    if not COMPILES:
        pytest.skip("no compiler for the CPU, so that nothing is fused")
    block = flops.dit_block_operations(config, size=128)
    # 12 of them are the self-attention, 7 the feed-forward network and 7 the cross-attention: 3 for each half, and
    # putting both together.
    assert sum(block.values()) == 26, block


# The counting itself, on a graph that one can count by hand


def counted(run: Callable[..., mx.array], *arrays: mx.array, weights: int = 0) -> op_counter.Count:
    """The first `weights` of the arrays are weights."""
    nodes: list = []
    mx.export_function(nodes.append, run, *arrays)
    return op_counter._counted(nodes, ["dit"] * weights + [None] * (len(arrays) - weights))


def test_a_linear_layer_counts_two_for_each_multiplication() -> None:
    count = counted(lambda w, b, x: mx.addmm(b, x, w.T), mx.zeros((3, 5)), mx.zeros((3,)), mx.zeros((2, 5)), weights=2)
    assert count.flops == 2 * 2 * 3 * 5
    assert count.flops_of("dit") == count.flops
    assert count.readers["dit"] == 1


def test_a_grouped_convolution() -> None:
    def run(w: mx.array, x: mx.array) -> mx.array:
        return mx.conv2d(x, w, stride=2, padding=1, groups=2)

    count = counted(run, mx.zeros((8, 3, 3, 2)), mx.zeros((1, 6, 6, 4)), weights=1)
    assert count.flops == 2 * (3 * 3 * 8) * 3 * 3 * 2
    assert count.weights() == {"dit": 8 * 3 * 3 * 2}


def test_attention_counts_both_products_and_keeps_its_scores() -> None:
    q, k = mx.zeros((1, 2, 3, 4)), mx.zeros((1, 2, 5, 4))
    count = counted(lambda q, k: mx.fast.scaled_dot_product_attention(q, k, k, scale=0.5), q, k)
    assert count.flops == 2 * 2 * (2 * 3 * 5 * 4)


def test_what_is_only_looked_at_is_no_operation() -> None:
    count = counted(lambda x: mx.exp(x.swapaxes(0, 1).reshape(6)[2:4]), mx.zeros((2, 3)))
    assert dict(count.operations) == {"Exp": 1}
