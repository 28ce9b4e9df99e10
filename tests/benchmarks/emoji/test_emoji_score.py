import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mobileo_mlx
from benchmarks.emoji import augment, classifier, score
from benchmarks.emoji.__main__ import main
from benchmarks.emoji.classifier import classes
from benchmarks.emoji.edits import Edit
from benchmarks.emoji.hero import hero
from benchmarks.emoji.judge import Verdict, judge, spec_of
from benchmarks.emoji.rules import Picture, counted
from benchmarks.emoji.score import score_answers, score_drawing, score_edits, true_pictures
from benchmarks.emoji.sprites import SIZES, emoji, sprites
from benchmarks.emoji.text import Caption, Named, Spec
from benchmarks.emoji.world import BACKGROUNDS, CENTRE, COLUMN, ROW, SIDE, Scene, Thing, render_batch
from benchmarks.shapes.report import Score

COUNT = 6


@pytest.fixture(autouse=True)
def data(made_up: Path) -> Path:
    return made_up


def by_colour(pictures: np.ndarray) -> np.ndarray:
    """Knows the made-up squares by the colour of their middle."""
    known = sprites("normal")[:, 52, 52, :3].astype(np.float32) / 255
    middle = pictures[:, augment.SIDE // 2, augment.SIDE // 2]
    order = np.argsort(np.abs(middle[:, None] - known).sum(axis=-1), axis=1)
    # Each class once, where it comes first.
    return np.stack([list(dict.fromkeys(classes()[one].tolist())) for one in order])


def index_of(name: str, tone: str | None = None) -> int:
    return next(i for i, each in enumerate(emoji(toned=True)) if (each.name, each.tone) == (name, tone))


def verdict(asked: Scene, drawn: Scene, **spec: Any) -> Verdict:
    (found,) = judge(by_colour, [(Spec(**spec) if spec else spec_of(asked), asked)], true_pictures([drawn]))
    return found


def things(*names: str, places: Sequence[tuple[int, int]] = (CENTRE,), size: str = "normal") -> tuple[Thing, ...]:
    return tuple(Thing(index_of(name), x, y, size) for name, (x, y) in zip(names, places, strict=True))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_true_pictures_are_read_without_fault(background: str) -> None:
    for index in range(0, len(emoji(toned=True)), 5):
        for size in SIZES:
            thing = Thing(index, *CENTRE, size)
            picture = Picture(render_batch([Scene((thing,), background)])[0])
            assert (picture.background, picture.size_of(thing)) == (background, size)
            assert picture.stray([thing]) == 0
        for number in (2, 3, 4):
            scene = counted(thing, number, background)
            picture = Picture(render_batch([scene])[0])
            assert picture.number_of(thing) == number
            assert picture.stray(scene.things) == 0
    for places in (ROW, COLUMN):
        scene = Scene(things("owl", "dog", places=places, size="small"), background)
        assert Picture(render_batch([scene])[0]).places_of_two() == places


def test_what_does_not_fill_its_square_or_lies_elsewhere_is_not_clean() -> None:
    scene = Scene(things("owl", "dog", places=ROW, size="small"), "blue")
    for drawn in (Scene(scene.things[:1], "blue"), Scene((*scene.things, Thing(0, 64, 112, "small")), "blue")):
        assert not verdict(scene, drawn).clean
    assert Picture(np.full((SIDE, SIDE, 3), 255, np.uint8)).stray(scene.things) == 1


def test_corners_of_no_or_several_colours_are_no_background() -> None:
    pixels = render_batch([Scene(things("owl"))])[0]
    pixels[:, : SIDE // 2] = BACKGROUNDS["black"]
    assert Picture(pixels).background is None
    assert Picture(np.full((SIDE, SIDE, 3), (0, 255, 0), np.uint8)).background is None


def test_pictures_of_another_size_are_read_too() -> None:
    scene = Scene(things("owl"), "green")
    image = true_pictures([scene])[0].resize((256, 256)).convert("RGBA")
    (found,) = judge(by_colour, [(spec_of(scene), scene)], [image])
    assert found.right


def test_each_fault_is_seen() -> None:
    owl = Scene(things("owl"))
    right = verdict(owl, owl)
    assert right.right
    assert right.seen == ("owl",)
    assert not verdict(owl, Scene(things("dog"))).things
    assert verdict(owl, Scene(things("dog"))).background
    assert not verdict(owl, Scene(things("owl"), "blue")).background
    assert not verdict(owl, Scene(things("owl", size="large"))).size
    assert verdict(owl, Scene(things("owl", size="large")), things=(Named(frozenset({index_of("owl")})),)).size
    two = counted(owl.things[0], 2, "white")
    three = verdict(two, counted(owl.things[0], 3, "white"))
    assert (three.number, three.things, three.right) == (False, True, False)


def test_emoji_of_the_same_picture_are_the_same() -> None:
    assert (classifier.looks() == np.arange(len(emoji()))).all()
    same = sprites("small").copy()
    same[index_of("dog")] = same[index_of("owl")]
    with pytest.MonkeyPatch.context() as patch:
        classifier.looks.cache_clear()
        patch.setattr(classifier, "sprites", lambda size: same)
        assert verdict(Scene(things("owl")), Scene(things("dog"))).things
    classifier.looks.cache_clear()
    assert not verdict(Scene(things("owl")), Scene(things("dog"))).things


def test_order_counts_where_it_was_asked_for() -> None:
    pair = Scene(things("owl", "dog", places=ROW, size="small"))
    turned = Scene(things("dog", "owl", places=ROW, size="small"))
    asked = tuple(Named(frozenset({thing.index})) for thing in pair.things)
    assert verdict(pair, turned, things=asked).right
    said = verdict(pair, turned, things=asked, relation="to the left of")
    assert (said.things, said.relation, said.right) == (True, False, False)
    column = Scene(things("owl", "dog", places=COLUMN, size="small"))
    assert verdict(column, column).right
    assert not verdict(column, pair).relation


def test_hands_are_right_in_the_tone_that_was_asked_for() -> None:
    dark, usual = (Thing(index_of("waving hand", tone), *CENTRE) for tone in ("dark", None))
    assert verdict(Scene((dark,)), Scene((dark,))).right
    found = verdict(Scene((dark,)), Scene((usual,)))
    assert (found.things, found.tone) == (True, False)
    every = frozenset(i for i, each in enumerate(emoji(toned=True)) if each.name == "waving hand")
    assert verdict(Scene((usual,)), Scene((dark,)), things=(Named(every),)).right


def truth(captions: Sequence[Caption], rng: np.random.Generator) -> list[Image.Image]:
    return true_pictures([one.scene for one in captions])


def noise(captions: Sequence[Any], rng: np.random.Generator) -> list[Image.Image]:
    return [Image.fromarray(rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)) for _ in captions]


def rows(parts: Any) -> dict[str, Score]:
    return {row.name: row for part in parts for row in part.rows}


def test_who_draws_right_has_every_point() -> None:
    scored = rows(score_drawing(truth, by_colour, COUNT, names_count=0))
    assert {name for name in scored if not name.startswith("(")} == {
        "names", "single", "background", "size", "tone", "two", "position", "count", "held out: two",
        "held out: position", "held out: count",
    }  # fmt: skip
    assert all(row.accuracy == 1 for row in scored.values())
    assert scored["names"].total == len(emoji())


def test_who_draws_noise_has_none() -> None:
    scored = rows(score_drawing(noise, by_colour, COUNT))
    assert all(row.right == 0 for name, row in scored.items() if not name.startswith("("))
    assert scored["(background)"].right == 0


def test_edits() -> None:
    def changed(edits: Sequence[Edit], rng: np.random.Generator) -> list[Image.Image]:
        return true_pictures([one.after for one in edits])

    def unchanged(edits: Sequence[Edit], rng: np.random.Generator) -> list[Image.Image]:
        return true_pictures([one.before for one in edits])

    assert all(row.accuracy == 1 for row in rows(score_edits(changed, by_colour, COUNT)).values())
    assert all(row.accuracy == 0 for row in rows(score_edits(unchanged, by_colour, COUNT)).values())


class Oracle:
    """A model that knows every sample, or that always draws and says the same."""

    default_size = (SIDE, SIDE)

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, knows: bool = True) -> None:
        self.scenes: dict[str, Scene] = {}
        self.answers: dict[tuple[str, bytes], str] = {}
        self.knows = knows
        for name, keep in (("sample_caption", self.keep_caption), ("sample_question", self.keep_question),
                           ("_by_name", self.keep_caption)):  # fmt: skip
            monkeypatch.setattr(score, name, self.watched(getattr(score, name), keep))

    def watched(self, sample: Callable[..., Any], keep: Callable[[Any], None]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            thing = sample(*arguments, **options)
            keep(thing)
            return thing

        return call

    def keep_caption(self, caption: Any) -> None:
        self.scenes[caption.text] = caption.scene

    def keep_question(self, question: Any) -> None:
        self.answers[question.text, render_batch([question.scene]).tobytes()] = question.answer

    def generate(self, prompt: str, *, seed: list[int]) -> Any:
        return SimpleNamespace(images=true_pictures([self.scenes[prompt]]) * len(seed))

    def ask(self, image: Image.Image, question: str, *, max_tokens: int) -> Any:
        known = self.answers.get((question, image.tobytes())) if self.knows else None
        return SimpleNamespace(text=f" {known or 'yes'}.")


def test_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle: Any = Oracle(monkeypatch)
    scored = rows(score_answers(oracle, COUNT))
    assert all(row.accuracy == 1 for row in scored.values())
    assert scored["name"].blank == scored["background"].blank == 0
    blind: Any = Oracle(monkeypatch, knows=False)
    assert all(row.right == row.blank for row in rows(score_answers(blind, COUNT)).values())


def test_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oracle = Oracle(monkeypatch)
    monkeypatch.setattr(mobileo_mlx.MobileO, "load", lambda name: oracle)
    monkeypatch.setattr(classifier, "load", lambda: None)
    monkeypatch.setattr(classifier, "rank", lambda model, pictures: by_colour(pictures))
    command = ["score", "--model", "m", "--n", "2", "--names", "3", "--only", "draw", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    value = json.loads((tmp_path / "out/score.json").read_text())
    assert {row["name"]: row["total"] for row in value["rows"]}["names"] == 3
    assert all(row["accuracy"] == 1 for row in value["rows"])
    assert "| draw | names" in (tmp_path / "out/score.md").read_text()
    assert Image.open(tmp_path / "out/sheet.png").width > 3 * SIDE
    assert main(command) == 2
    assert main(["score", "--model", "truth", "--n", "1", "--only", "edit"]) == 0
    capsys.readouterr()


def test_a_judge_that_is_not_trained_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--model", "truth"]) == 2
    assert "run `python -m benchmarks.emoji classifier`" in capsys.readouterr().err
    assert main(["score", "--model", "truth", "--n", "0"]) == 2


def test_data_that_is_not_fetched_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOBILEO_EMOJI", str(tmp_path))
    assert main(["score", "--model", "truth"]) == 2
    assert "run `python -m benchmarks.emoji fetch`" in capsys.readouterr().err


def test_true_pictures_through_an_autoencoder() -> None:
    scenes = [Scene(things("owl")), Scene(things("dog"))]
    images = true_pictures(scenes, mobileo_mlx.MobileO.load("tiny"))
    for image, true in zip(images, true_pictures(scenes), strict=True):
        # It knows white, but not the squares' colours.
        assert image.size == true.size
        assert Picture.of(image).background == "white"
        assert image.tobytes() != true.tobytes()
    assert main(["score", "--model", "tiny", "--autoencoder", "tiny"]) == 2


def test_hero() -> None:
    image = Image.new("RGB", (SIDE, SIDE), (0, 0, 255))
    page = np.asarray(hero(["a red apple on a blue background"] * 5, [image] * 5, columns=3))
    blue = (page == (0, 0, 255)).all(axis=-1).sum()
    assert blue == 5 * 192 * 192


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "BATCH", 32)


def test_the_classifier_learns_and_goes_on_where_it_stopped(
    small_batches: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = [report.loss for report in classifier.train(tmp_path / "whole", 40)]
    first = classifier.train(tmp_path / "parts", 40)
    part = [next(first).loss for _ in range(3)]
    assert part == whole[:3]
    assert whole[-1] < whole[0] - 1
    model = classifier.load()
    scenes = [Scene((Thing(index, *CENTRE),)) for index in range(len(emoji()))]
    cuts = np.stack([Picture(one).cut(Thing(0, *CENTRE)) for one in render_batch(scenes)])
    ranked = classifier.rank(model, cuts)
    assert sorted(ranked[0].tolist()) == list(range(len(emoji())))
    assert (ranked[:, 0] == np.arange(len(emoji()))).mean() > 0.5
    classifier.weights().unlink()


def test_degraded_pictures_are_the_same_for_the_same_numbers() -> None:
    indices = np.arange(24)
    first, second = (augment.augmented(indices, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (24, augment.SIDE, augment.SIDE, 3)
    assert (first == second).all()
    assert 0 <= first.min() < first.max() <= 1
    # The middle of a made-up square is still much of its colour.
    known = sprites("small")[:24, 32, 32, :3] / 255
    middle = first[:, 20:28, 20:28].mean(axis=(1, 2))
    assert np.abs(middle - known).mean() < 0.08


def test_worn_pictures_of_any_size_show_the_same() -> None:
    scenes = [Scene(things("red apple"), name) for name in ("white", "blue")] * 4
    clean = np.stack(true_pictures(scenes)) / np.float32(255)
    worn = augment.worn(clean.copy(), np.random.default_rng(1))
    assert worn.shape == clean.shape
    assert 0 <= worn.min() < worn.max() <= 1
    error = np.abs(worn - clean).mean(axis=(1, 2, 3))
    assert 0.001 < error.min() < error.max() < 0.1
