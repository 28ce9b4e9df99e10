"""What the task files in `tasks/` need beside lmms-eval's own functions; lmms-eval imports it."""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mobileo_mlx.files import expand

if TYPE_CHECKING:
    from PIL import Image

GQA = "lmms-lab-encoder/GQA"
DATA = "MOBILEO_EVAL_DATA"  # the variable that names a folder with the data sets, for those that are not on the hub


def pope_process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """What lmms-eval makes of an answer, and which of POPE's three parts it belongs to."""
    from lmms_eval.tasks.pope.utils import pope_process_results as process

    metrics = process(doc, results)
    return {**metrics, "pope_f1_mean": {**metrics["pope_f1_score"], "category": doc["category"]}}


def pope_aggregate_f1_mean(results: Sequence[dict[str, Any]]) -> float:
    """The mean of the F1 scores of POPE's three parts, which some papers give."""
    from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score

    parts: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        parts.setdefault(result["category"], []).append(result)
    return statistics.fmean(pope_aggregate_f1_score(part) for part in parts.values())


def gqa_doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The picture of a question, which GQA keeps apart from its questions.

    As lmms-eval 0.3.0; later versions copy the picture beside each question, 12,578 times.
    """
    images, index = _gqa_images()
    return [images[index[doc["imageId"]]]["image"].convert("RGB")]


@functools.cache
def _gqa_images() -> tuple[Any, dict[str, int]]:
    """All pictures, read when one is asked for, and the row of each."""
    from datasets import load_dataset

    folder = os.environ.get(DATA)
    source = str(expand(folder) / "GQA") if folder else GQA
    images = load_dataset(source, "testdev_balanced_images", split="testdev")
    return images, {name: row for row, name in enumerate(images["id"])}
