"""Inputs that once ended in a traceback, a hang or without memory, one of each kind, without hypothesis."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .entries import ENTRIES, QUADRUPLET, Testbed, shard_members, use
from .limits import limited
from .outcome import fault

PATIENCE = 60  # seconds: a hang is stopped, and nothing else
ESCAPE = "\x1b]52;c;QQ==\x07"

Build = Callable[[Testbed], Any]
FOUND: dict[str, tuple[str, Build]] = {}


def changed(file: Path, key: str, value: Any) -> bytes:
    """A JSON file with one value replaced; the key's parts are joined by dots."""
    content = json.loads(file.read_text())
    *parents, last = key.split(".")
    inside = content
    for name in parents:
        inside = inside[name]
    inside[last] = value
    return json.dumps(content).encode()


def _config(key: str, value: Any) -> None:
    FOUND[f"config {key} {json.dumps(value)[:20]}"] = (
        "config",
        lambda bed: changed(bed.model / "config.json", key, value),
    )


def _adapter(key: str, value: Any) -> None:
    name = "adapter_config.json"
    FOUND[f"adapter {key} {json.dumps(value)[:20]}"] = (
        "adapter",
        lambda bed: (name, changed(bed.adapter / name, key, value)),
    )


def _file(label: str, entry: str, data: bytes) -> None:
    FOUND[f"{entry} {label}"] = (entry, lambda bed: data)


for key, value in (
    ("quantization", [1]),
    ("quantization", {"llm": [4]}),
    ("quantization", {"llm": {"bits": 10**30, "group_size": 64}}),
    ("llm", None),
    ("dit", "x"),
    ("vae", []),
    ("components", 7),
    ("format_version", []),
    ("eos_token_ids", None),
    ("eos_token_ids", ["a"]),
    ("eos_token_ids", 5),
    ("image_size", "128"),
    ("image_size", 10**9),
    ("image_size", 0),
    ("flow_shift", 1e300),
    ("flow_shift", 0),
    ("num_train_timesteps", 10**9),
    ("num_train_timesteps", -1),
    ("dit.num_layers", "6"),
    ("dit.num_layers", 10**9),
    ("dit.sample_size", 0),
    ("dit.sample_size", True),
    ("dit.patch_size", 0),
    ("dit.norm_eps", "nan"),
    ("dit.num_attention_heads", 2**63),
    ("llm.num_hidden_layers", 10**9),
    ("llm.num_attention_heads", 0),
    ("llm.num_key_value_heads", 3),
    ("llm.hidden_size", -64),
    ("llm.vocab_size", 10**12),
    ("llm.rms_norm_eps", None),
    ("llm.max_position_embeddings", 0),
    ("vae.encoder_layers_per_block", [10**8] * 6),
    ("vae.decoder_layers_per_block", [1]),
    ("vae.encoder_block_out_channels", []),
    ("vae.attention_head_dim", 0),
    ("vae.encoder_block_types", ["ResBlock", 3]),
    ("vision_tower.layers", "6"),
    ("vision_tower.layers", [1, 1, 1, 1]),
    ("vision_tower.token_mixers", [ESCAPE] * 5),
    ("vision_tower.attention_head_dim", 0),
    ("vision_tower.mlp_ratios", [1e300] * 5),
    ("diffusion_connector.num_refinement_blocks", 10**8),
    ("diffusion_connector.kernel_size", 2),
    ("diffusion_connector.num_layers", 10**6),
    ("mm_projector.input_dim", 2**62),
):
    _config(key, value)

for key, value in (
    ("rank_pattern", {"(.+)+@": 4}),
    ("rank_pattern", {"(a|a)*b": 4, "(" * 500: 2, "[": 1}),
    ("rank_pattern", [1]),
    ("alpha_pattern", {"q_proj": 10**400}),
    ("r", 10**400),
    ("r", 0),
    ("r", True),
    ("r", "2"),
    ("lora_alpha", 10**400),
    ("lora_alpha", 1e300),
    ("lora_alpha", -1e30),
    ("peft_type", ["LORA"]),
    ("peft_type", ESCAPE),
    ("target_modules", {"a": 1}),
    ("target_modules", [[]]),
    ("target_modules", "(.+)+@"),
    ("init_lora_weights", []),
    ("base_model_name_or_path", ESCAPE),
    ("modules_to_save", 3),
    ("use_dora", "yes"),
    ("layer_replication", [[0, 10**9]]),
):
    _adapter(key, value)

