"""What is said of pictures, in each format, and which of several counts."""

from __future__ import annotations

import json
import os

import pytest

from mobileo_mlx.training.data import read_data
from mobileo_mlx.training.quadruplets import DataError

from .conftest import picture


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def test_texts_beside_pictures(photos, built):
    picture(photos / "cat.png", 1)
    (photos / "cat.txt").write_bytes("\ufeffa  cat\r\non a mat\n".encode())
    picture(photos / "sub" / "dog.JPG", 2)
    (photos / "sub" / "dog.caption").write_text("a dog")
    (photos / "sub" / "dog.qna.txt").write_text("Q: What is it? A: A dog.\r\nQ: How many?\r\nA: One.\r\n")
    found = built()
    assert found.lines == [
        {
            "prompt": "a cat on a mat",
            "image": "photos/cat.png",
            "question": "Describe the image.",
            "answer": "a cat on a mat",
        },
        {
            "prompt": "a dog",
            "image": "photos/sub/dog.JPG",
            "qa": [{"question": "What is it?", "answer": "A dog."}, {"question": "How many?", "answer": "One."}],
        },
    ]
    assert len(read_data(found.out).samples) == 2


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_tables_of_imagefolder(photos, built, name):
    picture(photos / "train" / "a b.png", 1)
    picture(photos / "train" / "b.png", 2)
    rows = [("a b.png", 'a, "b"', ""), ("b.png", "", "question?"), ("gone.png", "x", ""), ("../../up.png", "x", "")]
    if name == "metadata.csv":
        lines = [
            "file_name,text,question,answer",
            '"a b.png","a, ""b""",,',
            "b.png,,question?,yes",
            "gone.png,x,,",
            "../../up.png,x,,",
        ]
    else:
        lines = [
            json.dumps({"file_name": file, "text": text, "question": q, "answer": "yes"}) for file, text, q in rows
        ]
        lines += ["{not json", "7", json.dumps({"file_name": "b.png"})]
    (photos / "train" / name).write_text("\n".join(lines) + "\n")
    (photos / "train" / "b.txt").write_text("from the text beside it")
    found = built()
    assert found.prompts == {"train/a b.png": 'a, "b"', "train/b.png": "from the text beside it"}
    assert found.samples[1].qa[0].question == "question?"
    start = f"train/{name}, line {4 if name.endswith('csv') else 3}"
    reasons = [sentence for kind, sentence in found.left_out if kind == "text"]
    assert reasons[0] == f"{start}: names 'gone.png', and there is no such file in the folder"
    assert "'../../up.png', which is outside of the folder" in reasons[1]
    assert len(reasons) == (2 if name.endswith("csv") else 5)


def test_columns_of_captions_are_usual_ones_or_named(photos, built):
    for number, column in enumerate(("text", "prompt", "caption", "description", "titel")):
        picture(photos / f"{column}.png", number)
    rows = [{"file_name": f"{name}.png", name: f"by {name}"} for name in ("text", "prompt", "caption", "description")]
    rows += [{"file_name": "titel.png", "titel": "by titel"}]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert set(built().prompts.values()) == {f"by {name}" for name in ("text", "prompt", "caption", "description")}
    assert built(text_column="titel").prompts == {"titel.png": "by titel"}


def test_conversations(photos, built):
    for number, name in enumerate(("one", "two", "three")):
        picture(photos / "images" / f"{name}.jpg", number)

    def entry(image, *turns):
        roles = ("human", "gpt") * len(turns)
        return {"image": image, "conversations": [{"from": r, "value": v} for r, v in zip(roles, turns, strict=False)]}

    write_json(
        photos / "llava.json",
        [
            entry("images/one.jpg", "<image>\nProvide a brief description of the given image.", "one thing"),
            entry("one.jpg", "How many?\n<image>", "one", "Sure?", "yes"),
            entry("two.jpg", "How many?", "two"),  # nothing describes it
            entry("gone.jpg", "How many?", "two"),
            {"id": 4, "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hello"}]},
            {
                "images": ["three.jpg"],
                "messages": [{"role": "user", "content": "Summarize it."}, {"role": "assistant", "content": "3"}],
            },
        ],
    )
    found = built()
    assert found.prompts == {"images/one.jpg": "one thing", "images/three.jpg": "3"}
    assert [(qa.question, qa.answer) for qa in found.samples[0].qa] == [
        ("Provide a brief description of the given image.", "one thing"),
        ("How many?", "one"),
        ("Sure?", "yes"),
    ]
    assert found.left_out == [
        ("text", "llava.json: names 1 pictures that are not in the folder; the first one is 'gone.jpg'"),
        ("without text", "images/two.jpg: it has no caption; write one to 'two.txt', or let a model, with --model"),
    ]


