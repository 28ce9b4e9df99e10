"""From drafts to files: duplicates, the split, reviews, figures, and builds that were stopped."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from PIL import Image

from mobileo_mlx.datasets.build import Build, Options
from mobileo_mlx.datasets.kept import Kept
from mobileo_mlx.datasets.review import write_review
from mobileo_mlx.datasets.samples import first_pictures
from mobileo_mlx.errors import ExistsError, MobileOError, OptionError, OutputError
from mobileo_mlx.training.data import read_data
from mobileo_mlx.training.quadruplets import DataError

from .conftest import picture

HOSTILE = "</script><script>alert(1)</script><!-- {samples} &lt; \u2028 \u202e"


def captioned(photos, count, start=0):
    for number in range(start, start + count):
        picture(photos / f"{number:03d}.png", number)
        (photos / f"{number:03d}.txt").write_text(f"picture {number}")


def test_the_same_pixels_are_taken_once(photos, built):
    """Whatever their file is; and the one with a text of its own stays."""
    picture(photos / "b.png", 1)
    with Image.open(photos / "b.png") as image:
        image.save(photos / "a.bmp")
        image.save(photos / "c.tiff")
    (photos / "b.txt").write_text("b")
    (photos / "c.txt").write_text("c")
    found = built(captioned=True)
    assert found.prompts == {"b.png": "b"}
    assert found.left_out == [
        ("exact duplicate", "a.bmp: has the pixels of 'b.png'"),
        ("exact duplicate", "c.tiff: has the pixels of 'b.png'"),
    ]
    assert list(built(duplicates="keep", out="all.jsonl").prompts) == ["b.png", "c.tiff"]


def test_edits_of_one_picture_are_no_duplicates(photos, built):
    picture(photos / "a.png", 1)
    for name, text in (("a_edit1", "make it green"), ("a_edit2", "turn it green"), ("a_edit3", "turn it green")):
        picture(photos / f"{name}.png", 2)
        (photos / f"{name}.txt").write_text(text)
    found = built(questions="none")
    assert list(found.prompts) == ["a_edit1.png", "a_edit2.png"]


def test_near_duplicates_look_alike_in_shape_and_colour(photos, built):
    def scene(name, colour, size=(64, 64)):
        image = Image.new("RGB", (64, 64), "white")
        image.paste(colour, (8, 16, 30, 50))
        image.resize(size).save(photos / name)
        (photos / f"{name[:-4]}.txt").write_text(name)

    scene("a.png", (200, 40, 40))
    scene("b.png", (200, 40, 40), (128, 128))
    scene("c.jpg", (203, 44, 38))
    scene("d.png", (40, 160, 40))  # the same but for the colour
    assert len(built().samples) == 4
    near = built(duplicates="near", out="near.jsonl")
    assert sorted(near.prompts) == ["a.png", "d.png"]
    assert near.left_out[0] == ("near duplicate", "b.png: looks nearly as 'a.png'")


def test_edits_of_edits_are_on_the_side_of_the_first_picture(photos, built):
    """Else a picture could be drawn in training that another sample starts from, or ends with, in validation."""
    for number in range(20):
        for k, end in enumerate(("", "_edit", "_edit_edit")):
            picture(photos / f"{number}{end}.png", 3 * number + k)
            (photos / f"{number}{end}.txt").write_text("make it new")
    rows = [{"file_name": f"{number}_edit.png", "text": "new"} for number in range(20)]
    (photos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sides = {}
    for sample in built(split=0.5, questions="none").samples:
        sides.setdefault(sample.picture.path.split(".")[0].split("_")[0], set()).add(sample.held_out)
    assert len(sides) == 20
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {True, False}


def test_edits_that_go_round_in_a_circle_are_on_one_side():
    found = first_pictures([("2", "3"), ("3", "2"), ("5", "4"), ("4", ""), ("6", "5"), ("1", "5"), ("7", "7")])
    assert found == {"2": "2", "3": "2", "5": "4", "4": "4", "6": "4", "1": "4", "7": "7"}


def test_a_split_that_leaves_nothing_to_train_on_says_so(photos, tmp_path):
    captioned(photos, 1)
    build = Build(photos, tmp_path / "x.jsonl", Options(split=1 - 1e-12))
    for _ in build.look():
        pass
    with pytest.raises(DataError, match=r"--split .* holds out all samples, 1 of .*; choose a smaller share"):
        build.write(build.samples())
    build.close()


def test_a_split_stays_when_pictures_are_added_or_renamed(photos, built):
    captioned(photos, 60)
    first = built(split=0.3)
    held_out = {s.picture.digest for s in first.samples if s.held_out}
    assert 8 <= len(held_out) <= 28
    assert (photos.parent / "data-validation.jsonl").read_text().count("\n") == len(held_out)
    assert len(first.lines) == 60 - len(held_out)
    captioned(photos, 40, start=60)
    for text in (".png", ".txt"):
        (photos / f"000{text}").rename(photos / f"renamed{text}")
    second = built(split=0.3, out="second.jsonl")
    known = {s.picture.digest for s in first.samples}
    assert {s.picture.digest for s in second.samples if s.held_out} & known == held_out


def test_a_picture_and_its_edits_are_on_one_side(photos, built):
    for number in range(20):
        picture(photos / f"{number}.png", number)
        (photos / f"{number}.txt").write_text("a picture")
        picture(photos / f"{number}_edit.png", number + 100)
        (photos / f"{number}_edit.txt").write_text("change it")
    sides: dict[str, set[bool]] = {}
    for sample in built(split=0.5, questions="none").samples:
        sides.setdefault((sample.source or sample.picture).path, set()).add(sample.held_out)
    assert len(sides) == 20
    assert all(len(side) == 1 for side in sides.values())


def test_nothing_of_the_folder_is_changed(photos, built):
    captioned(photos, 3)
    (photos / "bad.png").write_bytes(b"no picture")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.iterdir()}
    built(split=0.5)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.iterdir()} == before


def test_paths_lead_from_the_file_to_the_pictures(photos, built, tmp_path):
    captioned(photos, 2)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    found = built(out="deep/er/data.jsonl")
    assert found.lines[0]["image"] == "../../photos/000.png"
    (tmp_path / "short").symlink_to(tmp_path / "deep" / "er")
    through = built(out="short/again.jsonl")
    assert [sample.image.path.name for sample in read_data(through.out).samples] == ["000.png", "001.png"]
    inside = built(out="photos/inside.jsonl")
    assert inside.lines[0]["image"] == "000.png"


def test_files_are_replaced_only_when_asked(photos, tmp_path):
    captioned(photos, 2)
    (tmp_path / "data-validation.jsonl").write_text("mine")
    with pytest.raises(ExistsError, match=r"data-validation\.jsonl' exists already"):
        Build(photos, tmp_path / "data.jsonl", Options(split=0.5))
    with pytest.raises(OptionError, match=r"ends in \.jsonl"):
        Build(photos, tmp_path / "data.tar", Options())


@pytest.mark.parametrize(
    "options",
    [
        {"split": 1.0}, {"split": -0.1}, {"duplicates": "all"}, {"near": 17}, {"questions": "many"}, {"ask": (" ",)},
        {"edit_suffix": "a/b"}, {"describe": "<image>"},
    ],
)  # fmt: skip
def test_options_are_checked_first(photos, tmp_path, options):
    with pytest.raises(MobileOError):
        Build(photos, tmp_path / "data.jsonl", Options(**options))
    assert not (tmp_path / "data.build").exists()


def test_two_builds_of_one_file_are_refused(photos, tmp_path):
    captioned(photos, 1)
    first = Build(photos, tmp_path / "data.jsonl", Options())
    with pytest.raises(OutputError, match="another build is at work"):
        Build(photos, tmp_path / "data.jsonl", Options())
    first.close()
    Build(photos, tmp_path / "data.jsonl", Options()).close()


def test_what_was_seen_is_not_looked_at_again(photos, built, monkeypatch):
    """But for files that have changed since; and a line that was cut short is no line."""
    from mobileo_mlx.datasets import pictures

    captioned(photos, 4)
    first = built()
    seen = photos.parent / "data.build" / "pictures.jsonl"
    seen.write_bytes(seen.read_bytes()[:-10])
    picture(photos / "001.png", 7)
    looked = []
    look = pictures._look
    monkeypatch.setattr(pictures, "_look", lambda name, image: looked.append(name) or look(name, image))
    second = built()
    assert looked == ["001.png", "003.png"]
    assert first.samples[0] == second.samples[0]
    looked.clear()
    assert built().samples == second.samples
    assert looked == []


# Kills its own process when the nth file of a build is half written.
KILLED = """
import os, signal, sys
from mobileo_mlx.datasets import pictures
look, count = pictures._look, [0]
def kill(name, image):
    count[0] += 1
    if count[0] == 4:
        with open(sys.argv[2][:-6] + ".build/pictures.jsonl", "a") as file:
            file.write('{"half')
        os.kill(os.getpid(), signal.SIGKILL)
    return look(name, image)
