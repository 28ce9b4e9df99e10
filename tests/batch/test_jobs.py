"""The jobs file: all lines, in any order; bad ones are named; it is known again."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mobileo_mlx.batch import jobs as module
from mobileo_mlx.batch.jobs import CHUNK, BadLine, Jobs, keep_index, open_jobs
from mobileo_mlx.batch.tasks import SHARD, Common, Task
from mobileo_mlx.errors import OptionError

COUNT = 2 * SHARD + 3 * CHUNK + 5


@pytest.fixture
def common(tmp_path: Path) -> Common:
    return Common(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def line(number: int) -> str:
    return json.dumps({"id": f"n{number}", "prompt": f"prompt {number}"}) + "\n"


def write(common: Common, text: str) -> Path:
    path = common.folder / "jobs.jsonl"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def read(path: Path, out: Path, common: Common) -> tuple[Jobs, bool]:
    jobs, known = open_jobs(path, out, common)
    if not known:
        bad = list(jobs.check())
        keep_index(jobs, out, good=not bad)
    return jobs, known


def test_every_line_is_in_one_chunk_in_any_order(common: Common, out: Path) -> None:
    jobs, _ = read(write(common, "".join(map(line, range(1, COUNT + 1)))), out, common)
    assert (jobs.index.lines, jobs.index.tasks, jobs.chunks) == (COUNT, COUNT, COUNT // CHUNK + 1)
    for order in (range(jobs.chunks), reversed(range(jobs.chunks))):
        tasks = {number: list(jobs.chunk(number)) for number in order}
        found = [task for number in sorted(tasks) for task in tasks[number]]
        assert [(task.line, task.id) for task in found] == [(i, f"n{i}") for i in range(1, COUNT + 1)]
        assert max(map(len, tasks.values())) == CHUNK


def test_blank_lines_count_as_lines_alone(common: Common, out: Path) -> None:
    text = "\ufeff" + line(1) + "\n   \r\n" + line(4).replace("\n", "\r\n") + line(5).rstrip()
    jobs, _ = read(write(common, text), out, common)
    assert (jobs.index.lines, jobs.index.tasks) == (5, 3)
    assert [task.line for task in jobs.chunk(0)] == [1, 4, 5]


def test_bad_lines_are_named(common: Common, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 2**16)
    long = json.dumps({"prompt": "x" * 2**16}) + "\n"
    text = line(1) + "{no\n" + '{"prompt": ""}\n' + long + line(1) + '{"prompt": "x", "id": "N1"}\n' + line(7)
    jobs, _ = open_jobs(write(common, text), out, common)
    bad = {found.line: found.problem for found in jobs.check()}
    assert list(bad) == [2, 3, 4, 5, 6]
    assert bad[2].startswith("is not JSON (Expecting property name enclosed in double quotes at column 2")
    assert bad[4] == "is longer than 0 MB"
    assert bad[5] == bad[6] == "has the id, or name of a file, of line 1"
    found = list(jobs.chunk(0))
    assert [type(one) for one in found] == [Task, BadLine, BadLine, BadLine, BadLine, BadLine, Task]
    assert [one.id for one in found] == ["n1", "2", "3", "4", "n1", "N1", "n7"]


def test_an_id_may_not_be_the_number_of_a_line_without_one(common: Common, out: Path) -> None:
    jobs, _ = open_jobs(
        write(common, '{"prompt": "a"}\n{"prompt": "b", "id": 1}\n{"prompt": "c", "id": "4"}\n'), out, common
    )
    assert [found.line for found in jobs.check()] == [2]


def test_known_again(common: Common, out: Path) -> None:
    path = write(common, "".join(map(line, range(1, COUNT + 1))))
    assert not read(path, out, common)[1]
    assert read(path, out, common)[1]
    assert not read(path, out, Common(common.folder, {"steps": 3}))[1]  # with which lines may be bad


@pytest.mark.parametrize("count", [1, SHARD - 1, SHARD, SHARD + 1, COUNT])
def test_lines_may_be_added(common: Common, out: Path, count: int) -> None:
    begin = "".join(map(line, range(1, count + 1))).rstrip()  # the last one without an end
    read(write(common, begin), out, common)
    jobs, known = read(write(common, begin + "\n" + line(count + 1)), out, common)
    assert (known, jobs.index.tasks) == (False, count + 1)
    assert read(jobs.path, out, common)[1]


@pytest.mark.parametrize("changed", [1, SHARD, SHARD + 1, COUNT])
def test_changed_lines_are_refused(common: Common, out: Path, changed: int) -> None:
    lines = [line(number) for number in range(1, COUNT + 1)]
    read(write(common, "".join(lines)), out, common)
    lines[changed - 1] = line(changed).replace("prompt ", "other ")
    first = (changed - 1) // SHARD * SHARD + 1
    for added in ("", line(COUNT + 1), "".join(map(line, range(COUNT + 1, COUNT + SHARD)))):
        with pytest.raises(
            OptionError, match=f"among lines {first} to {min(first + SHARD - 1, COUNT)} one has changed"
        ):
            open_jobs(write(common, "".join(lines) + added), out, common)


def test_missing_lines_are_refused(common: Common, out: Path) -> None:
    read(write(common, line(1) + line(2)), out, common)
    with pytest.raises(OptionError, match="has 1 lines, and had 2"):
        open_jobs(write(common, line(1)), out, common)


def test_gzip(common: Common, out: Path) -> None:
    path = common.folder / "jobs.jsonl.gz"
    path.write_bytes(gzip.compress("".join(map(line, range(1, COUNT + 1))).encode()))
    jobs, _ = read(path, out, common)
    assert next(jobs.chunk(60)).id == f"n{60 * CHUNK + 1}"
    assert read(path, out, common)[1]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(OptionError, match="is gzip that is cut short"):
        open_jobs(path, out, common)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "holds no tasks"), ("\n \n", "holds no tasks"), ('[{"prompt": "x"}]\n', "holds a JSON array")],
)
def test_other_files(common: Common, out: Path, text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        open_jobs(write(common, text), out, common)


def test_a_damaged_index_is_named(common: Common, out: Path) -> None:
    path = write(common, line(1))
    read(path, out, common)
    for text in ("", "[]", '{"x": 1}', '{"lines": 1, "repeated": {"a": 1}}'):
        (out / "index.json").write_text(text)
        with pytest.raises(OptionError, match=r"index\.json' is damaged; remove it"):
            open_jobs(path, out, common)


def test_a_file_that_becomes_shorter_meanwhile(common: Common, out: Path) -> None:
    jobs, _ = read(write(common, "".join(map(line, range(1, 100)))), out, common)
    jobs.path.write_text(line(1))
    with pytest.raises(OptionError, match="is shorter than it was"):
        list(jobs.chunk(2))
