"""Configurations of which nothing can be taken for granted: types, ranges, and what has to fit together."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from upstream import write_upstream

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import describe
from mobileo_mlx.checkpoints.random_model import write_random_model
from mobileo_mlx.config import Config, Range, shown
from mobileo_mlx.errors import CheckpointError, ConfigError
from mobileo_mlx.models.mobileo import COMPONENTS, MobileOConfig, build

ODD = (None, True, 0, 7, -1, 10**5, 10**9, 2**63, 10**299, 1e300, 0.5, "6", "x" * 10_000, [], [1], [[1]], {}, {"a": 1})


@dataclass(frozen=True)
class Inner(Config):
    count: Annotated[int, Range(1, 9)]


@dataclass(frozen=True)
class Example(Config):
    number: Annotated[float, Range(0.5, 2)] = 1.0
    side: Annotated[int, Range(1, 9, odd=True)] | None = None
    kind: Literal["a", "b"] = "a"
    many: tuple[Annotated[int, Range(0, 9)], ...] = ()
    deep: tuple[tuple[float, ...], ...] = ()
    flag: bool = False
    text: str = ""
    inner: Inner | None = None
    one_or_many: int | tuple[int, ...] | None = None

    def problem(self) -> str:
        return "has many of another length than deep" if len(self.many) != len(self.deep) else ""


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("number", "1", "a number from 0.5 to 2"),
        ("number", True, "a number from 0.5 to 2"),
        ("number", float("nan"), "a number"),
        ("number", float("inf"), "a number"),
        ("number", 10**400, "a number"),
        ("number", 3, "a number from 0.5 to 2"),
        ("side", 2, "an odd number from 1 to 9 or null"),
        ("side", 3.0, "an odd number"),
        ("side", True, "an odd number"),
        ("kind", "c", "'a' or 'b'"),
        ("kind", ["a"], "'a' or 'b'"),
        ("many", 1, "a list, each of which is a whole number from 0 to 9"),
        ("many", [1, 10], "a list, each"),
        ("many", [1, None], "a list, each"),
        ("many", {"1": 1}, "a list, each"),
        ("many", [1] * 101, "a list, each"),
        ("deep", [1], "a list, each of which is a list, each of which is a number"),
        ("flag", 1, "true or false"),
        ("flag", None, "true or false"),
        ("text", 1, "text"),
        ("inner", 1, "an object or null"),
        ("inner", [], "an object or null"),
        ("one_or_many", "1", "a whole number or a list, each of which is a whole number or null"),
    ],
)
def test_a_value_that_is_not_what_its_field_is_for(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"^x\.json has {key} = .*, which is not {expected}") as error:
        Example.from_dict({key: value}, "x.json")
    assert len(str(error.value)) < 300


def test_values_that_are() -> None:
    values = {"number": 2, "side": 9, "kind": "b", "many": [0, 9], "deep": [[], [1, 2.5]], "inner": {"count": 1}}
    config = Example.from_dict({**values, "one_or_many": [1], "unknown": object()})
    assert config == Example(2, 9, "b", (0, 9), ((), (1, 2.5)), inner=Inner(1), one_or_many=(1,))
    assert Example.from_dict({"side": None, "one_or_many": 3}).one_or_many == 3


def test_what_is_wrong_inside_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^'inner' in x\.json has count = 10, which is not a whole number from 1 to"):
        Example.from_dict({"inner": {"count": 10}}, "x.json")
    with pytest.raises(ConfigError, match=r"^'inner' in x\.json lacks 'count'"):
        Example.from_dict({"inner": {}}, "x.json")
    with pytest.raises(ConfigError, match=r"^x\.json has many of another length than deep\.$"):
        Example.from_dict({"many": [1]}, "x.json")


def test_a_long_value_is_shortened() -> None:
    for value in ("x" * 10**6, [1] * 10**6, {str(i): i for i in range(10**5)}, 10**299, [[[[[[[[1]]]]]]]]):
        assert len(shown(value)) < 200


# A whole model


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours") / "model"
    write_random_model(folder)
    return folder


@pytest.fixture(scope="module")
def upstreams(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_upstream(tmp_path_factory.mktemp("upstream") / "model", ours)


@pytest.fixture(scope="module")
def values(ours: Path) -> dict[str, Any]:
    return json.loads((ours / "config.json").read_text())


def places(value: Any, *place: Any) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], *place, key)
    elif isinstance(value, list) and value:
        yield from places(value[-1], *place, len(value) - 1)


def changed(values: Any, place: tuple[Any, ...], value: Any) -> Any:
    values = inner = copy.deepcopy(values)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return values


def test_any_value_anywhere_is_refused_in_a_sentence_or_can_be_built(values: dict[str, Any]) -> None:
    messages = []
    for place in places({key: values[key] for key in MobileOConfig.__dataclass_fields__}):
        for odd in ODD:
            try:
                config = MobileOConfig.from_dict(changed(values, place, odd), "x.json")
            except ConfigError as error:
                messages.append(str(error))
                continue
            for component in COMPONENTS:
                build(component, config)
    assert len(messages) > 1000
    assert all("x.json" in message and len(message) < 500 for message in messages)


@pytest.mark.parametrize(
    ("section", "changes", "expected"),
    [
        ("llm", {"num_attention_heads": 5}, "hidden_size = 64, no even multiple of num_attention_heads"),
        ("llm", {"num_attention_heads": 64}, "hidden_size = 64, no even multiple"),
        ("llm", {"num_key_value_heads": 3}, "no multiple of num_key_value_heads"),
        ("dit", {"patch_size": 3}, "sample_size = 4, no multiple of patch_size = 3"),
        ("dit", {"interpolation_scale": 1, "attention_head_dim": 3, "num_attention_heads": 2}, "no multiple of 4"),
        ("dit", {"mlp_ratio": 0.01}, "mlp_ratio = 0.01"),
        ("vae", {"encoder_block_types": ["ResBlock"] * 5}, "encoder_block_types of another length"),
        ("vae", {"decoder_qkv_multiscales": []}, "decoder_qkv_multiscales of another length"),
        ("vae", {"decoder_block_out_channels": [16]}, "for 1 stages"),
        ("vae", {"decoder_layers_per_block": [1, 1, 0, 1, 1, 1]}, "a 0 in decoder_layers_per_block"),
        ("vae", {"encoder_block_out_channels": [16, 16, 32, 32, 64, 320]}, "encoder_block_out_channels that do not"),
        ("vae", {"decoder_block_out_channels": [16, 16, 32, 32, 64, 60]}, "decoder_block_out_channels that do not"),
        ("vae", {"latent_channels": 7}, "latent_channels = 7, which does not divide"),
        ("vae", {"attention_head_dim": 33}, "attention_head_dim = 33, more than"),
        ("vae", {"glumb_ratio": 0.01}, "glumb_ratio = 0.01"),
        ("vision_tower", {"layers": []}, "embed_dims of another length than layers"),
        ("vision_tower", {"pos_embs": [None]}, "pos_embs of another length than layers"),
        ("vision_tower", {"down_strides": [2, 2]}, "down_strides of another length"),
        ("vision_tower", {"embed_dims": [8, 16, 32, 64, 100]}, "embed_dims or a cls_ratio"),
        ("vision_tower", {"cls_ratio": 0.5}, "embed_dims or a cls_ratio"),
        ("vision_tower", {"attention_head_dim": 48}, "attention_head_dim = 48"),
        ("vision_tower", {"mlp_ratios": [0.1] * 5}, "mlp_ratios that leave no channel"),
        ("mm_projector", {"input_dim": 8}, "mm_projector.input_dim = 8 where"),
        ("mm_projector", {"output_dim": 8}, "mm_projector.output_dim = 8 where llm.hidden_size is 64"),
        ("diffusion_connector", {"hidden_size": 8}, "diffusion_connector.hidden_size = 8 where"),
        ("diffusion_connector", {"output_dim": 8}, "dit.caption_channels = 64 where diffusion_connector.output_dim"),
        ("diffusion_connector", {"num_layers": 7}, "num_layers = 7, more than llm has hidden states"),
        ("diffusion_connector", {"kernel_size": 4}, "kernel_size = 4, which is not an odd number"),
        ("dit", {"in_channels": 4}, "vae.latent_channels = 8 where dit.in_channels is 4"),
        ("dit", {"out_channels": 16}, "dit.out_channels = 16"),
        (None, {"image_size": 100}, "image_size = 100, no multiple of the vision tower's 64 pixels"),
        (None, {"eos_token_ids": [10**6]}, "eos_token_ids"),
        (None, {"eos_token_ids": [-1]}, "eos_token_ids"),
        (None, {"num_train_timesteps": 10**9}, "num_train_timesteps = 1000000000"),
        (None, {"flow_shift": 0}, "flow_shift = 0"),
        ("vae", {"scaling_factor": 0}, "scaling_factor = 0"),
        ("llm", {"rms_norm_eps": -1e-6}, "rms_norm_eps = -1e-06"),
        ("llm", {"rope_theta": 0}, "rope_theta = 0"),
    ],
)
def test_what_does_not_fit_together(values: dict[str, Any], section: str, changes: dict, expected: str) -> None:
    values = copy.deepcopy(values)
    (values[section] if section else values).update(changes)
    with pytest.raises(ConfigError, match=r"x\.json") as error:
        MobileOConfig.from_dict(values, "x.json")
    assert expected in str(error.value)


def test_attention_in_the_vision_tower_has_a_limit(values: dict[str, Any]) -> None:
    """The strides are in no tensor's shape, and what attention takes grows with the square of the tokens."""
    values = copy.deepcopy(values)
    values["vision_tower"]["down_strides"] = [1, 1, 1, 1]
    values["image_size"] = 1024
    with pytest.raises(ConfigError, match="image_size = 1024, which makes more than 4096 tokens of an image"):
        MobileOConfig.from_dict(values)


