from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobileo_mlx.training import jsonl
from mobileo_mlx.training.data import read_data
from mobileo_mlx.training.quadruplets import QA, DataError, ImageRef

from .conftest import problems, write_lines

GOOD = {"prompt": "a cat", "image": "red.png", "question": "what is it?", "answer": "a cat"}


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key not in keys}


def test_a_file_of_quadruplets(quadruplets: Callable[..., Path]) -> None:
    data = read_data(quadruplets(7))
    assert len(data.samples) == 7
    assert data.edits == 2
    first, edit = data.samples[0], data.samples[2]
    assert (first.name, first.prompt, first.source_image) == ("line 1", "a red picture, number 0", None)
    assert first.qa == (QA("what colour is it?", "red"),)
    assert first.question_image == first.image
    # A question about an edit is about the result.
    assert edit.source_image is not None
    assert edit.question_image == edit.image != edit.source_image
    assert edit.image.open().getpixel((0, 0)) == (40, 60, 200)


def test_several_questions(images: Path) -> None:
    pairs = [{"question": "what?", "answer": "a cat"}, {"question": "where?", "answer": "here"}]
    data = read_data(write_lines(images, [{**without("question", "answer"), "qa": pairs}]))
    assert data.samples[0].qa == (QA("what?", "a cat"), QA("where?", "here"))
    assert data.questions == 2


def test_pairs_need_no_question(images: Path) -> None:
    path = write_lines(images, [without("question", "answer")])
    assert read_data(path, questions=False).samples[0].qa == ()
    assert problems(path) == ["line 1: lacks 'question' and 'answer'"]


BAD: list[tuple[Any, str]] = [
    ('{"prompt": "a cat", ', "is not JSON"),
    ("[1, 2]", "is not a JSON object"),
    (without("prompt"), "lacks 'prompt'"),
    (without("prompt", "image"), "lacks 'prompt' and 'image'"),
    (without("answer"), "lacks 'answer'"),
    ({**GOOD, "answer": " "}, "'answer' is empty"),
    ({**GOOD, "prompt": 3}, "'prompt' is not text"),
    ({**GOOD, "prompt": "an <image>"}, "literal text <image>"),
    ({**GOOD, "image": "missing.png"}, "does not exist"),
    ({**GOOD, "image": "broken.png"}, "is damaged or cut short"),
    ({**GOOD, "source_image": "missing.png"}, "does not exist"),
    ({**GOOD, "qa": [{"question": "what?", "answer": "a cat"}]}, "give one or the other"),
    ({**without("question", "answer"), "qa": []}, "'qa' is not a list of objects"),
    ({**without("question", "answer"), "qa": [{"question": "what?"}]}, "lacks 'answer'"),
]


def test_every_bad_line_is_listed(images: Path) -> None:
    (images / "broken.png").write_bytes((images / "red.png").read_bytes()[:60])
    lines = [GOOD, "", *(line for line, _ in BAD)]
    found = problems(write_lines(images, lines))
    assert len(found) == len(BAD)
    for number, (problem, (_, reason)) in enumerate(zip(found, BAD, strict=True), start=3):
        assert problem.startswith(f"line {number}: ")
        assert reason in problem


def test_no_samples(images: Path) -> None:
    with pytest.raises(DataError, match="holds no samples"):
        read_data(write_lines(images, ["", " "]))


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("missing.jsonl", "missing.tar"):
        with pytest.raises(DataError, match=r"missing.*check"):
            read_data(tmp_path / name)


def test_not_text(images: Path) -> None:
    path = images / "data.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xff"}\n')
    assert problems(path) == ["line 2: is not UTF-8 text"]


def test_the_fingerprint_tells_data_apart(images: Path) -> None:
    first = read_data(write_lines(images, [GOOD])).fingerprint
    assert read_data(write_lines(images, [GOOD])).fingerprint == first
    assert read_data(write_lines(images, [{**GOOD, "answer": "a dog"}])).fingerprint != first
    assert read_data(write_lines(images, [{**GOOD, "image": "blue.png"}])).fingerprint != first


def test_the_fingerprint_follows_the_pixels_and_not_the_names(images: Path) -> None:
    first = read_data(write_lines(images, [GOOD])).fingerprint
    content = (images / "red.png").read_bytes()
    (images / "other.png").write_bytes(content)
    assert read_data(write_lines(images, [{**GOOD, "image": "other.png"}])).fingerprint == first
    edit = read_data(write_lines(images, [{**GOOD, "source_image": "other.png"}])).fingerprint
    # The same name, size and first half, and another picture: its last bytes are behind the pixels.
    (images / "red.png").write_bytes(content + b"0")
    longer = read_data(write_lines(images, [GOOD])).fingerprint
    (images / "red.png").write_bytes(content + b"1")
    assert len({first, edit, longer, read_data(write_lines(images, [GOOD])).fingerprint}) == 4


