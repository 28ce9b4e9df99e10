from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mobileo_mlx.training.data import read_data
from mobileo_mlx.training.quadruplets import QA, DataError, Problem
from mobileo_mlx.training.webdataset import DEFAULT_QUESTION, parse_qna

from .conftest import problems


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for stem, files in samples.items():
            for kind, content in files.items():
                info = tarfile.TarInfo(f"{stem}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


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


def test_questions_among_lines() -> None:
    assert parse_qna("Q: a? A: b.") == [QA("a?", "b.")]
    assert parse_qna("x\n Q: a b? A: c, d. \ny") == [QA("a b?", "c, d.")]
    assert parse_qna("Q: a?\n\nA:") == []
    assert str(Problem("line 3", "is bad")) == "line 3: is bad"
