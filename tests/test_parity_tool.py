"""`python -m benchmarks.parity`: that it passes, and above all that it fails when it should."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.parity.__main__ import main
from benchmarks.parity.compare import Tolerance, compare
from mobileo_mlx.models import mcp
from mobileo_mlx.pipeline import MobileO

DATA = Path(__file__).parent / "data" / "reference"
WEIGHTS = "tiny/checkpoint/model.safetensors"

# What no output can depend on: an unused head, BatchNorm's counters of training steps, and biases that a softmax
# takes away again because they shift all of its scores alike.
WITHOUT_EFFECT = r".*\.head\.proj|.*num_batches_tracked|model\.dit\..*\.attn2\.to_k\.bias"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A copy of the small reference directory, to be spoilt."""
    return shutil.copytree(DATA, tmp_path / "reference")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the tool and returns its exit status and all that it prints."""

    def call(*arguments: object) -> tuple[int, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out + err

    return call


Run = Callable[..., tuple[int, str]]


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# It passes


def test_the_small_reference_agrees(run: Run) -> None:
    status, out = run(DATA)
    assert status == 0
    assert re.search(r"^PASS: \d+ values agree, 0 do not, 0 were not exercised\.$", out, re.MULTILINE)
    assert "absent from the directory: preprocess, llm, dit, vae" in out
    assert "above 20" not in out


def test_the_whole_reference_agrees(run: Run, reference: Path, tmp_path: Path) -> None:
    status, out = run(reference, "--json", tmp_path / "parity.json")
    assert status == 0, out
    assert "absent" not in out
    assert "above 20" not in out
    report = json.loads((tmp_path / "parity.json").read_text())
    assert report["passed"] is True
    seen = {(check["component"], check["case"]) for check in report["checks"]}
    for path in (reference / "tiny" / "goldens").glob("*.json"):
        assert {(path.stem, case) for case in json.loads(path.read_text())["cases"]} <= seen


def test_a_row_for_each_tensor(run: Run) -> None:
    _, cases = run(DATA, "--component", "mcp")
    status, tensors = run(DATA, "--component", "mcp", "--tensors")
    assert status == 0
    assert "refiner0.channel_attn" in tensors
    assert "refiner0.channel_attn" not in cases
    assert "not run: vision" in tensors


def test_numbers_as_json(run: Run, tmp_path: Path) -> None:
    run(DATA, "--json", tmp_path / "numbers.json")
    report = json.loads((tmp_path / "numbers.json").read_text())
    (check,) = [c for c in report["checks"] if (c["case"], c["tensor"]) == ("len9_t2", "output")]
    assert check["verdict"] == "pass"
    assert check["tolerance"] == "1e-05"
    assert 0 < check["relative"] < 1e-6
    assert check["ratio"] > 0


# It fails: weights


def families(names: Iterator[str]) -> dict[str, str]:
    """One tensor of each kind: the kind is the name with its numbers taken out."""
    kinds: dict[str, str] = {}
    for name in names:
        if re.fullmatch(WITHOUT_EFFECT, name) is None:
            kinds.setdefault(re.sub(r"\d+", "N", name), name)
    return kinds


def undetected(source: Path, golden: str, kept: set[str], prefix: str, run: Run, folder: Path) -> list[str]:
    """The tensors that can be spoilt by a tenth of their spread without the tool noticing.

    Args:
        kept: cases of the golden. A small one that uses all tensors is enough.
    """
    for name in ("tiny/checkpoint", "tiny/diffusion"):
        shutil.copytree(source / name, folder / name, copy_function=shutil.copyfile)
    goldens = folder / "tiny/goldens"
    goldens.mkdir()
    index = json.loads((source / f"tiny/goldens/{golden}.json").read_text())
    index["cases"] = {name: case for name, case in index["cases"].items() if name in kept}
    (goldens / f"{golden}.json").write_text(json.dumps(index))
    tensors = load_file(source / f"tiny/goldens/{golden}.safetensors")
    save_file({k: t for k, t in tensors.items() if k.split("/")[0] in kept}, goldens / f"{golden}.safetensors")
    status, out = run(folder)
    assert status == 0, out

    weights = load_file(source / WEIGHTS)
    kinds = families(name for name in weights if name.startswith(prefix))
    assert kinds
    random, missed = np.random.default_rng(0), []
    for name in kinds.values():
        sound = weights[name]
        spread = sound.std() if sound.size > 1 else 1.0
        spoilt = np.asarray(sound + 0.1 * spread * random.standard_normal(sound.shape), np.float32)
        save_file(weights | {name: spoilt}, folder / WEIGHTS)
        if run(folder)[0] != 1:
            missed.append(name)
    return missed


@pytest.mark.parametrize(
    ("golden", "kept", "prefix"),
    [
        ("vision", {"rect"}, "model.vision_tower."),
        ("vision", {"rect"}, "model.mm_projector."),
        ("mcp", {"len9_t2"}, "model.diffusion_connector."),
    ],
)
def test_spoilt_weights_of_the_small_reference(
    golden: str, kept: set[str], prefix: str, run: Run, tmp_path: Path
) -> None:
    assert undetected(DATA, golden, kept, prefix, run, tmp_path) == []


@pytest.mark.parametrize(
    ("golden", "kept", "prefix"),
    [
        ("llm", {"forward"}, "model.embed_tokens."),
        ("llm", {"forward"}, "model.layers."),
        ("llm", {"forward"}, "model.norm."),
        ("llm", {"forward"}, "lm_head."),
        ("dit", {"shared", "t500_mask"}, "model.dit."),
        ("vae", {"encode_64x96"}, "model.vae.encoder."),
        ("vae", {"decode_4x4"}, "model.vae.decoder."),
    ],
)
def test_spoilt_weights_of_the_whole_reference(
    golden: str, kept: set[str], prefix: str, reference: Path, run: Run, tmp_path: Path
) -> None:
    assert undetected(reference, golden, kept, prefix, run, tmp_path) == []


@pytest.fixture
def adapter(reference: Path, tmp_path: Path) -> Path:
    """A reference directory with the goldens of the adapter alone, to be spoilt."""
    folder = tmp_path / "adapted" / "tiny"
    shutil.copytree(reference / "tiny" / "diffusion", folder / "diffusion")
    shutil.copytree(reference / "tiny" / "checkpoint", folder / "checkpoint")
    shutil.copytree(reference / "tiny" / "goldens" / "lora_adapter", folder / "goldens" / "lora_adapter")
    for name in ("lora.json", "lora.safetensors"):
        shutil.copyfile(reference / "tiny" / "goldens" / name, folder / "goldens" / name)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    return folder.parent


def test_an_adapter_of_another_strength(adapter: Path, run: Run) -> None:
    assert run(adapter)[0] == 0
    config = adapter / "tiny" / "goldens" / "lora_adapter" / "adapter_config.json"
    edit_json(config, lambda value: value.update(lora_alpha=32.1))
    status, out = run(adapter)
    assert status == 1
    for name in ("adapter / adapter_logits", "adapter / merged_logits", "merged_weights / model.layers.1"):
        assert f"fail: lora / {name}" in out
    assert "fail: lora / adapter / base" not in out


def test_a_tensor_that_merging_should_leave_alone(adapter: Path, run: Run) -> None:
    index = adapter / "tiny" / "goldens" / "lora.json"
    name = "model.layers.2.self_attn.q_proj.bias"
    edit_json(index, lambda value: value["merged_weight_sha256_16"].update({name: "0" * 16}))
    status, out = run(adapter)
    assert status == 1
    assert f"fail: lora / merged_weights / {name} sha256" in out


def test_no_adapter_beside_its_goldens(adapter: Path, run: Run) -> None:
    shutil.rmtree(adapter / "tiny" / "goldens" / "lora_adapter")
    status, out = run(adapter)
    assert status == 2
    assert "lora_adapter' holds no adapter" in out


def test_weights_that_are_not_numbers(small: Path, run: Run) -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights["model.diffusion_connector.fusion.output_proj.1.bias"][3] = np.nan

    edit_tensors(small / WEIGHTS, spoil)
    status, out = run(small, "--component", "mcp")
    assert status == 1
    assert re.search(r"^\| mcp +\| len9_t2 +\| output .* inf \|.* fail \|$", out, re.MULTILINE)


def test_the_epsilon_of_the_connectors_norms(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change is below 1e-4, the tolerance of other networks."""
    monkeypatch.setattr(mcp, "LAYER_NORM_EPS", 1e-6)
    status, out = run(DATA, "--component", "mcp")
    assert status == 1
    assert "fail: mcp / len1_t2 / output: the error is" in out


