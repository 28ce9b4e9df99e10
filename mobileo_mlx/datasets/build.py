"""A folder of pictures becomes data for `finetune`, in steps between which a model may be asked.

folders.py                            the folder -> its files
sidecars.py, tables.py,
annotation_files.py                   texts      -> what is said of each picture (said.py)
drafts.py                             that       -> drafts: picture, caption or instruction, questions
pictures.py, duplicates.py            pictures   -> those that can be read; those that come twice
answers.py                            a model    -> captions and answers, by `mobileo_mlx.batch`
questions.py, kept.py                 drafts     -> questions; what a review left
samples.py                            samples    -> the files, split
statistics.py, review.py              samples    -> figures, and a page to look at them
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ..atomic import atomic_write, check_output, output_error
from ..errors import OptionError, OutputError
from ..files import expand
from ..locks import lock
from ..prompts import check_text
from ..training.quadruplets import QA, DataError, Problem
from . import annotation_files, answers, duplicates, questions, sidecars, tables
from .drafts import MODEL, Draft, make_drafts
from .folders import walk
from .kept import Kept
from .pictures import Picture, look_at
from .questions import DESCRIBE
from .said import Said
from .samples import Sample, check_split, first_pictures, held_out_path, is_held_out, is_too_long, write_samples
from .statistics import figures

LEFT_OUT = "left-out.txt"


@dataclass(frozen=True)
class Options:
    """How samples are made; the command's options say what each means.

    Attributes:
        annotations: files of conversations or captions; by default those in the folder itself.
        text_column: of tables.
        all_captions: a sample of each caption of a picture.
        edit_suffix: of names of edits; "" where there are none.
        duplicates, near: see `duplicates.py`.
        questions: see `questions.HOW`.
        split: the share that is not trained on.
        captioned: whether a model gives the captions that are missing.
        describe: how it is asked for one, and what is asked in training where nothing else is.
        ask: what it is asked about each picture besides.
    """

    annotations: tuple[Path, ...] = ()
    text_column: str | None = None
    all_captions: bool = False
    edit_suffix: str = "_edit"
    duplicates: str = "exact"
    near: int = 3
    questions: str = "describe"
    split: float = 0.0
    captioned: bool = False
    describe: str = DESCRIBE
    ask: tuple[str, ...] = ()

    def check(self) -> None:
        """Checks all options.

        Raises:
            OptionError: one is out of range.
        """
        duplicates.check_rule(self.duplicates, self.near)
        questions.check_how(self.questions)
        check_split(self.split)
        if any(mark in self.edit_suffix for mark in "/\0"):
            raise OptionError(f"--edit-suffix {self.edit_suffix!r}: choose the end of a name, such as _edit.")
        for text in (*self.ask, self.describe):
            check_text(text, "question")


class Build:
    """One build. `look` goes first; then `lines` are answered, or there are none; then `samples` and `write`.

    Args:
        folder: of the pictures; nothing in it is changed.
        out: the JSONL file to write. Beside it a folder `data.build` keeps what took time.
        options: see there.
        overwrite: whether a file that is there is replaced.

    Attributes:
        work: the build's own folder.
        left_out: what no sample is made of, and why, by kind.

    Raises:
        DataError: the folder can't be read.
        OptionError: an option is out of range.
        OutputError: the file exists, or can't be written; or another build is at work on it.
    """

    def __init__(self, folder: Path, out: Path, options: Options, *, overwrite: bool = False) -> None:
        options.check()
        self.options, self.out, self.overwrite = options, expand(out), overwrite
        if self.out.suffix != ".jsonl":
            raise OptionError(f"--out {out}: choose a name that ends in .jsonl.")
        check_output(self.out, overwrite=overwrite)
        if options.split:
            check_output(held_out_path(self.out), overwrite=overwrite)
        self.folder = walk(expand(folder))
        self.left_out: list[tuple[str, Problem]] = [("unreadable", problem) for problem in self.folder.problems]
        self.pictures: dict[str, Picture] = {}
        self._drafts = self._read()
        self.work = self.out.with_name(f"{self.out.stem}.build")
        self._stack = ExitStack()
        self._open()

    def close(self) -> None:
        """Lets others work on the same file."""
        self._stack.close()

    def look(self, *, thumbnails: bool = True) -> Iterator[tuple[int, int]]:
        """Decodes all pictures that drafts need; then those that come twice are left out.

        Args:
            thumbnails: whether a review page wants them.

        Yields:
            how many are seen, and how many there are.

        Raises:
            OutputError: the disk is full.
        """
        names = sorted({name for draft in self._drafts for name in (draft.picture, draft.source) if name})
        broken: dict[str, str] = {}
        for done, found in enumerate(look_at(self.folder.path, names, self.work, thumbnails=thumbnails), start=1):
            if isinstance(found, Problem):
                broken[found.name] = found.reason
                self._leave_out("unreadable", found.name, found.reason)
            else:
                self.pictures[found.path] = found
            yield done, len(names)
        for draft in self._drafts:
            if draft.source in broken and draft.picture not in broken:
                self._leave_out("unreadable", draft.picture, f"it is an edit of '{draft.source}', which can't be read")
        self._drafts = [draft for draft in self._drafts if not broken.keys() & {draft.picture, draft.source}]
        if self.options.duplicates != "keep":
            near = self.options.near if self.options.duplicates == "near" else None
            repeated = duplicates.find_duplicates(self._drafts, self.pictures, near)
            for number, (first, how) in sorted(repeated.items()):
                what = "has the pixels of" if how == "exact" else "looks nearly as"
                self._leave_out(
                    f"{how} duplicate", self._drafts[number].picture, f"{what} '{self._drafts[first].picture}'"
                )
            self._drafts = [draft for number, draft in enumerate(self._drafts) if number not in repeated]

    def lines(self, *, retry_failed: bool = False) -> list[dict[str, str]]:
        """What a model is to be asked, as lines of `mobileo_mlx.batch`; what is answered already is not among them.

        Raises:
            DataError, OutputError: see `answers.read_answers`.
        """
        known = answers.read_answers(self.work)
        asked: list[tuple[Picture, str]] = []
        for draft in self._drafts:
            picture = self.pictures[draft.picture]
            if self.options.captioned and self._wants_caption(draft):
                asked.append((picture, self.options.describe))
            if self.options.questions != "none":
                asked += [(picture, question) for question in self.options.ask]
        return answers.lines_for(asked, self.folder.path, known, retry_failed=retry_failed)

    def samples(self, kept: Kept | None = None) -> list[Sample]:
        """The samples, with all that is known; called once, after `look` and the model's answers.

        Args:
            kept: what a review left.

        Raises:
            DataError, OutputError: see `answers.read_answers`.
        """
        known = answers.read_answers(self.work)
        first = first_pictures((self._digest(draft.picture), self._digest(draft.source)) for draft in self._drafts)
        samples = []
        ids: Counter[str] = Counter()
        for draft in self._drafts:
            draft = self._with_caption(draft, known)
            id = draft.id(self.pictures)
            ids[id] += 1
            if ids[id] > 1:  # where duplicates are kept
                id += f"-{ids[id]}"
            if kept is not None:
                if id in kept.left_out:
                    self._leave_out("review", draft.picture, f"the review '{kept.path}' left it out")
                    continue
                if id not in kept.prompts:
                    self._leave_out("not reviewed", draft.picture, f"the review '{kept.path}' does not know it")
                    continue
                if prompt := kept.prompts[id]:
                    draft = replace(draft, instruction=prompt) if draft.source else replace(draft, caption=prompt)
            sample = self._sample(draft, id, known, first[self._digest(draft.picture)])
            if isinstance(sample, str):
                self._leave_out("without text", draft.picture, sample)
            elif is_too_long(sample, self.folder.path, Path(os.path.realpath(self.out)).parent):
                self._leave_out("unreadable", draft.picture, "its texts are longer than finetune reads")
            else:
                samples.append(sample)
        return samples

    def write(self, samples: Sequence[Sample]) -> dict[Path, int]:
        """Writes the files, and beside them what was left out.

        Returns:
            how many lines each file has.

        Raises:
            DataError: there is nothing to train on.
            OutputError: a file can't be written.
        """
        with atomic_write(self.work / LEFT_OUT, overwrite=True) as temporary:
            lines = (f"{kind}: {problem}".replace("\n", " ") + "\n" for kind, problem in self.left_out)
            temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
        if not any(not sample.held_out for sample in samples):
            if samples:
                raise DataError(
                    f"--split {self.options.split} holds out all samples, {len(samples)} of '{self.folder.path}', and "
                    "none is left to train on; choose a smaller share, or give more pictures."
                )
            if not self.folder.pictures and not self.left_out:
                raise DataError(f"'{self.folder.path}' holds no pictures; name the folder that they are in.")
            raise DataError(f"no sample is left of '{self.folder.path}'; '{self.work / LEFT_OUT}' says why.")
        split = bool(self.options.split)
        return write_samples(samples, self.out, self.folder.path, split=split, overwrite=self.overwrite)

    def figures(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The figures of `statistics.py`, with what was left out by kind."""
        kinds = Counter(kind for kind, _ in self.left_out)
        return {"pictures": len(self.folder.pictures), **figures(samples), "left_out": dict(kinds.most_common())}

    def leave_out_failing(self, samples: Sequence[Sample], verdicts: Mapping[str, str]) -> list[Sample]:
        """Those that a judge lets pass.

        Args:
            samples: all.
            verdicts: by id why one does not; "" where it does.
        """
        for sample in samples:
            if verdicts[sample.id]:
                self._leave_out("did not pass", sample.picture.path, verdicts[sample.id])
        return [sample for sample in samples if not verdicts[sample.id]]

    def _digest(self, name: str) -> str:
        return self.pictures[name].digest if name else ""

    def _leave_out(self, kind: str, name: str, reason: str) -> None:
        self.left_out.append((kind, Problem(name, reason)))

    def _open(self) -> None:
        try:
            self.work.mkdir(exist_ok=True)
            descriptor = os.open(self.work, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise output_error(error, self.work) from error
        self._stack.callback(os.close, descriptor)
        if lock(descriptor) is False:
            self.close()
            raise OutputError(f"another build is at work on '{self.out}'; wait for it, or choose another --out.")

    def _read(self) -> list[Draft]:
        """The drafts of all that is said of the pictures."""
        folder, options = self.folder, self.options
        files = [expand(path) for path in options.annotations]
        files = files or [folder.path / name for name in annotation_files.find_annotations(folder)]
        sources: list[Iterator[Said | Problem]] = [
            sidecars.read_sidecars(folder),
            tables.read_tables(folder, options.text_column),
            *(annotation_files.read_annotations(folder, path, named=bool(options.annotations)) for path in files),
        ]
        said = list(self._noted(chain.from_iterable(sources)))
        edits = sidecars.find_edits(folder, options.edit_suffix)
        drafts = []
        for draft in make_drafts(said, edits, folder.pictures, all_captions=options.all_captions):
            if options.captioned or draft.prompt:
                drafts.append(draft)
            else:
                self._leave_out("without text", draft.picture, _no_text(draft))
        return drafts

    def _noted(self, found: Iterator[Said | Problem]) -> Iterator[Said]:
        for one in found:
            if isinstance(one, Problem):
                self.left_out.append(("text", one))
            else:
                yield one

    def _wants_caption(self, draft: Draft) -> bool:
        if not draft.source:
            return not draft.caption
        return not (draft.caption or draft.qa or self.options.questions == "none" or not draft.instruction)

    def _with_caption(self, draft: Draft, known: answers.Answers) -> Draft:
        name = answers.key(self.pictures[draft.picture], self.options.describe)
        if not self._wants_caption(draft) or not known.texts.get(name):
            return draft
        return replace(draft, caption=known.texts[name], origin=draft.origin if draft.source else MODEL)

    def _sample(self, draft: Draft, id: str, known: answers.Answers, first: str) -> Sample | str:
        """A sample, or why there is none."""
        picture = self.pictures[draft.picture]
        if not draft.prompt:
            error = known.errors.get(answers.key(picture, self.options.describe))
            return f"the model gave no caption ({error})" if error and not draft.source else _no_text(draft)
        answered = tuple(
            QA(question, text)
            for question in self.options.ask
            if (text := known.texts.get(answers.key(picture, question)))
        )
        qa = questions.questions_of(draft, answered, self.options.questions, self.options.describe)
        if not qa and self.options.questions != "none":
            return (
                f"nothing says what the edit shows; write it to '{Path(draft.picture).stem}.caption', let a --model "
                "say it, or leave questions out with --questions none"
            )
        source = self.pictures[draft.source] if draft.source else None
        held_out = is_held_out(first, self.options.split)
        return Sample(id, draft.prompt, picture, source, qa, draft.origin, held_out)


def _no_text(draft: Draft) -> str:
    stem = Path(draft.picture).stem
    if draft.source:
        return f"it is an edit of '{draft.source}' without an instruction; write it to '{stem}.txt'"
    return f"it has no caption; write one to '{stem}.txt', or let a model, with --model"