def test_captions_of_coco_from_elsewhere(photos, built, tmp_path):
    picture(photos / "val2017" / "000000000001.jpg", 1)
    value = {
        "images": [{"id": 1, "file_name": "000000000001.jpg"}, {"id": 2, "file_name": "000000000002.jpg"}],
        "annotations": [{"image_id": i, "caption": f"caption {k} of {i} "} for k in range(2) for i in (1, 2)],
    }
    write_json(tmp_path / "captions.json", value)
    assert built(annotations=(tmp_path / "captions.json",)).prompts == {"val2017/000000000001.jpg": "caption 0 of 1"}
    several = built(annotations=(tmp_path / "captions.json",), all_captions=True, out="all.jsonl")
    assert [sample.prompt for sample in several.samples] == ["caption 0 of 1", "caption 1 of 1"]
    assert len({sample.id for sample in several.samples}) == 2


def test_the_first_source_that_says_something_counts(photos, built):
    """Captions: a text beside the picture, tables, conversations, COCO's; questions by themselves."""
    picture(photos / "a.png", 1)
    conversation = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": "conversation"}]
    write_json(photos / "chat.json", [{"image": "a.png", "conversations": conversation}])
    coco = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "coco"}]}
    write_json(photos / "coco.json", coco)
    (photos / "metadata.csv").write_text("file_name,text\na.png,table\n")
    (photos / "a.txt").write_text("beside")
    for expected, file in (("beside", "a.txt"), ("table", "metadata.csv"), ("conversation", "chat.json"), ("coco", "")):
        found = built()
        assert found.prompts == {"a.png": expected}
        assert found.samples[0].qa[0].answer == ("conversation" if (photos / "chat.json").exists() else "coco")
        if file:
            (photos / file).unlink()


def test_edits_by_name_and_by_column(photos, built):
    for number, name in enumerate(("a.png", "a_edit.png", "a_edit-2.jpg", "b.png", "c.png", "d_edit.png", "e.png")):
        picture(photos / name, number)
    (photos / "a_edit.txt").write_text("make it green")
    (photos / "a_edit.caption").write_text("a green picture")
    (photos / "a_edit-2.txt").write_text("make it blue")
    (photos / "d_edit.txt").write_text("it has no original, so this is a caption")
    row = {"file_name": "c.png", "source_image": "b.png", "instruction": "make it cyan", "caption": "cyan"}
    (photos / "metadata.jsonl").write_text(json.dumps(row))
    found = built()
    edits = {s.picture.path: (s.source.path if s.source else "", s.prompt, s.qa[0].answer) for s in found.samples}
    assert edits == {
        "a_edit.png": ("a.png", "make it green", "a green picture"),
        "c.png": ("b.png", "make it cyan", "cyan"),
        "d_edit.png": ("", "it has no original, so this is a caption", "it has no original, so this is a caption"),
    }
    assert [sentence.split(": ", 1)[0] for _, sentence in found.left_out] == ["e.png", "a_edit-2.jpg"]
    without = built(questions="none", out="without.jsonl")
    assert {s.picture.path: s.prompt for s in without.samples}["a_edit-2.jpg"] == "make it blue"
    assert all("question" not in line and "qa" not in line for line in without.lines)
    assert read_data(without.out, questions=False).edits == 3
    other = built(edit_suffix="", questions="none", out="other.jsonl")
    assert [s.picture.path for s in other.samples if s.source] == ["c.png"]


