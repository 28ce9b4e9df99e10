"""Adapters of the PEFT library in, and ours out, on torch models that have upstream's names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from random_adapter import write_random_adapter  # noqa: E402
from upstream import PREFIXES, upstream_tensors  # noqa: E402

from mobileo_mlx.checkpoints.adapters import Adapter  # noqa: E402
from mobileo_mlx.checkpoints.checkpoint import Checkpoint  # noqa: E402
from mobileo_mlx.checkpoints.modules import named_parameters  # noqa: E402
from mobileo_mlx.models.mobileo import sanitize  # noqa: E402
from mobileo_mlx.pipeline import MobileO  # noqa: E402
from mobileo_mlx.training.lora import LLM_LAYERS, LoRAConfig  # noqa: E402

from .common import part  # noqa: E402

# What the libraries say to each other.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]

PARTS = ("dit", "lm_head", "llm")  # the language model's prefix is also that of the DiT, so that comes first
DIT = r"model\.dit\.transformer_blocks\.\d+\.(attn\d\.to_[qv]|ff\.conv_inverted|ff\.conv_point)"


@pytest.fixture
def theirs(tiny_model: Path) -> Any:
    """The language model and the DiT as upstream has them in one module, with the small model's weights."""
    config = Checkpoint.open(tiny_model).config
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**config.llm.to_dict(), tie_word_embeddings=False))
    dit = {name: value for name, value in config.dit.to_dict().items() if name != "attention_eps"}
    width = config.dit.num_cross_attention_heads * config.dit.cross_attention_head_dim
    model.model.dit = diffusers.SanaTransformer2DModel(**dit, cross_attention_dim=width)
    own = ("model.layers.", "model.embed_tokens.", "model.norm.", "model.dit.", "lm_head.")
    tensors = {name: array for name, array in upstream_tensors(tiny_model).items() if name.startswith(own)}
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}, strict=True)
    return model.eval()


def assert_same_weights(adapted: MobileO, theirs: Any) -> None:
    """All weights of ours are those of theirs, which has merged its adapter."""
    state = dict(theirs.state_dict())
    for component in PARTS:
        found = part(state, PREFIXES[component])
        state = {name: tensor for name, tensor in state.items() if not name.startswith(PREFIXES[component])}
        expected = sanitize(component, {k: mx.array(v.numpy()) for k, v in found.items()}, adapted.config)
        ours = named_parameters(adapted.parts[component])
        assert ours.keys() == expected.keys()
        for name, array in ours.items():
            assert mx.allclose(array, expected[name], rtol=1e-5, atol=1e-6), name


