"""Which samples pass the model's own judgement of whether a picture shows what its text says; judged once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import PromptError
from ..images import load_image
from .pictures import Appended, read_records
from .samples import Sample

if TYPE_CHECKING:
    from ..best_of.judge import Judgement

JUDGED = "judged.jsonl"


class Judge(Protocol):
    """What is asked of a model: `MobileO.judge`."""

    def judge(self, image: Any, prompt: str, *, source: Any = None) -> Judgement: ...


def judge_samples(
    samples: Sequence[Sample], folder: Path, model: Judge, identity: Mapping[str, Any], work: Path
) -> Iterator[tuple[str, str]]:
    """Asks a model about each sample, or takes what an earlier build has heard from the same one.

    Args:
        samples: of pictures in `folder`.
        folder: see there.
        model: is asked.
        identity: what tells it from others; see `mobileo_mlx.identity`.
        work: the build's own folder.

    Yields:
        for each sample its id, and why it does not pass; "" where it does.

    Raises:
        ImageError: a picture can't be read any more.
        OutputError: the disk is full.
    """
    known = {record.get("key"): str(record.get("reason", "")) for record in read_records(work / JUDGED)}
    with Appended(work / JUDGED) as file:
        for sample in samples:
            source = sample.source.digest if sample.source is not None else ""
            asked = [sample.picture.digest, source, sample.prompt, identity]
            key = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:32]
            if key not in known:
                before = None if sample.source is None else load_image(folder / sample.source.path)
                image = load_image(folder / sample.picture.path)
                try:
                    found = model.judge(image, sample.prompt, source=before)
                except PromptError as error:  # the text alone is at fault
                    known[key] = f"the model can't be asked about its text: {error}"
                    file.add({"key": key, "reason": known[key]})
                else:
                    known[key] = "" if found.passes else _reason(found)
                    file.add({"key": key, "score": found.score, "reason": known[key]})
            yield sample.id, known[key]


def _reason(judgement: Judgement) -> str:
    wrong = [one for one in judgement.checks if one.answer != one.check.expected]
    if not wrong:
        return f"the model does not see its text in it (score {judgement.score:.2f})"
    first = wrong[0]
    return f"the model was asked {first.check.question!r} and said {first.answer!r}, not {first.check.expected!r}"
