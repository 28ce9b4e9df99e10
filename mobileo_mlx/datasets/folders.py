"""The files of a folder of pictures, and which of them a name in somebody's list of captions means."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ImageError
from ..files import is_folder, kind_of
from ..training.quadruplets import DataError, Problem

# Of the formats that `image_sources` reads.
SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jpf"),
}
_NOT_OURS = {"__MACOSX", "Thumbs.db", "desktop.ini"}


@dataclass
class Folder:
    """A folder, as it was walked.

    Attributes:
        path: from the root of the file system, without links.
        pictures: paths of all files with an image's suffix, relative to it with `/`, in order.
        texts: those of all other files.
        problems: files that are left out.
    """

    path: Path
    pictures: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._all: dict[str, str] = {}  # by what `_same` makes of them
        self._by_name: dict[str, list[str]] = defaultdict(list)

    def add(self, name: str) -> None:
        """Adds a file by its path in the folder."""
        is_picture = posixpath.splitext(name)[1].lower() in SUFFIXES
        (self.pictures if is_picture else self.texts).append(name)
        self._all[_same(name)] = name
        self._by_name[_same(posixpath.basename(name))].append(name)

    def __contains__(self, name: str) -> bool:
        return self._all.get(_same(name)) == name

    def find(self, name: str, beside: str = "") -> str:
        """The file that a name in a list means.

        Args:
            name: a path relative to the list, or to this folder, or the end of a path that only one file has, as in
                lists whose pictures were moved; or an absolute path in this folder.
            beside: the folder that the list is in, relative to this one.

        Returns:
            its path in the folder; "" where there is none.

        Raises:
            ValueError: it is outside of the folder, or several files have the name; the reason continues a sentence.
        """
        name = name.replace("\\", "/") if "\\" in name and _same(name) not in self._all else name
        root = str(self.path)
        if name.startswith(f"{root}/"):
            name, beside = name[len(root) + 1 :], ""
        for start in dict.fromkeys((beside, "")):
            path = posixpath.normpath(posixpath.join(start, name))
            if _same(path) in self._all:
                return self._all[_same(path)]
        inside = posixpath.normpath(name)
        if inside.startswith(("../", "/")) or inside in ("..", "."):
            raise ValueError(f"names '{name}', which is outside of the folder")
        named = self._by_name.get(_same(posixpath.basename(inside)), [])
        ends = [path for path in named if _same(path).endswith(f"/{_same(inside)}")]
        if len(ends) > 1:
            raise ValueError(f"names '{name}', which may be '{ends[0]}' or '{ends[1]}'; give the whole path")
        return ends[0] if ends else ""


def _same(name: str) -> str:
    """A name by which it is found: macOS writes an umlaut as two characters where others write one."""
    return unicodedata.normalize("NFC", name)


def walk(path: Path) -> Folder:
    """All files of a folder and its sub-folders, but none whose name begins with a dot, or that systems put there.

    Links to folders are not followed, and those to files only where they stay in the folder.

    Raises:
        DataError: it is no folder, or can't be read.
    """
    if not is_folder(path, error=DataError):
        raise DataError(f"'{path}' is not a folder; name the folder that the pictures are in.")
    folder = Folder(Path(os.path.realpath(path)))
    todo = [""]
    while todo:
        inside = todo.pop()
        try:
            with os.scandir(folder.path / inside) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if not inside:
                raise DataError(f"'{path}' can't be read ({error.strerror or error}).") from error
            folder.problems.append(Problem(inside, f"can't be read ({error.strerror or error})"))
            continue
        folders = []
        for entry in entries:
            name = posixpath.join(inside, entry.name)
            if entry.name.startswith(".") or entry.name in _NOT_OURS:
                continue
            kind, reason = _look_at(folder.path, entry, name)
            if reason:
                folder.problems.append(Problem(name, reason))
            elif kind == "folder":
                folders.append(name)
            else:
                folder.add(name)
        todo += reversed(folders)
    return folder


def _look_at(root: Path, entry: os.DirEntry[str], name: str) -> tuple[str, str]:
    """What an entry of a folder is, and why it is left out; "" where it is not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "", "has a name that is not UTF-8; rename it"
    try:
        kind = kind_of(entry.path, error=ImageError)
    except ImageError as error:
        return "", str(error).replace(f"'{entry.path}'", "it").rstrip(".")
    if kind not in ("file", "folder"):
        return kind, "is not a regular file" if kind else "is a link that leads nowhere"
    if entry.is_symlink() and kind == "folder":
        return kind, "is a link to a folder; put the folder itself there"
    if entry.is_symlink() and os.path.commonpath([root, os.path.realpath(entry.path)]) != str(root):
        return kind, "is a link that leads out of the folder; put the file itself there"
    return kind, ""
