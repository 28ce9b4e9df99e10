"""`mobileo-mlx dataset` as a command, with a model that captions, answers and judges."""

from __future__ import annotations

import json

import pytest
from mobileo_cli.main import main
from PIL import Image

from benchmarks.shapes.world import Object, Scene, render

from .conftest import picture

SCENES = {"star": ("star", "red"), "circle": ("circle", "blue"), "cross": ("cross", "black")}


@pytest.fixture
def scenes(photos):
    """Pictures that `tiny` knows, without texts."""
    for name, (shape, colour) in SCENES.items():
        Image.fromarray(render(Scene((Object(shape, colour, 4, 4),)))).save(photos / f"{name}.png")
    return photos


@pytest.fixture
def run(photos, tmp_path, capsys, monkeypatch):
    """Runs `dataset build` of the folder, and returns status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*options, command="build", arguments=None):
        given = ["photos", "--out", "data.jsonl"] if arguments is None else arguments
        status = main(["dataset", command, *map(str, given), *map(str, options)])
        return status, *capsys.readouterr()

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


MODEL = ("--model", "tiny", "--describe", "describe the image.")


def test_a_model_captions_and_answers_what_has_no_text(scenes, run, tmp_path, monkeypatch):
    (scenes / "star.txt").write_text("a picture of a star")
    status, out, err = run(*MODEL, "--ask", "what shape is the object?")
    assert (status, out) == (0, "data.jsonl: 3 samples\n"), err
    found = lines(tmp_path / "data.jsonl")
    assert {line["image"]: line["prompt"] for line in found} == {
        "photos/circle.png": "a blue circle",
        "photos/cross.png": "a black cross",
        "photos/star.png": "a picture of a star",
    }
    assert found[0]["qa"] == [
        {"question": "what shape is the object?", "answer": "circle"},
        {"question": "describe the image.", "answer": "a blue circle"},
    ]
    # Without a model what it has said is known, whatever has become of the names.
    (scenes / "circle.png").rename(scenes / "round.png")
    picture(scenes / "new.png", 3)
    (scenes / "cross.png").unlink()
    from mobileo_cli import options

    load, loaded = options.load, []
    monkeypatch.setattr(options, "load", lambda **how: loaded.append(how) or load(**how))
    status, out, err = run(*MODEL, "--overwrite")
    assert status == 0, err
    assert len(loaded) == 1
    pictures = {line["image"] for line in lines(tmp_path / "data.jsonl")}
    assert pictures == {"photos/new.png", "photos/round.png", "photos/star.png"}
    again = lines(tmp_path / "data.build" / "answers-2" / "results.jsonl")
    assert len(again) == 1
    status, out, err = run(*MODEL, "--overwrite")
    assert (status, len(loaded)) == (0, 1), err

    status, out, err = run("--model", "tiny", "--overwrite", "--max-tokens", "3")
    assert status == 2
    assert "holds answers with another --max-tokens" in err


def test_keep_passing_and_review(scenes, run, tmp_path):
    (scenes / "star.txt").write_text("a blue star")  # it is red
    (scenes / "circle.txt").write_text("a blue circle")
    (scenes / "cross.txt").write_text("a black cross")
    status, out, err = run(*MODEL[:2], "--keep-passing", "--questions", "checks", "--review", "page.html", "--json")
    assert status == 0, err
    report = json.loads(out)
    assert report["files"] == {"data.jsonl": 2}
    (left_out,) = report["left_out_samples"]
    assert (left_out["kind"], left_out["name"]) == ("did not pass", "star.png")
    assert "and said '" in left_out["reason"]
    first = lines(tmp_path / "data.jsonl")[0]
    assert {"question": "what color is the circle?", "answer": "blue"} in first["qa"]
    assert "circle.png" in (tmp_path / "page.html").read_text()
    kept = {sample["id"]: {"keep": sample["path"] == "cross.png"} for sample in page_samples(tmp_path / "page.html")}
    (tmp_path / "kept.json").write_text(json.dumps({"format": "mobileo-mlx kept 1", "samples": kept}))
    status, out, err = run("--keep", "kept.json", "--overwrite")
    assert (status, out) == (0, "data.jsonl: 1 sample\n"), err
    assert [line["image"] for line in lines(tmp_path / "data.jsonl")] == ["photos/cross.png"]


def page_samples(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text.split('id="samples">')[1].split("</script>")[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ask", "why?"), "--ask needs somebody who answers"),
        (("--keep-passing",), "--keep-passing needs a model"),
        (("--keep", "gone.json"), "'gone.json' can't be read"),
        (("--split", "2"), "--split 2"),
        (("--model", "tiny", "--servers", "http://127.0.0.1:9"), "--model is a matter of the servers"),
    ],
)
def test_what_can_not_be_is_said_in_one_sentence(scenes, run, tmp_path, options, words):
    status, out, err = run(*options)
    assert (status, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert not (tmp_path / "data.jsonl").exists()


def test_check_finds_what_finetune_finds(photos, run, tmp_path, tiny_model):
    picture(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    whole = '{"prompt": "p", "image": "a.png", "question": "q", "answer": "a"}'
    rows = [whole, "{", '{"prompt": "p", "image": "a.png"}', whole.replace("a.png", "bad.png")]
    (tmp_path / "bad.jsonl").write_text("\n".join(rows))
    status, out, err = run(command="check", arguments=["bad.jsonl"])
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == "mobileo-mlx: error: 'bad.jsonl' can't be trained on: there are 3 problems."
    assert [line.split(":")[0] for line in err.splitlines()[:-1]] == ["line 2", "line 3", "line 4"]

    from mobileo_mlx.training.options import Options
    from mobileo_mlx.training.quadruplets import DataError
    from mobileo_mlx.training.trainer import FinetuneRun

    with pytest.raises(DataError) as caught:
        FinetuneRun.prepare("bad.jsonl", tiny_model, Options())
    assert err.splitlines()[:-1] == [str(problem) for problem in caught.value.problems]
    status, out, err = run("--json", command="check", arguments=["bad.jsonl"])
    assert status == 2
    assert [problem["name"] for problem in json.loads(out)["problems"]] == ["line 2", "line 3", "line 4"]
    # Stages without questions do not need them.
    (tmp_path / "pairs.jsonl").write_text(rows[0] + "\n" + rows[2])
    assert run("--train", "sft", command="check", arguments=["pairs.jsonl"])[0] == 0
    assert run(command="check", arguments=["pairs.jsonl"])[0] == 2
    assert run(command="check", arguments=["gone.jsonl"])[0] == 2


@pytest.mark.parametrize("form", ["jsonl", "array", "gzip", "shard"])
def test_check_counts_each_form(run, tmp_path, form):
    import gzip
    import tarfile

    picture(tmp_path / "a.png")
    row = {"prompt": "p", "image": "a.png", "qa": [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]}
    name = {"jsonl": "data.jsonl", "array": "data.json", "gzip": "data.jsonl.gz", "shard": "data.tar"}[form]
    text = json.dumps([row] if form == "array" else row)
    if form == "shard":
        (tmp_path / "p.txt").write_text("p")
        (tmp_path / "q.txt").write_text("Q: q A: a\nQ: r A: b")
        members = {"p.txt": "gen_prompt.txt", "q.txt": "qna.txt", "a.png": "gen_image.png"}
        with tarfile.open(tmp_path / name, "w") as tar:
            for file, member in (*members.items(), ("a.png", "und_image.png")):
                tar.add(tmp_path / file, f"1.{member}")
    else:
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if form == "gzip" else text.encode())
    status, out, err = run("--json", command="check", arguments=[name])
    assert status == 0, err
    assert json.loads(out) == {"samples": 1, "edits": 0, "questions": 2, "default_questions": 0, "problems": []}