DEEP = b"[" * 200_000
DIGITS = b'{"a": ' + b"7" * 5000 + b"}"
for label, data in {"deep": DEEP, "digits": DIGITS, "nan": b'{"a": NaN}', "surrogate": rb'{"\ud800": 1}'}.items():
    for entry in ("json", "config", "config-quantized", "index", "tokenizer", "lines", "device-settings"):
        _file(label, entry, data)
    for entry, name in (
        ("adapter", "adapter_config.json"),
        ("config-upstream", "generation_config.json"),
        ("config-upstream", "diffusion/vae/config.json"),
        ("tokenizer-files", "vocab.json"),
        ("tokenizer-files", "tokenizer_config.json"),
    ):
        FOUND[f"{entry} {name} {label}"] = (entry, lambda bed, name=name, data=data: (name, data))
    FOUND[f"run-state state {label}"] = ("run-state", lambda bed, data=data: (_state(bed), data))
    FOUND[f"run-state metrics {label}"] = ("run-state", lambda bed, data=data: ("metrics.jsonl", data + b"\n"))
    FOUND[f"replay {label}"] = ("replay", lambda bed, data=data: ("old.png", with_metadata(bed, data)))


def _state(bed: Testbed) -> str:
    return str(next(bed.run.glob("step-*/state.json")).relative_to(bed.run))


def with_metadata(bed: Testbed, text: bytes) -> bytes:
    """A photo with this text in the place of our metadata."""
    chunk = b"iTXt" + b"mobileo-mlx\0\0\0\0\0" + text
    place = 8 + 25  # behind the header
    added = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return bed.photo[:place] + added + bed.photo[place:]


def _settings(**values: Any) -> Build:
    text = json.dumps({"prompt": "a cat", "seed": 1, "task": "generate", **values}).encode()
    return lambda bed: ("old.png", with_metadata(bed, text))


for label, values in {
    "task": {"task": ESCAPE},
    "steps": {"steps": 10**300},
    "list": {"guidance_interval": [10**300, "a"]},
    "nested": {"guidance_interval": [[0], [1]]},
    "shift": {"flow_shift": 1e39},
    "size": {"width": 2**63, "height": -1},
    "model": {"model": "../../etc", "adapter": "/proc/self/mem"},
    "quantize": {"quantize": {"llm": 10**300, "x": []}},
    "dtype": {"dtype": "float16,," * 9},
    "seed": {"seed": 10**300},
    "true": {"seed": True, "steps": True},
    "scale": {"adapter": "x", "adapter_scale": 1e300},
    "empty": {"prompt": ""},
}.items():
    FOUND[f"replay {label}"] = ("replay", _settings(**values))


def header(text: str | bytes, body: bytes = b"", declared: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if declared is None else declared) + data + body


