"""Upstream's shards, read by the conventions of WebDataset: a tar file, also gzipped, of files with the samples' names.

`gen_prompt.txt` is the prompt, `gen_image.png` the image, `und_image.jpg` what questions are about and what an edit
starts from, `qna.txt` has lines `Q: ... A: ...`, and `category.txt` says whether it is an edit. The name of a sample,
its key, comes before the first dot of a file's name, and its files lie next to each other. Suffixes may be in capitals.
Passed over are names that begin with a dot, or have none, and those of the kind `__meta__`.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from ..errors import PromptError
from ..files import open_input
from ..prompts import check_text
from .gzipped import is_gzip
from .quadruplets import MAX_IMAGE_BYTES, QA, DataError, ImageRef, Malformed, Problem, Sample
from .tar_files import Archive, members, unpack

CATEGORIES = {"text_to_image": False, "text_and_image_to_image": True}  # to whether it is an edit
# What upstream takes where a sample has no question.
DEFAULT_QUESTION = QA("Describe the image.", "The image is so beautiful.")
SUFFIXES = (".tar", ".tar.gz", ".tgz")
_IMAGES = ("png", "jpg", "jpeg", "webp")
_MAX_TEXT = 2**20  # bytes


def is_shard(path: Path) -> bool:
    """Whether a file's name is a shard's."""
    return path.name.lower().endswith(SUFFIXES)


def find_shards(folder: Path) -> list[Path]:
    """All shards in a folder, by name; but none whose name begins with a dot, as of what macOS puts beside files.

    Raises:
        DataError: there are none, or the folder can't be read.
    """
    try:
        shards = sorted(path for path in folder.iterdir() if is_shard(path) and path.name[0] != ".")
    except OSError as error:
        raise DataError(f"'{folder}' can't be read ({error.strerror or error}).") from error
    if not shards:
        raise DataError(f"'{folder}' holds no shards (*.tar); name a JSONL file in it.")
    return shards


def read_shards(paths: list[Path], questions: bool, default_question: bool) -> Iterator[Sample | Problem]:
    """The samples of all shards, whose images are not opened yet, and what is wrong with the others.

    Compressed shards are unpacked into a temporary file, which has no name and is there as long as the samples are.

    Args:
        questions: whether every sample needs a question and an answer; otherwise they are not read.
        default_question: whether a sample without one gets `DEFAULT_QUESTION`; otherwise it is an error.
    """
    unpacked: BinaryIO | None = None
    for path in paths:
        try:
            with open_input(path, error=DataError) as file:
                if is_gzip(file):
                    unpacked = unpacked or cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - see above
                    archive = Archive(path, unpacked, unpack(file, unpacked), packed=True)
                else:
                    archive = Archive(path, file, 0)
                yield from _read_samples(archive, questions, default_question)
        except Malformed as error:
            yield Problem(path.name, str(error))
        except DataError as error:
            yield Problem(path.name, str(error).rstrip("."))
        except OSError as error:
            yield Problem(path.name, f"can't be read ({error.strerror or error})")


def parse_qna(text: str) -> list[QA]:
    """The questions and answers among lines such as `Q: How many? A: Three.`; other lines are left out.

    Questions and answers are of one line each, and may begin on a new one. The time is proportional to the text.
    """
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    pairs = []
    following = 0  # the line from where the next question may begin
    for i, line in enumerate(lines):
        if i < following or not line.startswith("Q:"):
            continue
        # What is left of this line or else the next one; then what is left of that one behind the mark, and so on.
        question, after = _rest(lines, i, 2)
        mark = _answer_mark(question)
        if mark >= 0:
            answer, after = _rest(lines, after - 1, len(lines[after - 1]) - len(question) + mark + 2)
            question = question[:mark].rstrip()
        elif question and after < len(lines) and lines[after].startswith("A:"):
            answer, after = _rest(lines, after, 2)
        else:
            continue
        if answer:
            pairs.append(QA(question, answer))
            following = after
    return pairs


def _rest(lines: list[str], i: int, start: int) -> tuple[str, int]:
    """The text from a place in a line on, or where there is none the next line; and the line that follows."""
    if text := lines[i][start:].lstrip():
        return text, i + 1
    return (lines[i + 1], i + 2) if i + 1 < len(lines) else ("", i + 1)


def _answer_mark(line: str) -> int:
    """Where the first `A:` behind a blank is; -1 if nowhere."""
    mark = line.find("A:", 1)
    while mark >= 0 and not line[mark - 1].isspace():
        mark = line.find("A:", mark + 1)
    return mark


@dataclass
class _Entry:
    """The files of one sample, by suffix, and the first thing that is wrong with them."""

    key: str
    files: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    fault: str = ""


def _read_samples(archive: Archive, questions: bool, default_question: bool) -> Iterator[Sample | Problem]:
    """The samples of one shard.

    Raises:
        Malformed: it is no tar file, or damaged.
    """
    for entry in _entries(archive):
        name = f"{archive.path.name}: {entry.key}".encode(errors="backslashreplace").decode()
        try:
            if entry.fault:
                raise Malformed(entry.fault)
            yield _sample(archive, name, entry.files, questions, default_question)
        except (Malformed, PromptError) as error:
            yield Problem(name, str(error))


def _entries(archive: Archive) -> Iterator[_Entry]:
    """The files of each sample, one sample after the other.

    Raises:
        Malformed: as above, after the samples that come before the damage; the one that it lies in is left out.
    """
    keys: set[str] = set()
    entry: _Entry | None = None
    for member in members(archive):
        split = _key_and_suffix(member.name)
        if split is None or member.isdir():
            continue
        key, suffix = split
        if entry is None or key != entry.key:
            if entry is not None:
                yield entry
            entry = _Entry(key)
            if key in keys:
                entry.fault = (
                    "comes twice in the shard; give each sample a name of its own, and write its files one after the "
                    "other"
                )
            keys.add(key)
        fault = _fault(member)
        if suffix in entry.files:
            fault = f"holds {suffix} twice"
        entry.fault = entry.fault or fault
        entry.files[suffix] = member
    if entry is not None:
        yield entry


def _key_and_suffix(name: str) -> tuple[str, str] | None:
    """The name of a sample, with its folders, and the rest of the file's name; None for what is passed over."""
    name = re.sub(r"^(\./+)+", "", name)
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    hidden = any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
    if hidden or not stem or not dot or re.match(r"__[^/]*__(/|$)", name):
        return None
    return f"{folder}{slash}{stem}", suffix.lower()


