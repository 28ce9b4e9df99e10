from __future__ import annotations

from pathlib import Path

import pytest
from mobileo_cli import output_paths

from mobileo_mlx.errors import ExistsError, OptionError, OutputError


@pytest.fixture(autouse=True)
def _inside(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


def planned(pattern: str | None, prompt: str = "A red Cat!", seeds: tuple[int, ...] = (7,)) -> list[str]:
    return [str(path) for path in output_paths.plan(pattern, prompt=prompt, model="dir/My-Model.v2", seeds=seeds)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red Cat!", "a-red-cat"),
        ("../../etc/passwd", "etc-passwd"),
        ("snake_case  and\nlines", "snake-case-and-lines"),
        ("Ärger über 猫", "ärger-über-猫"),
        ("!?", "image"),
        ("नमस्ते दुनिया", "नमस्ते-दुनिया"),
        ("สวัสดีชาวโลก", "สวัสดีชาวโลก"),
        ("e\u0301te\u0301 \u0301x", "\xe9t\xe9-x"),
        ("I ❤\ufe0f 1\ufe0f cat", "i-1-cat"),
        ("bytes that are not UTF-8: \udcff", "bytes-that-are-not-utf-8"),
        ("word " * 40, "word-" * 9 + "wor"),
    ],
)
def test_slug(text: str, expected: str) -> None:
    assert output_paths.slug(text) == expected


def test_longest_slug_fits_into_a_file_name() -> None:
    path = Path(output_paths.slug("𠀀" * 500) + f"-{2**64}-100.png")
    path.touch()
    assert path.exists()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (None, "a-red-cat-7.png"),
        ("cat.png", "cat.png"),
        ("cat", "cat.png"),
        ("v1.5", "v1.5.png"),
        ("cat.jpg", "cat.jpg"),
        ("{seed}.JPEG", "7.JPEG"),
        ("cat.webp", "cat.webp"),
        ("-", "-"),
        ("./-", "-.png"),
        ("~nobody-of-this-name/cat.png", None),
        ("CAT.PNG", "CAT.PNG"),
        ("{index:03}-{seed}-{prompt}-{model}.png", "001-7-a-red-cat-my-model-v2.png"),
        ("{{{seed}}}.png", "{7}.png"),
        ("{seed:05}-{seed:x}-{prompt:.5}-{model:_<6.2}.png", "00007-7-a-red-my____.png"),
        (".", "a-red-cat-7.png"),
        ("folder", "folder/a-red-cat-7.png"),
        ("folder/", "folder/a-red-cat-7.png"),
    ],
)
def test_patterns(pattern: str | None, expected: str | None) -> None:
    Path("folder").mkdir()
    if expected is None:  # a folder that is not there
        with pytest.raises(OutputError, match="~nobody-of-this-name"):
            planned(pattern)
        return
    assert planned(pattern) == [expected]


def test_one_name_per_seed() -> None:
    assert planned("{index}-{seed}.png", seeds=(5, 9)) == ["1-5.png", "2-9.png"]


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("{promt}.png", "{prompt}"),
        ("{}.png", "{seed}"),
        ("{prompt.__class__}.png", "prompt.__class__"),
        ("{seed[0]}.png", "seed[0]"),
        ("{seed.png", "{seed.png"),
        ("{prompt:03d}.png", "{prompt:03d}.png"),
        ("{seed:99999999999d}.png", "{seed:010}"),
        ("{seed:.99999999f}.png", "{seed:010}"),
        ("{seed:{seed}}.png", "{seed:010}"),
        ("{seed:c}.png", "{seed:010}"),
        ("cat.gif", ".png"),
        ("{seed}.TIFF", ".png"),
    ],
)
def test_patterns_that_cannot_be(pattern: str, named: str) -> None:
    with pytest.raises(OptionError) as error:
        planned(pattern)
    assert named in str(error.value)
    assert pattern in str(error.value)


@pytest.mark.parametrize("pattern", ["nowhere/cat.png", "nowhere/", "{model}/cat.png", "n" * 300])
def test_places_that_cannot_be(pattern: str) -> None:
    with pytest.raises(OutputError):
        planned(pattern)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_device_is_no_place_for_an_image(overwrite: bool) -> None:
    with pytest.raises(OutputError, match="'/dev/null' is not a regular file; name a file, or - for standard output"):
        output_paths.plan("/dev/null", prompt="a cat", model="tiny", seeds=[1], overwrite=overwrite)


def test_a_free_name_is_found() -> None:
    path = Path("cat.png")
    assert output_paths.free(path) == path
    path.touch()
    assert output_paths.free(path) == Path("cat-1.png")
    Path("cat-1.png").symlink_to("nowhere")
    assert output_paths.free(path) == Path("cat-2.png")
    assert output_paths.free(path, overwrite=True) == path


def test_a_name_that_another_process_takes_meanwhile() -> None:
    def write(path: Path) -> None:
        tried.append(str(path))
        path.touch()
        if len(tried) < 3:
            raise ExistsError("somebody was quicker")

    tried: list[str] = []
    assert output_paths.write_free(Path("cat.png"), write) == Path("cat-2.png")
    assert tried == ["cat.png", "cat-1.png", "cat-2.png"]


def test_standard_output_takes_one_image_and_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="takes one image, and there are 2"):
        planned("-", seeds=(1, 2))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(OptionError, match="is a terminal"):
        planned("-")


def test_webp_where_pillow_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    assert planned("cat.jpg") == ["cat.jpg"]
    with pytest.raises(OptionError, match="end the name with"):
        planned("cat.webp")


def test_a_run_never_replaces_its_own_images() -> None:
    path = Path("cat.png")
    path.touch()
    assert output_paths.free(path, overwrite=True, taken={path}) == Path("cat-1.png")