def test_an_image_is_decoded_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = ImageRef.decode
    monkeypatch.setattr(ImageRef, "decode", lambda self, data: decoded.append(self.path.name) or decode(self, data))
    (images / "broken.png").write_bytes(b"no image")
    broken = {**GOOD, "image": "broken.png"}
    assert len(problems(write_lines(images, [GOOD, broken, GOOD, broken]))) == 2
    assert decoded == ["red.png", "broken.png"]


# Files that others wrote


def write(folder: Path, data: bytes, name: str = "data.jsonl") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


LINE = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[" * 3000, "nests too deeply"),
        (b'{"prompt": 1' + b"0" * 5000 + b"}", "holds a number of 5001 digits"),
        (b'{"prompt": NaN}', "holds NaN"),
        (b'{"prompt": "\\ud800"}', "holds half a surrogate pair"),
        (b'{"prompt": "a\x00cat"}', "is not JSON (Invalid control character at column 14)"),
        (b"\x00" * 100, "is not JSON (Expecting value at column 1)"),
        (b'{"prompt": "\xff"}', "is not UTF-8 text"),
        (b'{"prompt": "' + b"a" * 2**20 + b'"}', "is longer than 1 MB"),
        (LINE.replace(b"red.png", b"a\\u0000b"), "embedded null byte"),
        (LINE.replace(b"red.png", b"a" * 300), "File name too long"),
        (LINE.replace(b"red.png", b"a" * 10_000), "'image' is no path of a file: it has 10000 characters"),
        (LINE.replace(b"red.png", b"~nobody-of-this-name/x.png"), "~nobody-of-this-name/x.png' does not exist"),
        (LINE.replace(b"red.png", b"."), "is a folder; name an image in it"),
        (LINE.replace(b"red.png", b"/dev/zero"), "'/dev/zero' is not a regular file"),
        (LINE.replace(b"red.png", b"https://a.b/c.png"), "'image' is a URL (https://a.b/c.png); download it"),
        (LINE.replace(b"red.png", b"FILE:///c.png"), "'image' is a URL (FILE:///c.png); leave the beginning out"),
        (LINE.replace(b"red.png", b"data:image/png;base64,AA"), "write the picture into a file"),
        (b'{"image": "red.png", "conversations": []}', "lacks 'prompt'; it is in LLaVA's format"),
        (b'{"image": "red.png", "messages": []}', "lacks 'prompt'; it is a chat"),
        (b'{"file_name": "red.png", "text": "a cat"}', "it is of Hugging Face's metadata.jsonl: call 'file_name'"),
    ],
)
def test_a_hostile_line_hides_no_other(images: Path, line: bytes, reason: str) -> None:
    first, second = problems(write(images, b"\n".join((LINE, line, LINE, b"x"))))
    assert first.startswith("line 2: ")
    assert reason in first
    assert second == "line 4: is not JSON (Expecting value at column 1)"


