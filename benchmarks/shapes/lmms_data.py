"""Questions about scenes in the formats of POPE, GQA and MMMU, for lmms-eval without a network.

The folders have the names and the layout of `lmms-lab-encoder`'s data sets, so that what reads those reads these.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mobileo_mlx.atomic import atomic_folder
from mobileo_mlx.errors import OptionError

from .questions import Question, sample_question
from .text import NUMBERS
from .world import BACKGROUNDS, WORLD, Scene, pick, render

if TYPE_CHECKING:
    import datasets

POPE_PARTS = ("random", "popular", "adversarial")
SUBJECTS = ("Art", "Math")  # of MMMU, whose summary knows no others
_KINDS = ("colour", "shape", "count", "background")
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


def write_lmms_data(folder: str | Path, count: int, *, seed: int = 0, size: int = 64) -> Path:
    """Writes the folders `POPE`, `GQA` and `MMMU` into a new folder.

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
    rng = np.random.default_rng(seed)
    with atomic_folder(folder) as target:
        _write(datasets, target / "POPE" / "data" / "test", _pope(rng, count, size))
        questions, images = _gqa(rng, count, size)
        _write(datasets, target / "GQA" / "testdev_balanced_instructions" / "testdev", questions)
        _write(datasets, target / "GQA" / "testdev_balanced_images" / "testdev", images)
        (target / "GQA" / "README.md").write_text(_GQA_README, encoding="utf-8")
        _write(datasets, target / "MMMU" / "data" / "validation", _mmmu(rng, count, size))
    return Path(folder)


def _write(datasets: Any, path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows to a parquet file, pictures as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({name: _feature(datasets, name) for name in rows[0]})
    data: datasets.Dataset = datasets.Dataset.from_list(rows, features=features)
    data.to_parquet(f"{path}-00000-of-00001.parquet")


def _feature(datasets: Any, name: str) -> Any:
    return datasets.Image() if name in ("image", "image_1", "image_2") else datasets.Value("string")


def _pope(rng: np.random.Generator, count: int, size: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(count):
        question = sample_question(rng, "presence")
        rows.append(
            {
                "id": str(i),
                "question_id": str(i),
                "question": question.text,
                "answer": question.answer,
                "image_source": f"shapes_{i}",
                "image": _picture(question.scene, size),
                "category": POPE_PARTS[i % len(POPE_PARTS)],
            }
        )
    return rows


def _gqa(rng: np.random.Generator, count: int, size: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    questions, images = [], []
    for i in range(count):
        question = _short(rng)
        questions.append({"id": str(i), "imageId": f"n{i}", "question": question.text, "answer": question.answer})
        images.append({"id": f"n{i}", "image": _picture(question.scene, size)})
    return questions, images


def _mmmu(rng: np.random.Generator, count: int, size: int) -> list[dict[str, Any]]:
    """Questions with four options; every fourth is open, and every third shows a second picture, which is not asked."""
    rows = []
    for i in range(count):
        question = _short(rng)
        options, letter = _options(rng, question)
        is_open, second = i % 4 == 3, i % 3 == 2
        text = f"<image 1> {question.text}" + (" It is the first picture, not <image 2>." if second else "")
        rows.append(
            {
                "id": f"validation_{SUBJECTS[i % len(SUBJECTS)]}_{i + 1}",
                "question": text,
                "options": repr([] if is_open else options),
                "image_1": _picture(question.scene, size),
                "image_2": _picture(_short(rng).scene, size) if second else None,
                "answer": question.answer if is_open else letter,
                "question_type": "open" if is_open else "multiple-choice",
            }
        )
    return rows


def _short(rng: np.random.Generator) -> Question:
    return sample_question(rng, pick(rng, _KINDS))


def _options(rng: np.random.Generator, question: Question) -> tuple[list[str], str]:
    """The answer among three others of its kind, and its letter."""
    all_of_kind: dict[str, tuple[str, ...]] = {
        "colour": WORLD.colours,
        "shape": WORLD.shapes,
        "count": NUMBERS,
        "background": BACKGROUNDS,
    }
    others = [name for name in all_of_kind[question.kind] if name != question.answer]
    options = [str(name) for name in rng.choice(others, size=3, replace=False)]
    place = int(rng.integers(4))
    options.insert(place, question.answer)
    return options, "ABCD"[place]


def _picture(scene: Scene, size: int) -> Image.Image:
    return Image.fromarray(render(scene, size))
