"""Upstream's WebDataset shards: tar files in which the files of one sample share their name up to the first dot.

`gen_prompt.txt` is the prompt, `gen_image.png` the image, `und_image.jpg` what questions are about and what an edit
starts from, `qna.txt` has lines `Q: ... A: ...`, and `category.txt` says whether it is an edit.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import PromptError
from ..prompts import check_text
from .quadruplets import QA, DataError, ImageRef, Malformed, Problem, Sample

CATEGORIES = {"text_to_image": False, "text_and_image_to_image": True}  # to whether it is an edit
# What upstream takes where a sample has no question.
DEFAULT_QUESTION = QA("Describe the image.", "The image is so beautiful.")
_IMAGES = ("png", "jpg", "jpeg", "webp")


def find_shards(path: Path) -> list[Path]:
    """The shard itself, or all shards in a folder, by name.

    Raises:
        DataError: there are none.
    """
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not shards or not path.exists():
        what = "holds no shards (*.tar); name a JSONL file in it" if path.is_dir() else "does not exist; check its name"
        raise DataError(f"'{path}' {what}.")
    return shards


def read_shard(path: Path, questions: bool, default_question: bool) -> Iterator[Sample | Problem]:
    """The samples of a shard, whose images are not opened yet, and what is wrong with the others.

    Args:
        questions: whether every sample needs a question and an answer; otherwise they are not read.
        default_question: whether a sample without one gets `DEFAULT_QUESTION`; otherwise it is an error.
    """
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            try:
                for member in tar:
                    if member.isfile():
                        folder, _, file = member.name.rpartition("/")
                        stem, _, kind = file.partition(".")
                        members.setdefault(f"{folder}/{stem}".lstrip("./"), {})[kind] = member
                complete = _has_end_mark(path, tar.offset)
            except tarfile.TarError:
                complete = False
            for key, files in members.items():
                name = f"{path.name}: {key}"
                entry: Sample | Problem
                try:
                    entry = _sample(path, name, _texts(tar, files), files, questions, default_question)
                except (Malformed, PromptError) as error:
                    entry = Problem(name, str(error))
                except (tarfile.TarError, OSError):
                    entry = Problem(name, "lies where the shard is cut short")
                yield entry
    except (tarfile.TarError, OSError) as error:
        yield Problem(path.name, f"is not a tar file that can be read ({error})")
        return
    if not complete:
        count = "1 sample" if len(members) == 1 else f"{len(members)} samples"
        yield Problem(path.name, f"is cut short after {count}; get it again")


def parse_qna(text: str) -> list[QA]:
    """The questions and answers among lines such as `Q: How many? A: Three.`; other lines are left out."""
    found = re.findall(r"^\s*Q:\s*(\S.*?)\s+A:\s*(\S.*?)\s*$", text, re.MULTILINE)
    return [QA(question, answer) for question, answer in found]


def _has_end_mark(path: Path, end: int) -> bool:
    """Whether an archive has its end mark, 512 zeros, where reading ended."""
    with path.open("rb") as file:
        for start in (end - 512, end):  # some versions of Python count the mark
            file.seek(max(start, 0))
            if file.read(512) == bytes(512):
                return True
    return False


def _texts(tar: tarfile.TarFile, files: dict[str, tarfile.TarInfo]) -> dict[str, str]:
    """The text files of a sample, by the part of their name before `.txt`."""
    texts = {}
    for kind, member in files.items():
        if kind.endswith(".txt"):
            file = tar.extractfile(member)
            data = file.read() if file is not None else b""
            if len(data) < member.size:
                raise tarfile.ReadError("unexpected end of data")
            try:
                texts[kind.removesuffix(".txt")] = data.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise Malformed(f"{kind} is not UTF-8 text") from error
    return texts


def _sample(
    path: Path,
    name: str,
    texts: dict[str, str],
    files: dict[str, tarfile.TarInfo],
    questions: bool,
    default_question: bool,
) -> Sample:
    def image_of(kind: str) -> ImageRef:
        for suffix in _IMAGES:
            if (member := files.get(f"{kind}.{suffix}")) is not None:
                return ImageRef(path, member.offset_data, member.size)
        raise Malformed(f"lacks {kind}.png or .jpg")

    if "gen_prompt" not in texts:
        raise Malformed("lacks gen_prompt.txt")
    category = texts.get("category", "text_to_image").strip()
    if category not in CATEGORIES:
        raise Malformed(f"category.txt says {category!r}, and neither {' nor '.join(CATEGORIES)}")
    qa = parse_qna(texts.get("qna", "")) if questions else []
    if questions and not qa:
        if not default_question:
            raise Malformed("qna.txt has no line 'Q: ... A: ...'")
        qa = [DEFAULT_QUESTION]
    for pair in qa:
        check_text(pair.question, "question")
        check_text(pair.answer, "answer")
    image = image_of("gen_image")
    edit = CATEGORIES[category]
    second = image_of("und_image") if questions or edit else image
    return Sample(name, check_text(texts["gen_prompt"].strip()), image, second if edit else None, second, tuple(qa))