def _fault(member: tarfile.TarInfo) -> str:
    """Why a member can't be read; "" where it can."""
    file = member.name.rpartition("/")[2]
    if member.islnk() or member.issym():
        return f"{file} is a link; store the file itself (tar --dereference --hard-dereference)"
    if not member.isreg():
        return f"{file} is no regular file; store the file itself"
    if member.issparse():
        return f"{file} is stored with holes; write the shard without --sparse"
    return ""


def _text(archive: Archive, files: dict[str, tarfile.TarInfo], suffix: str) -> str | None:
    """A text file of a sample; None where there is none."""
    if (member := files.get(suffix)) is None:
        return None
    if member.size > _MAX_TEXT:
        raise Malformed(f"{suffix} is too large for a text: {member.size:,} bytes")
    try:
        return archive.content(member.offset_data, member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"{suffix} is not UTF-8 text") from error


def _image(archive: Archive, files: dict[str, tarfile.TarInfo], kind: str) -> ImageRef:
    for suffix in _IMAGES:
        if (member := files.get(f"{kind}.{suffix}")) is not None:
            if member.size > MAX_IMAGE_BYTES:
                raise Malformed(f"{kind}.{suffix} is too large for an image: {member.size:,} bytes")
            unpacked = archive.file if archive.packed else None
            return ImageRef(archive.path, archive.start + member.offset_data, member.size, unpacked)
    raise _lacks(f"{kind}.png or .jpg", files)


def _lacks(what: str, files: dict[str, tarfile.TarInfo]) -> Malformed:
    """What a sample lacks, with what it has: a dot in its name, for example, makes suffixes of the rest."""
    shown = ", ".join(suffix[:40] for suffix in list(files)[:5])
    return Malformed(f"lacks {what}; it has {shown}{' and others' if len(files) > 5 else ''}")


def _sample(
    archive: Archive, name: str, files: dict[str, tarfile.TarInfo], questions: bool, default_question: bool
) -> Sample:
    prompt = _text(archive, files, "gen_prompt.txt")
    if prompt is None:
        raise _lacks("gen_prompt.txt", files)
    text = _text(archive, files, "category.txt")
    category = "text_to_image" if text is None else text.strip()
    if category not in CATEGORIES:
        raise Malformed(f"category.txt says {category[:40]!r}, and neither {' nor '.join(CATEGORIES)}")
    lines = re.sub("\r\n?", "\n", _text(archive, files, "qna.txt") or "") if questions else ""
    qa = parse_qna(lines)
    if questions and not qa:
        if not default_question:
            raise Malformed("qna.txt has no line 'Q: ... A: ...'")
        qa = [DEFAULT_QUESTION]
    for pair in qa:
        check_text(pair.question, "question")
        check_text(pair.answer, "answer")
    image = _image(archive, files, "gen_image")
    edit = CATEGORIES[category]
    second = _image(archive, files, "und_image") if questions or edit else image
    return Sample(name, check_text(prompt.strip()), image, second if edit else None, second, tuple(qa))
