"""The verdicts on a folder of GenEval's pictures, one after the other; each is kept as soon as it is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..atomic import atomic_write, output_error
from ..errors import MobileOError, OutputError
from ..files import JSONError, is_file, open_input, parse_json, read_bytes
from ..images import load_image
from .detections import Detector
from .geneval_folder import Pictures
from .geneval_prompts import Metadata, text_of
from .geneval_rules import judge, keep

_RULES = 1  # another number where a change of ours may change a verdict
_LIMIT = 2**28  # bytes of a picture
_KEYS = ("correct", "reason", "details")


class Verdicts:
    """What is known of pictures, by a digest of all that makes it: the picture, what it must show, and the detector.

    Args:
        path: of the file that keeps it, a JSON object a line; it is made where it is missing.

    Raises:
        OutputError: the file can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        self._torn = False
        if is_file(path, error=OutputError):
            with open_input(path, error=OutputError) as file:
                for line in file:
                    self._torn = not line.endswith(b"\n")
                    self._read(line)

    def get(self, key: str) -> dict[str, Any] | None:
        """ "correct", "reason" and "details" of a picture; None where they are not known."""
        return self._known.get(key)

    def add(self, key: str, verdict: dict[str, Any]) -> None:
        """Keeps what is known of a picture.

        Raises:
            OutputError: the disk is full, or the file can't be written.
        """
        self._known[key] = verdict
        # A line that was cut short by a killed process ends here.
        line = ("\n" if self._torn else "") + json.dumps({"key": key, **verdict}) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
        except OSError as error:
            raise output_error(error, self.path) from error
        self._torn = False

    def _read(self, line: bytes) -> None:
        try:
            record = parse_json(line)
            self._known[record["key"]] = {name: record[name] for name in _KEYS}
        except (JSONError, KeyError, TypeError):
            pass  # such a line is worth nothing, and the picture is scored again


def score(pictures: Pictures, detector: Detector, name: str, verdicts: Verdicts) -> Iterator[dict[str, Any]]:
    """The verdict on every picture.

    Args:
        pictures: see `geneval_folder.read_folder`.
        detector: finds objects and their colours. It may have an attribute `identity`, a text that tells one set of
            weights from another.
        name: of the detector.
        verdicts: those that are known; new ones are added.

    Yields:
        a line each of the official `results.jsonl`: "filename", "tag", "prompt", "correct", "reason", and as JSON
        texts "metadata" and "details", the boxes with their scores by class.

    Raises:
        ImageError: a picture is damaged.
        OutputError: see `Verdicts.add`.
    """
    which = f"{name} {getattr(detector, 'identity', '')}"
    for prompt in pictures.prompts:
        for path in prompt.pictures:
            key = _key(path, prompt.metadata, which)
            verdict = verdicts.get(key)
            if verdict is None:
                verdict = _verdict(path, prompt.metadata, detector)
                verdicts.add(key, verdict)
            yield {
                "filename": str(path),
                "tag": prompt.metadata["tag"],
                "prompt": prompt.metadata["prompt"],
                "correct": verdict["correct"],
                "reason": verdict["reason"],
                "metadata": text_of(prompt.metadata),
                "details": verdict["details"],
            }


def write_results(results: list[dict[str, Any]], path: Path) -> None:
    """Writes the official `results.jsonl`, which upstream's `summary_scores.py` reads; it replaces an older one.

    Raises:
        OutputError: the disk is full, or the folder is not writable.
    """
    with atomic_write(path, overwrite=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(result) + "\n" for result in results)


def _key(path: Path, metadata: Metadata, which: str) -> str:
    digest = hashlib.sha256(read_bytes(path, limit=_LIMIT, error=MobileOError))
    digest.update(json.dumps([_RULES, which, text_of(metadata)]).encode())
    return digest.hexdigest()[:32]


def _verdict(path: Path, metadata: Metadata, detector: Detector) -> dict[str, Any]:
    image = load_image(path)
    objects = keep(detector.detect(image), metadata["tag"])
    verdict = judge(metadata, objects, lambda found: detector.colours(image, found))
    boxes = {name: [[*map(float, one.box), float(one.score)] for one in found] for name, found in objects.items()}
    return {"correct": verdict.correct, "reason": verdict.reason, "details": json.dumps(boxes)}