# It fails: goldens


@pytest.mark.parametrize(("relative", "expected"), [(3e-6, 0), (3e-5, 1)])
def test_the_tolerance(small: Path, run: Run, relative: float, expected: int) -> None:
    def shift(tensors: dict[str, np.ndarray]) -> None:
        output = tensors["len9_t2/output"]
        output.flat[5] += relative * np.abs(output).max()

    edit_tensors(small / "tiny/goldens/mcp.safetensors", shift)
    assert run(small, "--component", "mcp")[0] == expected


def test_a_shape_that_differs(small: Path, run: Run) -> None:
    path = small / "tiny/goldens/mcp.safetensors"
    edit_tensors(path, lambda tensors: tensors.update({"len9_t2/output": tensors["len9_t2/output"][:, 1:].copy()}))
    status, out = run(small, "--component", "mcp")
    assert status == 1
    assert "len9_t2 / output: has the shape (1, 9, 56) instead of (1, 8, 56)" in out


def add_case(index: dict[str, Any]) -> None:
    index["cases"]["novel"] = {"params": {}, "tensors": {"output": {"key": "len9_t2/output", "role": "output"}}}


def add_tensor(index: dict[str, Any]) -> None:
    tensors = index["cases"]["len9_t2"]["tensors"]
    tensors["refiner9"] = tensors["refiner1"] | {"key": "len9_t2/refiner1"}