def test_images_that_would_never_end(images: Path) -> None:
    os.mkfifo(images / "pipe.png")
    for key in ("image", "source_image"):
        (found,) = problems(write_lines(images, [{**GOOD, key: "pipe.png"}]))
        assert "pipe.png' is not a regular file" in found


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends(images: Path, end: bytes) -> None:
    path = write(images, b"\xef\xbb\xbf" + end.join((LINE, b"", b" ", LINE, b"x", LINE)))
    assert problems(path) == ["line 5: is not JSON (Expecting value at column 1)"]
    samples = read_data(write(images, b"\xef\xbb\xbf" + end.join((LINE, b"", LINE)) + end)).samples
    assert [sample.name for sample in samples] == ["line 1", "line 3"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_lines_in_pieces(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are the same wherever the pieces of a file begin."""
    monkeypatch.setattr(jsonl, "MAX_LINE", 8)
    data = b"abc\r\n\rabcdefg\r\nabcdefghijkl\r\n\nabcdefghijkl\rx\n" + b"y" * 30
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    lines = [line if line is None else line.strip() for line in jsonl._split(pieces)]
    assert lines == [b"abc", b"", None, None, b"", None, b"x", None]


def test_a_file_without_lines(images: Path) -> None:
    path = images / "data.jsonl"
    path.write_bytes(LINE + b"\nx\n")
    with path.open("r+b") as file:
        file.truncate(2**40)  # a hole, which takes no space
    assert problems(path) == [
        "line 2: is not JSON (Expecting value at column 1)",
        "data.jsonl: has a line of more than 64 MB, so it is no text of one object a line",
    ]


def test_problems_without_end(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobileo_mlx.training.data._MAX_PROBLEMS", 5)
    with pytest.raises(DataError, match="there are 5 problems or more") as caught:
        read_data(write_lines(images, ["x"] * 10))
    assert len(caught.value.problems) == 5


def test_an_array(images: Path) -> None:
    entries = [GOOD, {**GOOD, "image": "blue.png"}]
    for indent in (None, 2):
        samples = read_data(write(images, json.dumps(entries, indent=indent).encode(), "data.json")).samples
        assert [sample.name for sample in samples] == ["entry 1", "entry 2"]
    lines = b"\xef\xbb\xbf\n[\n" + LINE + b",\n" + LINE + b"\n]\n"
    assert len(read_data(write(images, lines)).samples) == 2
    assert problems(write(images, json.dumps([GOOD, 3]).encode())) == ["entry 2: is not a JSON object"]
    assert problems(write(images, lines.replace(b",\n", b"\n"))) == [
        "data.jsonl: begins as a JSON array, but is not JSON (Expecting ',' delimiter at line 4, column 1)"
    ]


def test_a_bracket_makes_no_array_of_lines(images: Path) -> None:
    assert problems(write(images, b"[1, 2]\n" + LINE)) == ["line 1: is not a JSON object"]
    assert problems(write(images, b"[" + LINE + b"\n" + LINE + b"\nx")) == [
        "line 1: is not JSON (Expecting ',' delimiter at column " + str(len(LINE) + 2) + ")",
        "line 3: is not JSON (Expecting value at column 1)",
    ]


def test_an_array_that_is_too_large(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_JSON", 2**16)
    entries = [{**GOOD, "prompt": "a cat " * 1000}] * 40
    (found,) = problems(write(images, json.dumps(entries).encode()))
    assert "begins as a JSON array, but is larger than" in found
    assert "write one object a line" in found


def test_gzip(images: Path) -> None:
    lines = LINE + b"\n" + LINE + b"\nx"
    packed = gzip.compress(lines[:70]) + gzip.compress(lines[70:]) + bytes(512)
    assert problems(write(images, packed, "data.jsonl.gz")) == ["line 3: is not JSON (Expecting value at column 1)"]
    # The content says so, and not the name.
    assert len(read_data(write(images, gzip.compress(LINE))).samples) == 1
    assert problems(write(images, gzip.compress(LINE)[:-10])) == ["data.jsonl: is gzip that is cut short; get it again"]
    assert problems(write(images, gzip.compress(LINE)[:10] + b"\xff" * 20)) == [
        "data.jsonl: is damaged gzip; get it again"
    ]


def test_gzip_that_unpacks_without_end(images: Path) -> None:
    packed = gzip.compress(LINE + b"\n" + b"\n" * 2**25, compresslevel=9)
    assert len(packed) < 2**16
    assert problems(write(images, packed)) == [
        "data.jsonl: is gzip that unpacks to more than 100 times its size; unpack it with gunzip"
    ]


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"\xff\xfe" + LINE.decode().encode("utf-16-le"), "is UTF-16 text; save it as UTF-8"),
        (b"PK\x03\x04data", "is a zip file"),
        (b"PAR1data", "is a Parquet file"),
        (b"BZh91AY", "is compressed with bzip2; unpack it"),
        (b"\xfd7zXZ\0", "is compressed with xz"),
        (b"\x28\xb5\x2f\xfddata", "is compressed with zstd"),
        (b"a".ljust(257, b"\0") + b"ustar", "is a tar file; if it holds samples, let its name end in .tar"),
    ],
)
def test_files_of_other_kinds(images: Path, start: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        read_data(write(images, start))
    assert f"data.jsonl' {reason}" in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "a\0b", "~nobody-of-this-name/a", "/dev/zero", "data.jsonl/x"])
def test_names_that_lead_to_no_file(name: str, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images)
    write(images, LINE)
    for suffix in ("", ".jsonl", ".tar"):
        with pytest.raises(DataError):
            read_data(name + suffix)


def test_a_pipe_for_data(images: Path) -> None:
    for name in ("data.jsonl", "data.tar"):
        os.mkfifo(images / name)
        with pytest.raises(DataError) as caught:
            read_data(images / name)
        assert "is not a regular file" in "".join(map(str, [caught.value, *caught.value.problems]))


def test_closed_folders(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = images / "closed"
    closed.mkdir()
    write(closed, LINE)

    def refuse(call: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(path: Any, *args: Any, **options: Any) -> Any:
            if isinstance(path, str | Path) and closed in (Path(path), *Path(path).parents):
                raise PermissionError(13, "Permission denied")
            return call(path, *args, **options)

        return refusing

    path = write_lines(images, [{**GOOD, "image": "closed/red.png"}])
    monkeypatch.setattr(os, "listdir", refuse(os.listdir))
    monkeypatch.setattr(os, "scandir", refuse(os.scandir))
    with pytest.raises(DataError, match=r"closed' can't be read \(Permission denied\)"):
        read_data(closed)
    monkeypatch.setattr(os, "open", refuse(os.open))
    with pytest.raises(DataError, match=r"data.jsonl' can't be read \(Permission denied\)"):
        read_data(closed / "data.jsonl")
    monkeypatch.setattr(os, "stat", refuse(os.stat))
    (found,) = problems(path)
    assert "closed/red.png' can't be read (Permission denied)" in found
    with pytest.raises(DataError, match=r"data.jsonl' can't be read \(Permission denied\)"):
        read_data(closed / "data.jsonl")
