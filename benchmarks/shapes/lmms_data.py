"""Questions about scenes in the formats of the seven benchmarks that lmms-eval runs, for runs without a network.

The folders have the names and the layout of `lmms-lab-encoder`'s data sets, so that what reads those reads these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobileo_mlx.atomic import atomic_folder
from mobileo_mlx.errors import OptionError

from .questions import Question, sample_question
from .text import NUMBERS
from .world import BACKGROUNDS, WORLD, pick, render

POPE_PARTS = ("random", "popular", "adversarial")
SUBJECTS = ("Art", "Math")  # of MMMU, whose summary knows no others
_KINDS = ("colour", "shape", "count", "background")
_ANSWERS = 10  # of TextVQA, by as many people
_GQA_README = """---
configs:
- config_name: testdev_balanced_instructions
  data_files:
  - split: testdev
    path: testdev_balanced_instructions/testdev-*.parquet
- config_name: testdev_balanced_images
  data_files:
  - split: testdev
    path: testdev_balanced_images/testdev-*.parquet
---
"""

Row = dict[str, Any]


def write_lmms_data(folder: str | Path, count: int, *, seed: int = 0, size: int = 64) -> Path:
    """Writes a data set for each of the seven benchmarks into a new folder.

    Args:
        folder: must be new or empty.
        count: questions of each.
        seed: of everything.
        size: of the images, in pixels.

    Returns:
        the folder.

    Raises:
        OptionError: the package datasets is missing, or the count is below 1.
        ExistsError, OutputError: the folder can't be written.
    """
    try:
        import datasets
    except ImportError as error:
        raise OptionError("this needs the package datasets: pip install datasets.") from error
    if count < 1:
        raise OptionError("at least 1 question of each kind is needed.")
    datasets.disable_progress_bars()
    rng = np.random.default_rng(seed)
    with atomic_folder(folder) as target:
        for name, make in _FORMATS.items():
            rows = [make(rng, number, size) for number in range(count)]
            path = target / name
            if path.parts[-3] == "GQA":  # it keeps its pictures apart
                images = [{"id": row["imageId"], "image": row.pop("image")} for row in rows]
                _write(datasets, path.parent.with_name("testdev_balanced_images") / path.name, images)
            _write(datasets, path, rows)
        (target / "GQA" / "README.md").write_text(_GQA_README, encoding="utf-8")
    return Path(folder)


def _write(datasets: Any, path: Path, rows: list[Row]) -> None:
    """Writes rows to a parquet file, pictures as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {name: _feature(datasets, next(row[name] for row in rows if row[name] is not None)) for name in rows[0]}
    datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).to_parquet(f"{path}-00000-of-00001.parquet")


def _feature(datasets: Any, value: Any) -> Any:
    if isinstance(value, list):
        return datasets.Sequence(_feature(datasets, value[0]))
    return datasets.Image() if isinstance(value, Image.Image) else datasets.Value("string")


def _mmmu(rng: np.random.Generator, number: int, size: int) -> Row:
    """With four options; every fourth question is open, and every third mentions the second picture."""
    question = _short(rng)
    options, letter = _options(rng, question)
    is_open, has_second = number % 4 == 3, number % 3 == 2
    second = _picture(_short(rng), size)
    more = " It is about the first picture, not <image 2>." if has_second else ""
    return {
        "id": f"validation_{SUBJECTS[number % len(SUBJECTS)]}_{number + 1}",
        "question": f"<image 1> {question.text}{more}",
        "options": repr([] if is_open else options),
        "image_1": _picture(question, size),
        "image_2": second,
        "answer": question.answer if is_open else letter,
        "question_type": "open" if is_open else "multiple-choice",
    }


def _textvqa(rng: np.random.Generator, number: int, size: int) -> Row:
    """Of the ten answers one in four is another."""
    question = _short(rng)
    others, _ = _options(rng, question)
    answers = [others[k % 4] if k % 4 == 0 else question.answer for k in range(_ANSWERS)]
    return {**_asked(question, number, size), "answers": answers, "answer": question.answer}


def _mmvet(rng: np.random.Generator, number: int, size: int) -> Row:
    return {**_asked(_short(rng), number, size), "capability": ("rec", "rec,know", "ocr,spat")[number % 3]}


def _seed(rng: np.random.Generator, number: int, size: int) -> Row:
    """Every fifth is about a video, of which the first frame is the one that is asked about."""
    question = _short(rng)
    options, letter = _options(rng, question)
    is_video = number % 5 == 4
    frames = [_picture(question, size), *(_picture(_short(rng), size) for _ in range(2 * is_video))]
    return {
        **_asked(question, number, size),
        "image": frames,
        "answer": letter,
        "data_type": "video" if is_video else "image",
        **{f"choice_{name}": option for name, option in zip("abcd", options, strict=True)},
    }


def _chartqa(rng: np.random.Generator, number: int, size: int) -> Row:
    return {**_asked(_short(rng), number, size), "type": ("human_test", "augmented_test")[number % 2]}


def _pope(rng: np.random.Generator, number: int, size: int) -> Row:
    question = sample_question(rng, "presence")
    return {**_asked(question, number, size), "category": POPE_PARTS[number % len(POPE_PARTS)]}


def _gqa(rng: np.random.Generator, number: int, size: int) -> Row:
    return {**_asked(_short(rng), number, size), "imageId": f"n{number}"}


# The first file of each, without the end of its name.
_FORMATS: dict[str, Callable[[np.random.Generator, int, int], Row]] = {
    "MMMU/data/validation": _mmmu,
    "textvqa/data/validation": _textvqa,
    "MMVet/data/test": _mmvet,
    "SEED-Bench/data/test": _seed,
    "ChartQA/data/test": _chartqa,
    "POPE/data/test": _pope,
    "GQA/testdev_balanced_instructions/testdev": _gqa,
}


def _asked(question: Question, number: int, size: int) -> Row:
    return {
        "question_id": str(number),
        "question": question.text,
        "answer": question.answer,
        "image": _picture(question, size),
    }


def _short(rng: np.random.Generator) -> Question:
    return sample_question(rng, pick(rng, _KINDS))


def _options(rng: np.random.Generator, question: Question) -> tuple[list[str], str]:
    """The answer among three others of its kind, and its letter."""
    kinds = {"colour": WORLD.colours, "shape": WORLD.shapes, "count": NUMBERS, "background": BACKGROUNDS}
    others = [name for name in kinds[question.kind] if name != question.answer]
    options = [str(name) for name in rng.choice(others, size=3, replace=False)]
    place = int(rng.integers(4))
    options.insert(place, question.answer)
    return options, "ABCD"[place]


def _picture(question: Question, size: int) -> Image.Image:
    return Image.fromarray(render(question.scene, size))