pictures._look = kill
from mobileo_cli.main import main
sys.exit(main(["dataset", "build", sys.argv[1], "--out", sys.argv[2]]))
"""


def test_a_build_that_was_killed_goes_on(photos, built, tmp_path):
    captioned(photos, 6)
    out = tmp_path / "data.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(photos), str(out)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / "data.build" / "pictures.jsonl").read_bytes().count(b"\n") == 3
    assert len(built().lines) == 6
    shutil.rmtree(tmp_path / "data.build")
    lines = out.read_bytes()
    built()
    assert out.read_bytes() == lines


def test_a_full_disk_leaves_no_half_file(photos, built, tmp_path, monkeypatch):
    captioned(photos, 6)
    built()
    before = (tmp_path / "data.jsonl").read_bytes()
    from mobileo_mlx.datasets import samples

    def full(*arguments):
        yield "half"
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(samples, "_lines", full)
    with pytest.raises(OutputError, match="disk is full"):
        built(split=0.5)
    assert (tmp_path / "data.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.build", "data.jsonl", "photos"]


def test_figures(photos, built):
    captioned(photos, 4)
    (photos / "001.txt").write_text("a very red dog and a red cat")
    (photos / "broken.png").write_bytes(b"x")
    (photos / "broken.txt").write_text("x")
    picture(photos / "silent.png", 20)
    found = built()
    figures = found.build.figures(found.samples)
    assert figures["pictures"] == 6
    assert figures["samples"] == figures["drawings"] == figures["questions"] == 4
    assert figures["left_out"] == {"without text": 1, "unreadable": 1}
    assert figures["words_of_a_prompt"] == {"smallest": 2, "median": 2, "largest": 8}
    assert figures["width"] == {"smallest": 40, "median": 40, "largest": 40}
    assert figures["prompts_from"] == {"sidecar": 4}
    assert list(figures["most_frequent_words"].items())[:2] == [("picture", 3), ("red", 2)]
    json.dumps(figures)


# Reviews


def review(samples, tmp_path, title="data"):
    path = tmp_path / "review.html"
    write_review(samples, path, title=title, overwrite=True)
    return path.read_text(encoding="utf-8")


def test_texts_of_a_review_page_stay_texts(photos, built, tmp_path):
    picture(photos / "<b onclick=x>.png", 1)
    (photos / "<b onclick=x>.txt").write_text(HOSTILE)
    page = review(built().samples, tmp_path, title=HOSTILE)
    assert re.findall(r"<(script|img|b|iframe)\b", page) == ["script", "script"]
    (data,) = re.findall(r'<script type="application/json" id="samples">(.*?)</script>', page, re.DOTALL)
    (sample,) = json.loads(data)
    assert sample["prompt"] == " ".join(HOSTILE.split())
    assert sample["path"] == "<b onclick=x>.png"
    (title,) = re.findall(r"<title>(.*?)</title>", page, re.DOTALL)
    assert html.unescape(title) == HOSTILE
    assert re.search(r"https?:", page) is None


def test_the_policy_allows_the_script_of_the_page_alone(photos, built, tmp_path):
    import base64
    import hashlib

    captioned(photos, 1)
    page = review(built().samples, tmp_path)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_a_kept_list_chooses_and_changes(photos, built, tmp_path):
    captioned(photos, 4)
    samples = built().samples
    entries = {
        samples[0].id: {"keep": True, "prompt": "a better\ntext"},
        samples[1].id: {"keep": False},
        samples[2].id: {"keep": True},
    }
    path = tmp_path / "kept.json"
    path.write_text(json.dumps({"format": "mobileo-mlx kept 1", "samples": entries}))
    found = built(Kept.read(path))
    assert found.prompts == {"000.png": "a better text", "002.png": "picture 2"}
    assert found.lines[0]["answer"] == "a better text"  # what follows from a caption follows from the new one
    assert found.left_out == [
        ("review", f"001.png: the review '{path}' left it out"),
        ("not reviewed", f"003.png: the review '{path}' does not know it"),
    ]


def test_duplicates_that_are_kept_are_chosen_one_by_one(photos, built):
    for name in ("a", "b"):
        picture(photos / f"{name}.png", 1)
        (photos / f"{name}.txt").write_text(name)
    assert len({sample.id for sample in built(duplicates="keep").samples}) == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "mobileo-mlx kept 1"}', '{"format": "mobileo-mlx kept 1", "samples": {"a": {}}}',
     '{"format": "mobileo-mlx kept 1", "samples": {"a": {"keep": true, "prompt": 1}}}'],
)  # fmt: skip
def test_other_files_are_no_kept_lists(tmp_path, text):
    (tmp_path / "kept.json").write_text(text)
    with pytest.raises(OptionError, match=r"kept\.json"):
        Kept.read(tmp_path / "kept.json")


def test_what_is_written_can_be_trained_on(photos, built):
    """`finetune` reads each line, and its images lead to the pictures."""
    captioned(photos, 5)
    found = read_data(built().out)
    assert [sample.prompt for sample in found.samples] == [f"picture {number}" for number in range(5)]
    with pytest.raises(DataError):
        read_data(photos)