@pytest.fixture
def rewritten(ours: Path, tmp_path: Path) -> Any:
    """A function that gives a model like `ours` but for one value of its config.json."""

    def write(place: tuple[Any, ...], value: Any) -> Path:
        for file in ours.iterdir():
            (tmp_path / file.name).symlink_to(file)
        (tmp_path / "config.json").unlink()
        values = changed(json.loads((ours / "config.json").read_text()), place, value)
        (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8-sig")
        return tmp_path

    return write


@pytest.mark.parametrize("value", [6, 200, 10**5, 10**9])
@pytest.mark.parametrize(
    "place",
    [
        ("llm", "num_hidden_layers"),
        ("dit", "num_layers"),
        ("diffusion_connector", "num_refinement_blocks"),
        ("vision_tower", "layers", 1),
        ("vae", "encoder_layers_per_block", 0),
        ("vae", "decoder_layers_per_block", 5),
    ],
)
def test_nothing_is_built_of_more_blocks_than_there_are(
    rewritten: Any, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, ...], value: int
) -> None:
    folder = rewritten(place, value)
    monkeypatch.setattr("mobileo_mlx.checkpoints.checkpoint.build", None)
    for look in (Checkpoint.open, describe):
        with pytest.raises(ConfigError, match=rf"{place[1]}.* = .*{value}"):
            look(folder)


