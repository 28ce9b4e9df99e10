from __future__ import annotations

import errno
import gzip
import io
import os
import random
import re
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from mobileo_mlx.training.data import read_data
from mobileo_mlx.training.quadruplets import QA, DataError, Problem
from mobileo_mlx.training.webdataset import DEFAULT_QUESTION, parse_qna

from .conftest import problems

Mode = Literal["w", "w:gz", "w:bz2", "w:xz"]


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, samples: dict[str, dict[str, bytes]], mode: Mode = "w") -> Path:
    members = [(f"{key}.{kind}", content) for key, files in samples.items() for kind, content in files.items()]
    return archive(path, members, mode)


def archive(path: Path, members: Iterable[tuple[str, bytes]], mode: Mode = "w") -> Path:
    """A tar file of names and contents."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A member's header, which may claim any size."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


SAMPLE = {
    "und_image.jpg": png((0, 0, 255)),
    "gen_image.png": png((255, 0, 0)),
    "gen_prompt.txt": b"a cat\n",
    "qna.txt": b"noise\nQ: what is it? A: a cat.\nQ: where?\nA: here",
    "category.txt": b"text_to_image\n",
}
EDIT = {**SAMPLE, "category.txt": b"text_and_image_to_image"}


def test_a_shard(tmp_path: Path) -> None:
    data = read_data(shard(tmp_path / "s-0.tar", {"000": SAMPLE, "sub/001": EDIT}))
    drawn, edit = data.samples
    assert (drawn.name, edit.name) == ("s-0.tar: 000", "s-0.tar: sub/001")
    assert drawn.prompt == "a cat"
    assert drawn.qa == (QA("what is it?", "a cat."), QA("where?", "here"))
    assert drawn.source_image is None
    assert edit.source_image == edit.question_image
    assert drawn.image.open().getpixel((0, 0)) == (255, 0, 0)
    assert drawn.question_image.open().getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("end", [b"\r", b"\r\n"])
def test_lines_of_other_systems(tmp_path: Path, end: bytes) -> None:
    files = SAMPLE | {"qna.txt": b"Q: a? A: b" + end + b"Q: c? A: d"}
    (sample,) = read_data(shard(tmp_path / "s.tar", {"0": files})).samples
    assert sample.qa == (QA("a?", "b"), QA("c?", "d"))


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for i in (1, 0):
        shard(tmp_path / f"s-{i}.tar", {"0": SAMPLE})
    assert [sample.name for sample in read_data(tmp_path).samples] == ["s-0.tar: 0", "s-1.tar: 0"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no shards"):
        read_data(tmp_path / "empty")


def test_a_sample_without_a_question(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", {"0": {**SAMPLE, "qna.txt": b"nothing"}})
    assert problems(path) == ["s.tar: 0: qna.txt has no line 'Q: ... A: ...'"]
    data = read_data(path, default_question=True)
    assert data.samples[0].qa == (DEFAULT_QUESTION,)
    assert data.default_questions == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gen_prompt.txt": None}, "lacks gen_prompt.txt"),
        ({"gen_image.png": None}, "lacks gen_image.png or .jpg"),
        ({"gen_image.png": png((1, 2, 3))[:-30]}, "is damaged or cut short"),
        ({"category.txt": b"other"}, "category.txt says 'other'"),
        ({"gen_prompt.txt": b"\xff"}, "is not UTF-8 text"),
        ({"gen_prompt.txt": b" "}, "is empty"),
    ],
)
def test_bad_samples_of_a_shard(tmp_path: Path, change: dict[str, bytes | None], reason: str) -> None:
    files = {kind: content for kind, content in {**SAMPLE, **change}.items() if content is not None}
    (found,) = problems(shard(tmp_path / "s.tar", {"0": SAMPLE, "1": files}))
    assert found.startswith("s.tar: 1: ")
    assert reason in found


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_a_shard_cut_short(tmp_path: Path, share: float) -> None:
    path = shard(tmp_path / "s.tar", {str(i): SAMPLE for i in range(4)})
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[: int(len(whole) * share)])
    assert any("s.tar: is cut short or damaged after" in problem for problem in problems(path))


def test_a_shard_without_its_end(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", {"0": SAMPLE})
    size = len(path.read_bytes().rstrip(b"\0"))
    path.write_bytes(path.read_bytes()[: -(-size // 512) * 512])
    assert problems(path) == ["s.tar: is cut short or damaged after 5 files; get it again"]


def test_not_a_shard(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"no tar file" * 100)
    (found,) = problems(tmp_path / "s.tar")
    assert found.startswith("s.tar: is not a tar file that can be read")


MEMBERS = [(f"000.{kind}", data) for kind, data in SAMPLE.items()]


def test_members_that_are_passed_over(tmp_path: Path) -> None:
    sidecar = bytes.fromhex("0005160700020000") + bytes(80)
    others = [
        ("._000.gen_image.png", sidecar),
        (".DS_Store", b"Bud1"),
        ("sub/.DS_Store", b"Bud1"),
        ("./._000.gen_prompt.txt", sidecar),
        (".AppleDouble/000.gen_image.png", sidecar),
        ("__MACOSX/._000.gen_image.png", sidecar),
        ("__meta__", b"{}"),
        ("__meta__/a.json", b"{}"),
        ("LICENSE", b"any"),
    ]
    path = archive(
        tmp_path / "s.tar", [member for pair in zip(others, MEMBERS * 2, strict=False) for member in pair[:1]]
    )
    with pytest.raises(DataError, match="holds no samples"):
        read_data(path)
    # Between the files of a sample, too.
    mixed = [*others, *MEMBERS[:2], *others, *MEMBERS[2:], *others]
    (sample,) = read_data(archive(path, mixed)).samples
    assert sample.name == "s.tar: 000"


def test_shards_that_are_passed_over(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"0": SAMPLE})
    shard(tmp_path / "B.TAR", {"0": SAMPLE})
    shard(tmp_path / "c.tar.gz", {"0": SAMPLE}, "w:gz")
    shard(tmp_path / "d.tgz", {"0": SAMPLE}, "w:gz")
    (tmp_path / "._a.tar").write_bytes(b"AppleDouble")
    (tmp_path / "notes.txt").write_bytes(b"no shard")
    names = [sample.name for sample in read_data(tmp_path).samples]
    assert sorted(names) == ["B.TAR: 0", "a.tar: 0", "c.tar.gz: 0", "d.tgz: 0"]


def test_keys_and_suffixes(tmp_path: Path) -> None:
    capitals = {kind.upper(): data for kind, data in SAMPLE.items()}
    path = shard(tmp_path / "s.tar", {"./0": capitals, "v1.0/x y/0": SAMPLE, "/abs/0": SAMPLE, "../0": SAMPLE})
    names = [sample.name.removeprefix("s.tar: ") for sample in read_data(path).samples]
    assert names == ["0", "v1.0/x y/0", "/abs/0", "../0"]
    # A dot ends the key.
    (found,) = problems(shard(path, {"0.5": SAMPLE}))
    assert found.startswith("s.tar: 0: lacks gen_prompt.txt; it has 5.und_image.jpg, 5.gen_image.png")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = archive(tmp_path / "s.tar", [("caf\udce9" + name, data) for name, data in MEMBERS])
    (sample,) = read_data(path).samples
    assert sample.name == r"s.tar: caf\udce9000"


def test_what_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    assert problems(archive(path, [*MEMBERS, MEMBERS[0]])) == ["s.tar: 000: holds und_image.jpg twice"]
    assert problems(archive(path, [*MEMBERS, ("000.GEN_prompt.txt", b"a dog")])) == [
        "s.tar: 000: holds gen_prompt.txt twice"
    ]
    other = [(name.replace("000", "001"), data) for name, data in MEMBERS]
    (found,) = problems(archive(path, [*MEMBERS, *other, *MEMBERS]))
    assert found.startswith("s.tar: 000: comes twice in the shard")
    # Written in the order of the suffixes.
    mixed = [member for pair in zip(MEMBERS, other, strict=True) for member in pair]
    assert any("001: comes twice in the shard" in problem for problem in problems(archive(path, mixed)))
    # In another shard it is another sample.
    (tmp_path / "two").mkdir()
    for name in ("a.tar", "b.tar"):
        archive(tmp_path / "two" / name, MEMBERS)
    assert len(read_data(tmp_path / "two").samples) == 2


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz", "s.tar"])
def test_a_shard_that_is_gzipped(tmp_path: Path, name: str) -> None:
    plain = read_data(shard(tmp_path / "plain.tar", {"0": SAMPLE, "1": EDIT}))
    (tmp_path / "packed").mkdir()
    for number in (1, 2):
        shard(tmp_path / "packed" / f"{number}{name}", {"0": SAMPLE, "1": EDIT}, "w:gz")
    data = read_data(tmp_path / "packed")
    assert len(data.samples) == 4
    for packed, sample in zip(data.samples, plain.samples * 2, strict=True):
        assert packed.image.read() == sample.image.read()
        assert packed.question_image.read() == sample.question_image.read()
    assert read_data(tmp_path / "packed" / f"1{name}").fingerprint == plain.fingerprint


def test_unpacked_shards_take_no_descriptors(tmp_path: Path) -> None:
    for number in range(8):
        shard(tmp_path / f"{number}.tgz", {"0": SAMPLE}, "w:gz")
    data = read_data(tmp_path)
    assert len({sample.image.unpacked for sample in data.samples}) == 1
    assert read_data(tmp_path).fingerprint == data.fingerprint


def test_gzip_that_is_damaged(tmp_path: Path) -> None:
    whole = shard(tmp_path / "s.tgz", {"0": SAMPLE}, "w:gz").read_bytes()
    (tmp_path / "s.tgz").write_bytes(whole[:-20])
    (tmp_path / "t.tgz").write_bytes(gzip.compress(bytes(2**25)))
    shard(tmp_path / "u.tgz", {"0": SAMPLE}, "w:gz")
    assert problems(tmp_path) == [
        "s.tgz: is gzip that is cut short; get it again",
        "t.tgz: is gzip that unpacks to more than 100 times its size; unpack it with gunzip",
    ]


def test_no_space_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: Full(tmp_path / "full", "w+"))
    (found,) = problems(shard(tmp_path / "s.tgz", {"0": SAMPLE}, "w:gz"))
    assert "(No space left on device); unpack it with gunzip" in found


@pytest.mark.parametrize(("mode", "name"), [("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_other_compression(tmp_path: Path, mode: Mode, name: str) -> None:
    path = shard(tmp_path / "s.tar", {"0": SAMPLE}, mode)
    assert problems(path) == [f"s.tar: is compressed with {name}, and not with gzip; unpack it"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "is a link; store the file itself"),
        (tarfile.LNKTYPE, "is a link; store the file itself"),
        (tarfile.FIFOTYPE, "is no regular file"),
        (tarfile.CHRTYPE, "is no regular file"),
        (tarfile.GNUTYPE_SPARSE, "is stored with holes"),
    ],
)
def test_members_that_are_no_files(tmp_path: Path, kind: bytes, reason: str) -> None:
    path = archive(tmp_path / "s.tar", MEMBERS)
    odd = header("1.gen_image.png", 0, kind) + header("2.gen_prompt.txt", 0)
    path.write_bytes(padded(path.read_bytes().rstrip(b"\0")) + odd + bytes(1024))
    first, second = problems(path)
    assert first.startswith(f"s.tar: 1: 1.gen_image.png {reason}")
    assert second.startswith("s.tar: 2: ")


@pytest.mark.parametrize("sparse", [{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, {"GNU.sparse.map": "0,5"}])
def test_texts_with_holes(tmp_path: Path, sparse: dict[str, str]) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("0.gen_prompt.txt")
        info.pax_headers = {**sparse, "GNU.sparse.size": str(2**40), "GNU.sparse.realsize": str(2**40)}
        content = padded(b"1\n0\n5\na cat")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    (found,) = problems(tmp_path / "s.tar")
    assert "is stored with holes; write the shard without --sparse" in found


def test_members_of_absurd_size(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    before = b"".join(header(f"0.{kind}", len(data)) + padded(data) for kind, data in SAMPLE.items())
    for kind, reason in (
        ("gen_prompt.txt", "gen_prompt.txt is too large for a text: 21,474,836,480 bytes"),
        ("gen_image.png", "gen_image.png is too large for an image: 21,474,836,480 bytes"),
    ):
        rest = {"gen_prompt.txt": b"a", "qna.txt": b"Q: a? A: b"}
        rest.pop(kind, None)
        texts = b"".join(header(f"1.{name}", len(data)) + padded(data) for name, data in rest.items())
        with path.open("wb") as file:
            file.write(before + texts + header(f"1.{kind}", 20 * 2**30))
            file.truncate(21 * 2**30)  # a hole, which takes no space
        assert problems(path) == [f"s.tar: 1: {reason}"]
    path.write_bytes(before + header("1.gen_prompt.txt", 2**40) + bytes(1024))
    assert problems(path) == ["s.tar: is cut short or damaged after 6 files (unexpected end of data); get it again"]


@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"S"])
@pytest.mark.parametrize("size", [-700, -512, -1024, -(2**60), 2**17, 2**62, 2**80])
def test_headers_that_lie(tmp_path: Path, kind: bytes, size: int) -> None:
    """Sizes that lead back, where the same would be read for ever, or are beyond memory and integers."""
    whole = b"".join(header(f"0.{suffix}", len(data)) + padded(data) for suffix, data in SAMPLE.items())
    path = tmp_path / "s.tar"
    path.write_bytes(whole + header("1.gen_prompt.txt", size, kind) + bytes(4096))
    (found,) = problems(path)
    assert found.startswith("s.tar: is cut short or damaged after ")
    path.write_bytes(header("1.gen_prompt.txt", size, kind) + bytes(4096))
    (found,) = problems(path)
    assert "is cut short or damaged after 1 file" in found or "is not a tar file that can be read" in found


@pytest.mark.parametrize(
    "record",
    ["size=x", "size=-512", "size=" + "9" * 400, "GNU.sparse.map=1,x", "GNU.sparse.major=x", "path=" + "a" * 5000],
)
def test_attributes_that_lie(tmp_path: Path, record: str) -> None:
    length = len(record) + 2
    while len(text := f"{length} {record}\n") != length:
        length = len(text)
    attributes = header("a", len(text), b"x") + padded(text.encode())
    path = tmp_path / "s.tar"
    path.write_bytes(attributes + header("0.gen_prompt.txt", 0) + bytes(1024))
    (found,) = problems(path)
    assert len(found) < 300


@pytest.mark.parametrize("kind", [b"x", b"L", b"K"])
def test_headers_upon_headers(tmp_path: Path, kind: bytes) -> None:
    block = header("a", 12, kind) + padded(b"12 path=aaa\n")
    (tmp_path / "s.tar").write_bytes(block * 5000 + header("0.gen_prompt.txt", 0) + bytes(1024))
    (found,) = problems(tmp_path / "s.tar")
    assert "is not a tar file that can be read" in found


def test_two_archives_in_one_file(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", {"0": SAMPLE})
    path.write_bytes(path.read_bytes() + shard(tmp_path / "t.tar", {"1": SAMPLE}).read_bytes())
    assert problems(path) == ["s.tar: goes on behind its end; if it is several tar files in one, give each by itself"]


def test_a_bad_shard_hides_no_other(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "b.tar").mkdir()
    (tmp_path / "c.tar").write_bytes(b"")
    shard(tmp_path / "d.tar", {"0": {"gen_prompt.txt": b"a cat"}})
    found = problems(tmp_path)
    assert [problem.partition(": ")[0] for problem in found] == ["a.tar", "b.tar", "c.tar", "d.tar"]
    assert "is not a regular file" in found[0]


# Questions


def test_questions_among_lines() -> None:
    assert parse_qna("Q: a? A: b.") == [QA("a?", "b.")]
    assert parse_qna("x\n Q: a b? A: c, d. \ny") == [QA("a b?", "c, d.")]
    assert parse_qna("Q: a?\n\nA:") == []
    assert str(Problem("line 3", "is bad")) == "line 3: is bad"


def test_questions_are_found_as_an_expression_finds_them() -> None:
    """The plain expression says what is meant; its time is quadratic in blanks."""
    rng = random.Random(0)
    parts = ["Q:", "A:", " A: ", "\nQ: ", " ", "\n", "x", "\t", "\r", "\u2028", ":", "Q", "A", "y z"]
    found = 0
    for _ in range(20_000):
        text = "".join(rng.choices(parts, k=rng.randrange(14)))
        pairs = re.findall(r"^\s*Q:\s*(\S.*?)\s+A:\s*(\S.*?)\s*$", text, re.MULTILINE)
        assert parse_qna(text) == [QA(*pair) for pair in pairs], repr(text)
        found += len(pairs)
    assert found > 1000


def test_questions_in_a_long_text() -> None:
    """A megabyte each, which would take many minutes if every blank began a search."""
    for text in (" " * 10**6, "Q: a" + " " * 10**6, "Q:\n" * 300_000, "Q: " + "A:" * 500_000, "\n" * 10**6 + "A:"):
        assert parse_qna(text) == []
    assert parse_qna("Q: a" + " " * 10**6 + "A: b") == [QA("a", "b")]