def add_table(index: dict[str, Any]) -> None:
    index["anneal_temperature"]["linear"] = [2.0, 0.5]


def forget_tensor(index: dict[str, Any]) -> None:
    del index["cases"]["len9_t2"]["tensors"]["refiner1"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (add_case, "mcp / novel / output"),
        (add_tensor, "mcp / len9_t2 / refiner9"),
        (add_table, "mcp / anneal_temperature / linear"),
        (forget_tensor, "mcp / len9_t2/refiner1 / *: the index does not list this tensor"),
    ],
)
def test_what_is_not_exercised(small: Path, run: Run, change: Callable[[dict[str, Any]], None], expected: str) -> None:
    edit_json(small / "tiny/goldens/mcp.json", change)
    status, out = run(small, "--component", "mcp")
    assert status == 1
    assert f"not exercised: {expected}" in out
    assert "1 were not exercised" in out


def test_an_unknown_component(small: Path, run: Run) -> None:
    shutil.copy(small / "tiny/goldens/mcp.json", small / "tiny/goldens/audio.json")
    status, out = run(small)
    assert status == 1
    assert "not exercised: audio / *" in out


@pytest.mark.parametrize("name", ["tiny/goldens/stray.safetensors", "prompts/more.json"])
def test_an_unknown_file(small: Path, run: Run, name: str) -> None:
    (small / name).parent.mkdir(exist_ok=True)
    (small / name).write_bytes(b"{}")
    status, out = run(small)
    assert status == 1
    assert f"not exercised: {name}" in out


def test_unknown_prompts(reference: Path, small: Path, run: Run) -> None:
    shutil.copytree(reference / "prompts", small / "prompts", copy_function=shutil.copyfile)
    (small / "qwen2-tokenizer").symlink_to(reference / "qwen2-tokenizer")

    def add(index: dict[str, Any]) -> None:
        index["items"][0]["prompts"]["translate"] = {"prompt": "", "ids": []}
        index["items"][1]["prompts"]["ask"]["ids"][3] += 1
        index["items"][2]["length"] = 4
        index["decode"][0]["decoded"] += "."
        index["tables"] = []

    edit_json(small / "prompts/prompts.json", add)
    status, out = run(small, "--component", "prompts")
    assert status == 1
    for line in (
        "not exercised: prompts / item 0 / translate",
        "not exercised: prompts / item 2 / length",
        "not exercised: prompts / vocabulary / tables",
        "fail: prompts / item 1 / ask.ids",
        "fail: prompts / decode 0 / decoded",
    ):
        assert line in out
    assert "2 do not, 3 were not exercised" in out


# It tells errors from rounding


@pytest.mark.parametrize(
    ("error", "rounding", "expected"),
    [
        (3e-7, 1e-7, ""),
        (3e-7, 1e-9, "the original happens to round well: ours is 5 half units"),
        (8e-6, 1e-7, "the ratio 80.0 is not explained"),
        (3e-7, 0.0, "the original happens to round well"),
        (0.0, 0.0, ""),
        (1e-3, 1e-7, "the error is 1.0e-03, and 1e-05 is allowed"),
    ],
)
def test_the_ratio_to_the_originals_own_rounding(error: float, rounding: float, expected: str) -> None:
    reference = np.linspace(1.0, 0.5, 32)
    ours = reference.copy()
    ours[-1] += error
    check = compare("mcp", "case", "output", ours, reference, Tolerance("relative", 1e-5), rounding)
    assert check.note.startswith(expected)
    assert bool(check.note) == bool(expected)
    assert check.large_ratio == bool(expected)
    assert check.verdict == ("pass" if not expected or "happens to round well" in expected else "fail")
    if rounding:
        assert check.ratio == pytest.approx(error / rounding)