def test_what_systems_put_beside_pictures_is_passed_over(photos, built):
    picture(photos / "a.png")
    (photos / "a.txt").write_text("a")
    for name in ("._a.png", ".DS_Store", "__MACOSX/._a.png", "Thumbs.db", ".hidden/b.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"\0\5\26\7")
    found = built()
    assert found.left_out == []
    assert found.build.folder.pictures == ["a.png"]


def test_broken_pictures_are_named_and_left_out(photos, built):
    picture(photos / "a.png")
    whole = picture(photos / "cut.png", 3).read_bytes()
    (photos / "cut.png").write_bytes(whole[:60])
    (photos / "empty.jpg").touch()
    os.mkfifo(photos / "pipe.png")
    picture(photos / "cut_edit.png", 5)
    for name in ("a", "cut", "empty", "cut_edit"):
        (photos / f"{name}.txt").write_text(name)
    found = built()
    assert [s.picture.path for s in found.samples] == ["a.png"]
    assert [sentence.split(" (")[0] for _, sentence in found.left_out] == [
        "pipe.png: is not a regular file",
        "cut.png: it is damaged or cut short",
        "empty.jpg: it is empty",
        "cut_edit.png: it is an edit of 'cut.png', which can't be read",
    ]
    assert {kind for kind, _ in found.left_out} == {"unreadable"}
    names = (photos.parent / "data.build" / "left-out.txt").read_text().splitlines()
    assert names[1].startswith("unreadable: cut.png: it is damaged")


def test_hostile_names_and_links(photos, built, tmp_path):
    names = ["new\nline.png", "data:x.png", "~.png", 'quo"te.png', "<b>.png", "ünï.png"]
    for number, name in enumerate(names):
        picture(photos / name, number)
        (photos / f"{name[:-4]}.txt").write_text(f"picture {number}")
    outside = picture(tmp_path / "secret.png", 50)
    (photos / "link.png").symlink_to(outside)
    (photos / "inside.png").symlink_to(photos / "ünï.png")
    (photos / "round").symlink_to(photos)
    (photos / "nowhere.png").symlink_to(photos / "gone")
    (photos / "link.txt").write_text("no")
    (photos / "inside.txt").write_text("a link inside")
    found = built(duplicates="keep")
    assert sorted(found.prompts) == sorted([*names, "inside.png"])
    read = read_data(found.out)
    assert sorted(sample.image.path.name for sample in read.samples) == sorted([*names, "inside.png"])
    assert [sentence for _, sentence in found.left_out] == [
        "link.png: is a link that leads out of the folder; put the file itself there",
        "nowhere.png: is a link that leads nowhere",
        "round: is a link to a folder; put the folder itself there",
    ]


def test_names_are_found_in_either_form_of_unicode(photos, built):
    """Lists written elsewhere have an umlaut in one character, and folders copied from a Mac in two."""
    decomposed = "a\u0308.png"
    picture(photos / decomposed)
    (photos / "metadata.jsonl").write_text(json.dumps({"file_name": "\xe4.png", "text": "an umlaut"}))
    found = built()
    assert found.prompts == {decomposed: "an umlaut"}
    assert read_data(found.out).samples


def test_a_name_that_is_not_utf_8_is_left_out(photos, built):
    picture(photos / "a.png")
    (photos / "a.txt").write_text("a")
    try:
        os.rename(picture(photos / "b.png", 1), os.fsencode(photos) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    found = built()
    assert list(found.prompts) == ["a.png"]
    assert "not UTF-8" in found.left_out[0][1]


def test_a_list_that_is_named_has_to_be_one(photos, built, tmp_path):
    picture(photos / "a.png")
    (photos / "a.txt").write_text("a")
    (photos / "other.json").write_text('{"a": 1}')
    assert built().left_out == []
    (photos / "none.json").write_text("{")
    for name, words in (("other", "nor COCO's captions"), ("gone", "can't be read"), ("none", "is not JSON")):
        with pytest.raises(DataError, match=rf"{name}\.json' .*{words}"):
            built(annotations=(photos / f"{name}.json",))


def test_an_open_quote_does_not_take_in_the_rows_that_follow(photos, built):
    for number, name in enumerate("abc"):
        picture(photos / f"{name}.png", number)
    (photos / "metadata.csv").write_text('file_name,text\na.png,an a\nb.png,"a b\nc.png,a c\n')
    found = built()
    assert found.prompts == {"a.png": "an a"}
    assert (
        "metadata.csv, line 2: is followed by something that is no CSV (unexpected end of data)" in found.left_out[0][1]
    )


def test_an_empty_folder_is_refused(photos, built, tmp_path):
    from mobileo_mlx.datasets.build import Build, Options

    build = Build(photos, tmp_path / "x.jsonl", Options())
    with pytest.raises(DataError, match=r"'.*photos' holds no pictures; name the folder"):
        build.write(build.samples())
    build.close()
    with pytest.raises(DataError, match="is not a folder"):
        Build(tmp_path / "gone", tmp_path / "y.jsonl", Options())
