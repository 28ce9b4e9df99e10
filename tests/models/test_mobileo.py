from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mobileo_mlx.errors import ConfigError
from mobileo_mlx.models.mobileo import COMPONENTS, MobileOConfig, component_of

CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "mm_vision_tower": "mobileclip_l_1024",
    "diffusion_name_or_path": "Efficient-Large-Model/Sana_600M_512px_diffusers",
    "eos_token_id": 7,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", ("llm", "embed_tokens.weight")),
        ("model.layers.3.mlp.up_proj.weight", ("llm", "layers.3.mlp.up_proj.weight")),
        ("model.norm.weight", ("llm", "norm.weight")),
        ("lm_head.weight", ("lm_head", "weight")),
        ("model.mm_projector.0.bias", ("mm_projector", "0.bias")),
        ("model.vision_tower.vision_tower.model.head.proj", ("vision_tower", "head.proj")),
        ("model.diffusion_connector.fusion.temperature", ("diffusion_connector", "temperature")),
        ("model.dit.proj_out.bias", ("dit", "proj_out.bias")),
        ("model.vae.encoder.conv_in.bias", ("vae_encoder", "conv_in.bias")),
        ("model.vae.decoder.conv_in.bias", ("vae_decoder", "conv_in.bias")),
        ("model.something.weight", None),
        ("transformer.weight", None),
    ],
)
def test_whose_a_tensor_is(name: str, expected: tuple[str, str] | None) -> None:
    assert component_of(name) == expected


def test_published_defaults() -> None:
    config = MobileOConfig.from_upstream(CONFIG, {})
    assert config.image_size == 1024
    assert config.image_tokens == 256
    assert config.default_size == (512, 512)
    assert config.size_multiple == 32
    assert config.flow_shift == 3.0
    assert config.diffusion_connector.num_layers == 4  # the original never writes vlm_num_layers
    assert config.eos_token_ids == (7,)
    assert (config.dit.num_layers, config.dit.dim) == (28, 1152)


def test_diffusers_configurations_come_first() -> None:
    dit = {
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "caption_channels": 4,
        "sample_size": 4,
        "patch_size": 2,
    }
    vae = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in (
            ("block_out_channels", [8, 16, 32]),
            ("block_types", ["ResBlock"] * 3),
            ("layers_per_block", [1] * 3),
            ("qkv_multiscales", [[]] * 3),
        )
    }
    config = MobileOConfig.from_upstream(
        {**CONFIG, "vlm_num_layers": 2},
        {},
        dit=dit,
        vae=vae,
        scheduler={"flow_shift": 5.0, "num_train_timesteps": 500},
        generation_config={"eos_token_id": [3, 4]},
    )
    assert config.default_size == (16, 16)
    assert config.size_multiple == 8
    assert (config.flow_shift, config.num_train_timesteps) == (5.0, 500)
    assert config.eos_token_ids == (3, 4)
    assert config.diffusion_connector.num_layers == 2


def test_our_file_is_the_inverse(tiny_model: Path) -> None:
    values = json.loads((tiny_model / "config.json").read_text())
    config = MobileOConfig.from_dict(values)
    assert MobileOConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mm_vision_tower": None}, "mm_vision_tower"),
        ({"mm_vision_tower": "clip"}, "mm_vision_tower"),
        ({"diffusion_name_or_path": "someone/else"}, "someone/else"),
        ({"hidden_size": ...}, "lacks 'hidden_size'"),
    ],
)
def test_what_is_missing_is_named(change: dict[str, Any], expected: str) -> None:
    values = {name: value for name, value in {**CONFIG, **change}.items() if value is not ...}
    with pytest.raises(ConfigError, match=expected):
        MobileOConfig.from_upstream(values, {}, source="some/config.json")


def test_what_is_missing_in_our_file_is_named(tiny_model: Path) -> None:
    values = json.loads((tiny_model / "config.json").read_text())
    del values["dit"]["num_layers"], values["dit"]["caption_channels"]
    with pytest.raises(ConfigError, match=r"'dit' in .* lacks 'num_layers', 'caption_channels'"):
        MobileOConfig.from_dict(values)
    del values["dit"]
    with pytest.raises(ConfigError, match="lacks 'dit'"):
        MobileOConfig.from_dict(values)


def test_the_components_are_eight() -> None:
    assert len(set(COMPONENTS)) == len(COMPONENTS) == 8