def test_the_rounding_of_a_single_number_says_little() -> None:
    one, many = (
        compare("training", "case", "loss", x + 8e-6, x, Tolerance("relative", 1e-4), 1e-8)
        for x in (np.ones(1), np.ones(32))
    )
    assert one.large_ratio
    assert one.verdict == "pass"
    assert one.note.startswith("the rounding of 1 value ")
    assert many.verdict == "fail"


def test_a_large_ratio_without_an_explanation_fails_the_run(
    small: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = mcp.MobileConditioningProjector.__call__

    def inexact(self: mcp.MobileConditioningProjector, *arguments: Any) -> mx.array:
        return norm(self, *arguments) * (1 + 5e-6)

    monkeypatch.setattr(mcp.MobileConditioningProjector, "__call__", inexact)

    def shrink(index: dict[str, Any]) -> None:
        index["cases"]["len9_t2"]["tensors"]["output"]["f32_vs_f64_max_abs"] = 1e-9

    edit_json(small / "tiny/goldens/mcp.json", shrink)
    status, out = run(small, "--component", "mcp")
    assert status == 1
    assert re.search(r"^fail: mcp / len9_t2 / output: the ratio \d+\.\d is not explained", out, re.MULTILINE)


def test_a_large_ratio_is_flagged(small: Path, run: Run) -> None:
    def shrink(index: dict[str, Any]) -> None:
        index["cases"]["len9_t2"]["tensors"]["output"]["f32_vs_f64_max_abs"] = 1e-9

    edit_json(small / "tiny/goldens/mcp.json", shrink)
    status, out = run(small, "--component", "mcp")
    assert status == 0
    assert re.search(r"^\| mcp +\| len9_t2 .* ! \| +pass \|$", out, re.MULTILINE)
    assert re.search(r"^ratio \d+\.\d above 20: mcp / len9_t2 / output: the original happens", out, re.MULTILINE)


# It says what is missing


def test_a_part_that_was_taken_away_is_absent(small: Path, run: Run) -> None:
    for path in (small / "tiny/goldens").glob("mcp.*"):
        path.unlink()
    status, out = run(small)
    assert status == 0
    assert re.search(r"^absent from the directory: .*\bmcp\b", out, re.MULTILINE)
    assert not re.search(r"^\| mcp ", out, re.MULTILINE)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def drop_golden(folder: Path) -> None:
    edit_tensors(folder / "tiny/goldens/mcp.safetensors", lambda tensors: tensors.pop("len9_t2/output"))


def drop_weight(folder: Path) -> None:
    name = "model.diffusion_connector.fusion.output_proj.0.bias"
    edit_tensors(folder / WEIGHTS, lambda weights: weights.pop(name))


def refer_to_nothing(folder: Path) -> None:
    def change(index: dict[str, Any]) -> None:
        index["cases"]["len9_t2"]["params"]["inputs"] = "nowhere"

    edit_json(folder / "tiny/goldens/mcp.json", change)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (remove("tiny/goldens/mcp.safetensors"), "mcp.safetensors"),
        (remove(WEIGHTS), "tiny/checkpoint"),
        (remove("tiny/checkpoint/config.json"), "tiny/checkpoint"),
        (drop_golden, "len9_t2/output"),
        (drop_weight, "diffusion_connector.output_proj.0.bias"),
        (refer_to_nothing, "nowhere"),
        (lambda folder: (folder / "tiny/goldens/mcp.json").write_text("[]"), "mcp.json"),
        (lambda folder: (folder / "tiny/goldens/mcp.json").write_text("{"), "mcp.json"),
        (lambda folder: shutil.rmtree(folder), "holds no goldens"),
    ],
)
def test_one_sentence_where_nothing_can_be_compared(
    small: Path, run: Run, spoil: Callable[[Path], object], expected: str
) -> None:
    spoil(small)
    status, out = run(small)
    assert status == 2
    (line,) = out.splitlines()
    assert line.startswith("parity: error: ")
    assert expected in line


def test_a_component_that_is_not_there(run: Run) -> None:
    status, out = run(DATA, "--component", "llm")
    assert status == 2
    assert "no goldens of llm" in out


def test_a_file_that_can_not_be_written(run: Run, tmp_path: Path) -> None:
    status, out = run(DATA, "--component", "mcp", "--json", tmp_path / "nowhere" / "numbers.json")
    assert status == 2
    assert "nowhere" in out


# Full-size goldens, with a tiny model in place of the large one

INPUTS = """
import numpy as np

def inputs():
    r = np.random.default_rng(0)
    n = lambda *shape: r.standard_normal(shape, dtype=np.float32)
    return {"pixel_values": abs(n(1, 3, 128, 128)) % 1, "input_ids": r.integers(0, 256, (1, 12)),
            "noise": n(1, 8, 2, 2), "latent": n(1, 8, 2, 2), "image": n(1, 3, 64, 64)}
"""