def test_a_byte_order_mark_is_fine(rewritten: Any) -> None:
    assert describe(rewritten(("flow_shift",), 2)).components


def test_a_size_that_the_tensors_do_not_have_is_found_by_a_look(rewritten: Any) -> None:
    folder = rewritten(("llm", "intermediate_size"), 65536)
    Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=r"wrong shape are llm\.layers\.0\.mlp\.down_proj\.weight"):
        describe(folder)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "num_hidden_layers", 10**9),
        ("config.json", "num_hidden_layers", "5"),
        ("config.json", "hidden_size", [64]),
        ("config.json", "num_attention_heads", 0),
        ("config.json", "rope_theta", None),
        ("config.json", "rms_norm_eps", 1e300),
        ("config.json", "mm_vision_tower", 128),
        ("config.json", "mm_vision_tower", "tower_" + "9" * 5000),
        ("config.json", "diffusion_name_or_path", 1),
        ("config.json", "vlm_num_layers", 10**9),
        ("config.json", "vlm_num_layers", "4"),
        ("config.json", "eos_token_id", {}),
        ("config.json", "eos_token_id", ["1"]),
        ("config.json", "eos_token_id", 10**9),
        ("generation_config.json", "eos_token_id", 1.5),
        ("generation_config.json", "eos_token_id", [None]),
        ("diffusion/transformer/config.json", "num_layers", 10**5),
        ("diffusion/transformer/config.json", "patch_size", 0),
        ("diffusion/transformer/config.json", "sample_size", True),
        ("diffusion/vae/config.json", "scaling_factor", 0),
        ("diffusion/vae/config.json", "encoder_layers_per_block", None),
        ("diffusion/vae/config.json", "encoder_layers_per_block", [10**8] * 6),
        ("diffusion/vae/config.json", "decoder_block_types", ["Other"] * 6),
        ("diffusion/scheduler/scheduler_config.json", "flow_shift", 0),
        ("diffusion/scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
        ("diffusion/scheduler/scheduler_config.json", "num_train_timesteps", None),
    ],
)
def test_upstreams_files_are_checked_too(upstreams: Path, tmp_path: Path, file: str, key: str, value: Any) -> None:
    model = tmp_path / "model"
    for source in upstreams.rglob("*"):
        if source.is_file():
            target = model / source.relative_to(upstreams)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    path = model / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    path.write_text(json.dumps({**before, key: value}))
    with pytest.raises(ConfigError, match=key) as error:
        Checkpoint.open(model)
    assert str(path) in str(error.value)


def test_odd_numbers_in_names_and_shapes_of_tensors(upstreams: Path) -> None:
    config = json.loads((upstreams / "config.json").read_text())
    checkpoint = Checkpoint.open(upstreams)
    full = {info.key: info.shape for name in COMPONENTS for info in checkpoint.tensors(name).values()}
    dit = json.loads((upstreams / "diffusion/transformer/config.json").read_text())
    vae = json.loads((upstreams / "diffusion/vae/config.json").read_text())
    prefix = "model.vision_tower.vision_tower.model.network."
    assert MobileOConfig.from_upstream(config, full, dit=dit, vae=vae)
    # A stage of a number that no loop should count up to is only another stage.
    many = full | {f"{prefix}{10**12}.0.convffn.fc1.weight": (256, 128)}
    assert len(MobileOConfig.from_upstream(config, many, dit=dit, vae=vae).vision_tower.layers) == 6
    with pytest.raises(ConfigError, match="tensors of vision_tower tell has embed_dims"):
        MobileOConfig.from_upstream(config, full | {f"{prefix}0.0.convffn.fc1.weight": (10, 10**9)}, dit=dit, vae=vae)