def changed(model: MobileO, base: Path) -> dict[str, int]:
    """How many tensors of each part are not those of the model without adapter."""
    plain = MobileO.load(base, dtype="float32")
    pairs = {name: [named_parameters(m.parts[name]) for m in (model, plain)] for name in PARTS}
    return {name: sum(not mx.array_equal(a[key], b[key]) for key in a) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"target_modules": list(LLM_LAYERS)}, {"llm": 35, "dit": 0, "lm_head": 0}),
        ({"target_modules": ["q_proj", "lm_head"]}, {"llm": 5, "dit": 0, "lm_head": 1}),
        ({"target_modules": ["v_proj"], "layers_to_transform": [1, 3]}, {"llm": 2, "dit": 0, "lm_head": 0}),
        ({"target_modules": ["up_proj"], "use_rslora": True}, {"llm": 5, "dit": 0, "lm_head": 0}),
        (
            {
                "target_modules": ["q_proj", "k_proj"],
                "rank_pattern": {r"layers\.[02]\.self_attn\.q_proj": 2, "k_proj": 7},
                "alpha_pattern": {"q_proj": 3},
            },
            {"llm": 10, "dit": 0, "lm_head": 0},
        ),
        ({"target_modules": DIT}, {"llm": 0, "dit": 18, "lm_head": 0}),
        # "norm" is also the end of the names of ten more norms of the language model, and of one of the DiT.
        ({"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "norm"]}, {"llm": 16, "dit": 1, "lm_head": 1}),
        ({"target_modules": ["k_proj"], "bias": "lora_only"}, {"llm": 10, "dit": 0, "lm_head": 0}),
        ({"target_modules": ["q_proj", "down_proj"], "use_dora": True}, {"llm": 10, "dit": 0, "lm_head": 0}),
        ({"target_modules": DIT, "use_dora": True, "use_rslora": True}, {"llm": 0, "dit": 18, "lm_head": 0}),
        (
            {"target_modules": ["v_proj", "lm_head"], "exclude_modules": r"model\.layers\.[13]\..*"},
            {"llm": 3, "dit": 0, "lm_head": 1},
        ),
        (
            {"target_modules": ["up_proj"], "layers_to_transform": [0, 4], "layers_pattern": "layers"},
            {"llm": 2, "dit": 0, "lm_head": 0},
        ),
        (
            {
                "target_modules": r".*\.(q|k)_proj$",
                # Sorted, as PEFT writes them: the first that matches counts, and after loading that may be another.
                "alpha_pattern": {r"(layers\.)?[02]\.self_attn\.\w+": 2, r".*\.[0-3]\.self_attn\..*": 9},
                "rank_pattern": {r"^model\.layers\.\d+\.self_attn\.q_proj": 3},
            },
            {"llm": 10, "dit": 0, "lm_head": 0},
        ),
    ],
)
def test_theirs_in(
    tiny_model: Path, tmp_path: Path, theirs: Any, options: dict[str, Any], counts: dict[str, int]
) -> None:
    wrapped = trained(peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.1, **options)))
    targeted = {name.rpartition(".lora_A")[0] for name, _ in wrapped.named_modules() if name.endswith("lora_A.default")}
    targeted = {name.removeprefix("base_model.model.") for name in targeted}
    wrapped.save_pretrained(tmp_path)
    opened = Adapter.open(tmp_path)
    config = opened.config
    assert config is not None
    assert opened.notes == ()
    names = [name for name, module in theirs.named_modules() if type(module) is torch.nn.Linear or name in targeted]
    adapted = MobileO.load(tiny_model, adapter=tmp_path, dtype="float32")
    assert_same_weights(adapted, wrapped.merge_and_unload())
    assert changed(adapted, tiny_model) == counts
    assert {name for name in names if config.targets(name, 5)} == targeted


def trained(wrapped: Any, seed: int = 0) -> Any:
    """With values as training would leave them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return wrapped


@pytest.mark.parametrize("dora", [False, True])
def test_several_adapters_add_up(tiny_model: Path, tmp_path: Path, theirs: Any, dora: bool) -> None:
    first = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"])
    second = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], use_dora=dora)
    wrapped = trained(peft.get_peft_model(theirs, first, adapter_name="first"))
    wrapped.add_adapter("second", second)
    wrapped.set_adapter("second")
    trained(wrapped, seed=1)
    wrapped.save_pretrained(tmp_path)
    scales = [0.5, 1.0 if dora else -2.0]  # with another scale PEFT's DoRA ends at other lengths than the trained ones
    for module in wrapped.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            for name, scale in zip(("first", "second"), scales, strict=True):
                module.set_scale(name, scale)
    adapted = MobileO.load(
        tiny_model, adapter=[tmp_path / "first", tmp_path / "second"], adapter_scale=scales, dtype="float32"
    )
    assert_same_weights(adapted, wrapped.merge_and_unload(adapter_names=["first", "second"]))
    assert changed(adapted, tiny_model) == {"llm": 15, "dit": 0, "lm_head": 0}


@pytest.mark.parametrize("components", [("llm",), ("dit",), ("llm", "dit")])
def test_ours_out(tiny_model: Path, tmp_path: Path, theirs: Any, components: tuple[str, ...]) -> None:
    config = LoRAConfig(rank=3, alpha=4.5, components=components)
    write_random_adapter(tmp_path / "adapter", tiny_model, config)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        wrapped = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter"))
    adapted = MobileO.load(tiny_model, adapter=tmp_path / "adapter", dtype="float32")
    updates = sum(name.endswith("lora_A.default") for name, _ in wrapped.named_modules())
    assert (
        updates == sum(changed(adapted, tiny_model).values()) == 35 * ("llm" in components) + 30 * ("dit" in components)
    )
    assert_same_weights(adapted, wrapped.merge_and_unload())
