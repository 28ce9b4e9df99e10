"""Inputs for each entry: strategies that begin with what is right, and change it."""

from __future__ import annotations

import gzip
import html
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from .entries import KINDS, QUADRUPLET, Testbed, shard_members
from .mutations import ESCAPE, TEXTS, Pairs, damaged, dump, hostile, json_bytes, parse
from .pictures import (
    jpeg_bytes,
    jpeg_parts,
    png_bytes,
    png_chunks,
    riff_bytes,
    riff_chunks,
    write_jpeg,
    write_png,
    write_riff,
)
from .tars import tar_bytes
from .tensors import safetensors_bytes

Strategy = st.SearchStrategy[Any]
INPUTS: dict[str, Callable[[Testbed], Strategy]] = {}


def inputs(name: str) -> Callable[[Callable[[Testbed], Strategy]], Callable[[Testbed], Strategy]]:
    def register(function: Callable[[Testbed], Strategy]) -> Callable[[Testbed], Strategy]:
        INPUTS[name] = function
        return function

    return register


def _changed_json(folder: Path, *names: str) -> Strategy:
    """One of the files of a folder, changed: its name and its bytes."""
    return st.one_of(*(st.tuples(st.just(name), json_bytes((folder / name).read_bytes())) for name in names))


@inputs("json")
def _json(bed: Testbed) -> Strategy:
    return json_bytes({"a": [1, 2.5, "x", None, {"b": {}}], "c": -1e-5, "d": "\u00e9\U0001f600"})


@inputs("config")
def _config(bed: Testbed) -> Strategy:
    return json_bytes((bed.model / "config.json").read_bytes())


@inputs("config-quantized")
def _config_quantized(bed: Testbed) -> Strategy:
    whole = parse((bed.quantized / "config.json").read_bytes())
    keys = [key for key, _ in whole]
    place = keys.index("quantization")
    block = json_bytes(dump(whole[place][1]))

    def around(data: bytes) -> bytes:
        rest = b",".join(
            dump(key).encode() + b":" + dump(value).encode() for key, value in whole if key != "quantization"
        )
        return b'{"quantization":' + data + b"," + rest + b"}"

    return block.map(around)


@inputs("config-upstream")
def _config_upstream(bed: Testbed) -> Strategy:
    parts = ("transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    names = ("config.json", "generation_config.json", *(f"diffusion/{part}" for part in parts))
    return _changed_json(bed.upstream, *names)


@inputs("index")
def _index(bed: Testbed) -> Strategy:
    return json_bytes((bed.upstream / "model.safetensors.index.json").read_bytes())


@inputs("weights")
def _weights(bed: Testbed) -> Strategy:
    return safetensors_bytes((bed.model / "mm_projector.safetensors").read_bytes())


@inputs("weights-upstream")
def _weights_upstream(bed: Testbed) -> Strategy:
    data = (bed.upstream / "model-00002-of-00002.safetensors").read_bytes()
    names = ("model.mm_projector.0.weight", "model.norm.weight", "lm_head.weight", "model.mm_projector.0.lora_A.weight")
    return safetensors_bytes(data, names=names)


@inputs("adapter")
def _adapter(bed: Testbed) -> Strategy:
    tensors = [
        st.tuples(st.just(name), safetensors_bytes((bed.adapter / name).read_bytes()))
        for name in ("adapter_model.safetensors", "trained.safetensors")
    ]
    config = (bed.adapter / "adapter_config.json").read_bytes()
    patterns = st.dictionaries(
        st.one_of(st.sampled_from(TEXTS), st.text("abq_proj.*+()|^$\\d[]{}1,", max_size=20)), hostile, max_size=3
    )
    more = st.fixed_dictionaries(
        {},
        optional={
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            "r": hostile,
            "lora_alpha": hostile,
            "target_modules": st.one_of(hostile, st.lists(hostile, max_size=3)),
            "use_dora": hostile,
            "use_rslora": hostile,
            "modules_to_save": hostile,
            "layers_to_transform": hostile,
            "bias": hostile,
        },
    )
    known = dict(parse(config))
    changed = more.map(lambda values: _encode(dump(_pairs({**known, **values}))))
    configs = st.one_of(json_bytes(config), changed)
    return st.one_of(*tensors, st.tuples(st.just("adapter_config.json"), configs))


def _pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((key, _pairs(inside)) for key, inside in value.items())
    return value


@inputs("adapter-mlx-lm")
def _adapter_mlx_lm(bed: Testbed) -> Strategy:
    name = "adapters.safetensors"
    tensors = safetensors_bytes((bed.mlx_lm_adapter / name).read_bytes())
    return st.one_of(st.tuples(st.just(name), tensors), _changed_json(bed.mlx_lm_adapter, "adapter_config.json"))


@inputs("tokenizer")
def _tokenizer(bed: Testbed) -> Strategy:
    return json_bytes((bed.model / "tokenizer.json").read_bytes())


@inputs("tokenizer-files")
def _tokenizer_files(bed: Testbed) -> Strategy:
    folder = bed.tokenizer_files
    merges = (folder / "merges.txt").read_bytes()
    lines = st.lists(st.one_of(st.sampled_from(merges.splitlines()), st.sampled_from(TEXTS).map(_encode)), max_size=300)
    return st.one_of(
        _changed_json(folder, "vocab.json", "tokenizer_config.json", "added_tokens.json"),
        st.tuples(st.just("merges.txt"), st.one_of(damaged(merges), lines.map(b"\n".join))),
    )


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@inputs("lines")
def _lines(bed: Testbed) -> Strategy:
    several = {
        "prompt": "x",
        "image": "photo.png",
        "qa": [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}],
    }
    line = st.one_of(
        json_bytes(QUADRUPLET), json_bytes({**QUADRUPLET, "source_image": "photo.png"}), json_bytes(several)
    )
    several_lines = st.lists(line, min_size=1, max_size=4)
    text = several_lines.map(b"\n".join)
    packed = text.map(gzip.compress)
    array = several_lines.map(lambda lines: b"[" + b",".join(lines) + b"]")
    return st.one_of(text, text, array, packed, packed.flatmap(damaged))