@pytest.fixture
def fullsize(tiny_model: Path, tmp_path: Path) -> Path:
    """A reference directory whose full-size goldens are the tiny model's, computed by other calls than the tool's."""
    folder = tmp_path / "fullsize"
    folder.mkdir()
    (folder / "fullsize_inputs.py").write_text(INPUTS)
    scope: dict[str, Any] = {}
    exec(INPUTS, scope)
    given = {name: mx.array(x) for name, x in scope["inputs"]().items()}

    def channels_last(name: str) -> mx.array:
        return given[name].transpose(0, 2, 3, 1)

    model = MobileO.load(tiny_model, dtype="float32")
    llm, dit = model.parts.llm, model.parts.dit
    tokens = model.parts.vision_tower(channels_last("pixel_values"))
    states = llm.hidden_states(llm.embed_tokens(given["input_ids"]), len(llm.layers) + 1)
    mixed = states[-model.config.diffusion_connector.num_layers :]
    conditioning = model.parts.diffusion_connector([mx.concatenate([mx.zeros_like(x), x]) for x in mixed])
    noise = mx.concatenate([channels_last("noise")] * 2)
    velocity = dit(noise, mx.array([749.0, 749.0]), dit.encode_text(conditioning))
    decoded = model.parts.vae_decoder(channels_last("latent"))
    goldens = {
        "vision_tokens_s": (tokens[:, ::2, ::3], "tokens[:, ::2, ::3]"),
        "last_logits": (model.parts.lm_head(states[-1])[:, -1], "logits[:, -1]"),
        "dit_t749": (velocity.transpose(0, 3, 1, 2), "DiT([noise]*2, conditioning, t=749), no mask"),
        "decoded_s": (decoded.transpose(0, 3, 1, 2)[:, :, 3::8, 3::8], "vae.decode(latent)[:, :, 3::8, 3::8]"),
    }
    save_file({f"run/{n}": np.ascontiguousarray(x) for n, (x, _) in goldens.items()}, folder / "fullsize-x.safetensors")
    tensors = {n: {"key": f"run/{n}", "role": "output", "description": words} for n, (_, words) in goldens.items()}
    first = llm.embed_tokens.weight[0, :4].tolist()
    index = {
        "file": "fullsize-x.safetensors",
        "cases": {"run": {"params": {}, "tensors": tensors}},
        "first_weights": {"model.embed_tokens.weight[0].flatten()[:4]": first},
    }
    (folder / "fullsize-x.json").write_text(json.dumps(index))
    return tmp_path


def test_fullsize(fullsize: Path, tiny_model: Path, run: Run) -> None:
    status, out = run(fullsize, "--fullsize", tiny_model)
    assert status == 0, out
    assert "PASS: 4 values agree" in out


def test_fullsize_goldens_that_differ(fullsize: Path, tiny_model: Path, run: Run) -> None:
    def shift(tensors: dict[str, np.ndarray]) -> None:
        tensors["run/decoded_s"] *= 1.01

    edit_tensors(fullsize / "fullsize/fullsize-x.safetensors", shift)
    status, out = run(fullsize, "--fullsize", tiny_model)
    assert status == 1
    assert "fail: fullsize-x / run / decoded_s" in out


def test_fullsize_goldens_of_another_kind(fullsize: Path, tiny_model: Path, run: Run) -> None:
    def change(index: dict[str, Any]) -> None:
        index["cases"]["run"]["tensors"]["spectrum"] = {"key": "run/last_logits", "role": "output"}

    edit_json(fullsize / "fullsize/fullsize-x.json", change)
    status, out = run(fullsize, "--fullsize", tiny_model)
    assert status == 1
    assert "not exercised: fullsize-x / run / spectrum" in out


def test_other_weights_than_the_fullsize_goldens(fullsize: Path, tiny_model: Path, run: Run) -> None:
    def change(index: dict[str, Any]) -> None:
        index["first_weights"]["model.embed_tokens.weight[0].flatten()[:4]"][2] += 0.5

    edit_json(fullsize / "fullsize/fullsize-x.json", change)
    status, out = run(fullsize, "--fullsize", tiny_model)
    assert status == 2
    assert "model.embed_tokens.weight is not that of fullsize-x.json" in out


def test_fullsize_goldens_that_are_not_there(tiny_model: Path, run: Run) -> None:
    status, out = run(DATA, "--fullsize", tiny_model)
    assert status == 2
    assert "fullsize" in out