for label, data in {
    "shape of infinity": header('{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', b"\0" * 4),
    "shape of text": header('{"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}}', b"\0" * 4),
    "metadata of numbers": header(
        '{"__metadata__":{"a":1},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "name of half a pair": header('{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "name of an escape": header(
        '{"\\u001b]52;c;QQ==\\u0007":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "many brackets": header(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"),
    "a long header": header("{}", declared=2**62),
    "no header": header("{}", declared=2**63),
    "nothing": b"",
    "a page": b"<!DOCTYPE html><html></html>",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "an unknown type": header('{"a":{"dtype":"F128","shape":[1],"data_offsets":[0,16]}}', b"\0" * 16),
    "twenty dimensions": header(
        json.dumps({"a": {"dtype": "F32", "shape": [1] * 20, "data_offsets": [0, 4]}}), b"\0" * 4
    ),
}.items():
    _file(label, "weights", data)
    _file(label, "weights-upstream", data)
    for name in ("adapter_model.safetensors", "trained.safetensors"):
        FOUND[f"adapter {name} {label}"] = ("adapter", lambda bed, name=name, data=data: (name, data))
    FOUND[f"run-state tensors {label}"] = ("run-state", lambda bed, data=data: (_tensors(bed, "model"), data))


def _tensors(bed: Testbed, word: str) -> str:
    names = sorted(str(path.relative_to(bed.run)) for path in bed.run.glob("step-*/*.safetensors"))
    return next((name for name in names if word in name), names[0])


for word in ("model", "optimizer"):
    FOUND[f"run-state without {word}"] = ("run-state", lambda bed, word=word: (_tensors(bed, word), None))
for label, line in {
    "bytes": b"\xff\n",
    "step of text": b'{"step": "1", "loss": 1.0}\n',
    "loss of text": b'{"step": 1, "loss": "x"}\n',
    "a list": b"[]\n",
    "nothing": b"{}\n\n\0\n",
}.items():
    FOUND[f"run-state metrics {label}"] = ("run-state", lambda bed, line=line: ("metrics.jsonl", line))
for label, state in {"a list": b"[]", "a number": b"1", "step": b'{"step": "x"}', "null": b"null"}.items():
    FOUND[f"run-state state {label}"] = ("run-state", lambda bed, state=state: (_state(bed), state))

for label, text in {
    "blanks": "Q: what?" + " " * 300_000,
    "lines": "\n" * 300_000,
    "questions": "Q: " * 100_000,
    "answers": "Q: a" + " A:" * 100_000,
    "separators": "Q: a\u2028A: b\x1c A: c",
}.items():
    FOUND[f"qna {label}"] = ("qna", lambda bed, text=text: text)


def tar(bed: Testbed, change: Callable[[tarfile.TarInfo], object], name: str = "gen_prompt.txt") -> bytes:
    """The usual shard, with one member's header changed."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, data in shard_members(bed.photo).items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            if member.endswith(f"1.{name}"):
                change(info)
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return stream.getvalue()


def _pax(**headers: str) -> Callable[[tarfile.TarInfo], object]:
    return lambda info: info.pax_headers.update({key.replace("_", "."): value for key, value in headers.items()})


for label, change in {
    "a sparse terabyte": _pax(GNU_sparse_size=str(2**40), GNU_sparse_map="0,1", GNU_sparse_numblocks="1"),
    "a size of text": _pax(size="x"),
    "a size of many digits": _pax(size="9" * 30),
    "a time of many digits": _pax(mtime="9" * 30),
    "a device": lambda info: setattr(info, "type", tarfile.CHRTYPE),
    "a pipe": lambda info: setattr(info, "type", tarfile.FIFOTYPE),
    "a link": lambda info: (setattr(info, "type", tarfile.SYMTYPE), setattr(info, "linkname", "/etc/passwd")),
    "an escape": lambda info: setattr(info, "name", f"000/1{ESCAPE}.gen_prompt.txt"),
    "a way out": lambda info: setattr(info, "name", "../../1.gen_prompt.txt"),
}.items():
    FOUND[f"shard {label}"] = ("shard", lambda bed, change=change: tar(bed, change))
_file("nothing", "shard", b"")
_file("no tar", "shard", b"x" * 2000)


def lines(**values: Any) -> bytes:
    return json.dumps({**QUADRUPLET, **values}).encode()


for label, values in {
    "an escape": {"image": f"{ESCAPE}.png"},
    "a device": {"image": "/dev/zero"},
    "a folder": {"image": "."},
    "a NUL": {"image": "a\0b"},
    "a long name": {"image": "a" * 300},
    "no text": {"prompt": []},
    "a long prompt": {"prompt": "a" * 3_000_000},
    "a long answer": {"answer": "word " * 100_000},
    "pairs of nothing": {"qa": [None]},
}.items():
    _file(label, "lines", lines(**values))

for label, options in {
    "digits": ["--seed", "9" * 400],
    "infinity": ["--guidance-scale", "1e999"],
    "a shift": ["--flow-shift", "1e39"],
    "steps": ["--steps", "9" * 5000],
    "a width": ["-o", "{seed:999999999}"],
    "a class": ["-o", "{seed.__class__}"],
    "a NUL": ["-o", "a\0b.png"],
    "half a pair": ["-o", "\udc80.png"],
    "a long name": ["-o", "a" * 300 + ".png"],
    "previews": ["--previews", "/proc/x"],
    "a long model": ["-m", "a" * 300],
    "an unknown user": ["--adapter", "~nobody-of-this-name/x"],
    "a device": ["--prompt-file", "/dev/zero"],
    "a FIFO": ["--from-image", "/dev/zero"],
}.items():
    FOUND[f"options {label}"] = (
        "options",
        lambda bed, options=options: ["generate", "a cat", "-m", "no-such-model", *options],
    )

for label, typed in {
    "names": ["/image " + "a" * 300, "/image a\0b", "/image ~nobody-of-this-name/x.png", "/image /proc/1/fd/x"],
    "saves": ["/save a\0b.json", "/save " + "a" * 300 + ".json", "/save /proc/x.json", "/save no/such/folder/a.md"],
    "quotes": ["/image 'photo.png", '/image "', "/image \\", "/image pho\\to.png"],
    "escapes": ["/\x1b[2J", "\x1b]52;c;QQ==\x07", "/image \x1b[2J.png"],
    "devices": ["/image /dev/zero", "/image .", "/edit x"],
}.items():
    FOUND[f"chat {label}"] = ("chat", lambda bed, typed=typed: typed)

for label, data in {
    "letters": b"a" * 3_000_000,
    "blanks": b" " * 3_000_000,
    "bytes": b"\xff\xfe",
    "nothing": b"",
}.items():
    _file(label, "prompt", data)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Testbed:
    bed = Testbed(tmp_path_factory.mktemp("found"))
    with bed.cleared():
        use(bed.model)  # imports and builds what the first use builds, before memory is limited
    return bed


@pytest.mark.parametrize("name", FOUND)
def test_found(bed: Testbed, name: str) -> None:
    entry, build = FOUND[name]
    value = build(bed)
    with bed.cleared(), limited(PATIENCE):
        assert not (problem := fault(lambda: ENTRIES[entry](bed, value))), problem