@inputs("shard")
def _shard(bed: Testbed) -> Strategy:
    return tar_bytes(list(shard_members(bed.photo).items()))


@inputs("qna")
def _qna(bed: Testbed) -> Strategy:
    piece = st.sampled_from(
        (
            "Q:",
            "A:",
            "Q: what?",
            "A: one",
            " ",
            "\n",
            "\r\n",
            "\t",
            "q:",
            "Q",
            ":",
            "x",
            ESCAPE,
            "\u2028",
            "\xa0",
            "\ufeff",
        )
    )
    text = st.lists(st.one_of(piece, st.text(max_size=5)), max_size=30).map("".join)
    long = st.tuples(piece, piece, st.sampled_from((1, 100, 200_000))).map(lambda parts: parts[0] + parts[1] * parts[2])
    return st.one_of(text, st.tuples(text, long, text).map("".join))


def _encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.radial_gradient("L").resize((40, 24)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@inputs("image")
def _image(bed: Testbed) -> Strategy:
    pngs = [_encoded("PNG", mode) for mode in ("RGB", "RGBA", "L", "P", "1", "LA")]
    others = [
        _encoded("GIF"),
        _encoded("TIFF"),
        _encoded("BMP"),
        _encoded("PPM"),
        _encoded("TIFF", compression="tiff_lzw"),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    return st.one_of(
        *map(png_bytes, pngs),
        jpeg_bytes(_encoded("JPEG", exif=exif)),
        jpeg_bytes(_encoded("JPEG", "CMYK")),
        riff_bytes(_encoded("WEBP")),
        riff_bytes(_encoded("WEBP", "RGBA", lossless=True)),
        st.sampled_from(others).flatmap(damaged),
        st.sampled_from(others + pngs).flatmap(lambda data: damaged(data[:64]).map(lambda start: start + data[64:])),
    )


@inputs("special")
def _special(bed: Testbed) -> Strategy:
    own = ("photo.png", "data.jsonl", "shard.tar", "prompt.txt", "cache/device.json")
    places = [("input", name) for name in own]
    for material in ("model", "upstream", "tokenizer_files", "adapter", "mlx_lm_adapter", "run"):
        folder: Path = getattr(bed, material)
        places += [(material, str(path.relative_to(folder))) for path in sorted(folder.rglob("*")) if path.is_file()]
    return st.tuples(st.sampled_from(places), st.sampled_from(KINDS)).map(lambda given: (*given[0], given[1]))


@inputs("picture")
def _picture(bed: Testbed) -> Strategy:
    return st.one_of(png_bytes(bed.photo), damaged(bed.photo), st.binary(max_size=64))


@inputs("replay")
def _replay(bed: Testbed) -> Strategy:
    drawings = bed.drawings
    chunks = png_chunks(drawings["old.png"])
    place = next(i for i, (_, data) in enumerate(chunks) if data.startswith(b"mobileo-mlx\0"))
    kind, chunk = chunks[place]
    text = chunk[chunk.rindex(b"\0") + 1 :]
    segments, tail = jpeg_parts(drawings["old.jpg"])
    parts = riff_chunks(drawings["old.webp"])

    def with_settings(name: str, data: bytes) -> tuple[str, bytes]:
        if name == "old.png":
            return name, write_png([*chunks[:place], (kind, chunk.removesuffix(text) + data), *chunks[place + 1 :]])
        quoted = html.escape(data.decode("utf-8", "replace")).encode()

        def packet(content: bytes) -> bytes:
            return _SETTINGS.sub(lambda match: match[1] + quoted + b'"', content)

        if name == "old.jpg":
            return name, write_jpeg([(marker, packet(content)) for marker, content in segments], tail)
        return name, write_riff([(k, packet(content)) for k, content in parts])

    changed = st.tuples(st.sampled_from(sorted(drawings)), json_bytes(text)).map(lambda given: with_settings(*given))
    damages = {"old.png": png_bytes, "old.jpg": jpeg_bytes, "old.webp": riff_bytes}
    return st.one_of(
        changed,
        changed,
        *(st.tuples(st.just(name), change(drawings[name])) for name, change in damages.items()),
    )


_SETTINGS = re.compile(rb'(mobileo:settings=")[^"]*"')


@inputs("run-state")
def _run_state(bed: Testbed) -> Strategy:
    step = next(bed.run.glob("step-*"))
    files = [path.relative_to(bed.run) for path in step.iterdir()]
    tensors = [str(path) for path in files if path.suffix == ".safetensors"]
    state = str(step.relative_to(bed.run) / "state.json")
    metrics = (bed.run / "metrics.jsonl").read_bytes().splitlines()
    line = json_bytes(metrics[0])
    return st.one_of(
        _changed_json(bed.run, state),
        *(st.tuples(st.just(name), safetensors_bytes((bed.run / name).read_bytes())) for name in tensors),
        st.tuples(st.just("metrics.jsonl"), st.lists(line, max_size=3).map(b"\n".join)),
        st.tuples(st.sampled_from([state, *tensors]), st.none()),
    )


@inputs("device-settings")
def _device_settings(bed: Testbed) -> Strategy:
    from mobileo_mlx.ops import device_settings

    precision = {"dit": "bfloat16", "llm": "float16", "vae_decoder": "float32"}
    entry = {"precision": precision, "forms": {"conv 3x3 float32": "winograd"}}
    return json_bytes({"format": 1, "devices": {device_settings.device_key(): entry}})


def _words(text: str) -> list[str]:
    return text.split()


_SIZES = _words("512x512 64x64 0x0 1e9x1 4096x4096 99999999999x1 x 512 ٥١٢x512 -32x32 512×512")
_INTERVALS = _words("0.3,0.95 0,1 nan,1 inf:inf 1,0 , 0.1,0.2,0.3 1e999,0 -1,2 0x1,1")
_NUMBERS = [
    *_words("0 1 -1 1e999 nan inf -inf 1e400 1_0 0x10 ٣ 2**64 18446744073709551616 1.5 1e-320"),
    "9" * 400,
]
_NAMES = [
    *_words(
        "{seed}.png {prompt} {seed:999999999} {seed:0999}.png {seed!r} {seed.__class__} {0} { }}{{ {} {prompt:.5} "
        "{seed:>^10} {index:b}{model:s} {seed:{index}} no/such/folder/a.png / ~ ~root/ - a.jpg a.JPEG a.webp a.gif "
        ".png .. a.png/ /dev/null /proc/x"
    ),
    "a" * 300,
    "a\0b.png",
    "\ud800.png",
]
_DRAWING = _words(
    "--size --seed --steps --guidance-scale --guidance-interval --scheduler --flow-shift -n -o --negative-prompt "
    "--speed --dtype --quantize --precision --adapter --adapter-scale --previews --prompt-file --from-image -m "
    "--preset"
)
_ANSWERING = _words("--max-tokens --temperature --top-p --repetition-penalty --seed --dtype --quantize --adapter")
_TRAINING = _words(
    "--steps --epochs --batch-size --accumulate --learning-rate --warmup --rank --alpha --dropout --cond-dropout "
    "--seed --flow-shift --held-out --sample-every --save-every --dtype --train --layout --llm --dit --vision "
    "--out"
)


@inputs("options")
def _options(bed: Testbed) -> Strategy:
    texts = st.one_of(*map(st.sampled_from, (_SIZES, _INTERVALS, _NAMES, _NUMBERS, TEXTS)), st.text(max_size=10))
    value = texts.map(lambda text: _encode(text).decode("utf-8", "surrogateescape"))  # as Python reads a command line

    def options(names: list[str]) -> Strategy:
        pairs = st.lists(st.tuples(st.sampled_from(names), value), min_size=1, max_size=2)
        return pairs.map(lambda chosen: [word for pair in chosen for word in pair])

    missing = ["-m", "no-such-model"]
    images = st.sampled_from((["photo.png"], [], ["-"], ["photo.png"] * 3))
    commands = st.sampled_from((["info"], ["convert"], ["fuse"], ["edit", *missing], ["ask", *missing]))
    return st.one_of(
        options(_DRAWING).map(lambda chosen: ["generate", "a cat", *missing, *chosen]),
        st.tuples(images, options(_ANSWERING)).map(lambda given: ["ask", *given[0], "What?", *missing, *given[1]]),
        options(_TRAINING).map(
            lambda chosen: ["finetune", "--quadruplets", "none.jsonl", *missing, "--out", "new", *chosen]
        ),
        st.tuples(commands, st.lists(value, max_size=3)).map(lambda given: [*given[0], *given[1]]),
    )


@inputs("precisions")
def _precisions(bed: Testbed) -> Strategy:
    words = (
        "llm dit vae all lm_head vae_decoder 4 8 3 16 float16 bfloat16 float32 = , : small full balanced none -1 ٤ 4.0"
    )
    word = st.sampled_from([*words.split(), " ", "9" * 30])
    return st.one_of(
        st.lists(word, max_size=6).map("".join),
        st.tuples(word, st.just("="), word).map("".join),
        st.sampled_from([text for text in TEXTS if text.isprintable()]),
    )


@inputs("chat")
def _chat(bed: Testbed) -> Strategy:
    odd = "'photo.png' pho\\to.png \" ' \\ . ~ ~nobody/x end.json a.md $HOME/a.json /dev/stdin /dev/fd/0 photo.png"
    path = st.sampled_from((*_NAMES, *TEXTS, *odd.split()))
    word = st.sampled_from(
        [
            *["/image", "/save", "/generate", "/edit", "/clear", "/help", "/quit", "/", "//", "/IMAGE", "hello"],
            "/\x1b",
            "\x1b[2J",
        ]
    )
    line = st.one_of(
        st.tuples(word, path).map(" ".join),
        st.sampled_from(("/image photo.png", "/generate a cat", "/edit it", "what?")),
        path,
        st.text(max_size=20),
    )
    typed = line.map(lambda text: _encode(text).decode("utf-8", "surrogateescape"))
    return st.lists(typed, min_size=1, max_size=5)


@inputs("prompt")
def _prompt(bed: Testbed) -> Strategy:
    tokens = ["<|im_start|>", "<|im_end|>", "<image>", "[IMG]", "<|endoftext|>", "{}", "%s", "\ufeff"]
    piece = st.sampled_from((*TEXTS, *tokens, "e\u0301" * 50, "word " * 300))
    text = st.lists(st.one_of(piece, st.text(max_size=20)), max_size=5).map("".join).map(_encode)
    return st.one_of(text, st.binary(max_size=40), st.just(b"a" * 3_000_000), st.just(b" " * 3_000_000))
