"""One conversation: what each line that was typed does."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import image_job, output_paths, printing, signals

if TYPE_CHECKING:
    from PIL.Image import Image

    from mobileo_mlx import MobileO
    from mobileo_mlx.errors import MobileOError

HELP = """\
Type a message to get an answer.
/image FILE        attach an image to the next message
/generate PROMPT   draw an image, saved in the current folder
/edit INSTRUCTION  edit the image attached or drawn last
/save FILE         save the conversation as .json or .md
/clear             forget the conversation and what is attached
/help              show this
/quit              end; so does Ctrl-D
Ctrl-C stops an answer."""


class Session:
    """The state of a chat in the terminal: the library's chat, the images attached, the transcript.

    Args:
        model: the model.
        answering: keyword arguments of the library's `Chat.stream`.
        verbose: print timings and peak memory.
    """

    def __init__(self, model: MobileO, *, answering: dict[str, Any], verbose: bool = False) -> None:
        self.model = model
        self.answering = answering
        self.verbose = verbose
        self.chat = model.chat()
        self.transcript: list[dict[str, Any]] = []
        self._saved = 0  # entries of it
        self.pending: list[tuple[str, Image]] = []
        self.last_image: tuple[str, Image] | None = None

    def handle(self, line: str) -> bool:
        """Does what a line says; a user's mistake is printed, and what the system refuses, and the chat goes on.

        Returns:
            False when the chat is to end.
        """
        from mobileo_mlx.errors import MobileOError

        try:
            line = line.strip().removeprefix("\ufeff")  # what Windows writes may begin with a byte order mark
            name, argument = (*line.split(maxsplit=1), "", "")[:2]
            if name in ("/quit", "/exit"):
                return False
            if line.startswith("/"):
                self._command(name, argument.strip())
            elif line:
                self._answer(line)
        except MobileOError as error:
            printing.note(f"error: {error}")
        except OSError as error:
            if printing.output_failed:
                raise
            printing.note(f"error: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}.")
        except signals.Ended:
            raise
        except KeyboardInterrupt:
            printing.note("stopped")
        return True

    @property
    def unsaved(self) -> bool:
        """Whether anything was said since the conversation was saved."""
        return len(self.transcript) > self._saved

    def _command(self, name: str, argument: str) -> None:
        from mobileo_mlx.errors import OptionError

        with_argument = {
            "/image": self._attach,
            "/generate": self._generate,
            "/edit": self._edit,
            "/save": self._save,
        }
        alone = {"/clear": self._clear, "/help": self._help}
        if name in alone:
            alone[name]()
        elif name not in with_argument:
            # A file that was dropped on the terminal looks like a command, too.
            typed = f"{name} {argument}".strip()
            hint = f"to show an image, type /image {typed}" if "/" in name[1:] or "." in name else "/help lists them"
            raise OptionError(f"there is no command {name}; {hint}.")
        elif not argument:
            raise OptionError(f"{name} needs something after it; see /help.")
        else:
            with_argument[name](argument)

    def _answer(self, text: str) -> None:
        _check_not_dropped(text)
        images = [image for _, image in self.pending]
        said, last = "", None
        try:
            stream = self.chat.stream(text, images=images, **self.answering)
            # Closing tells the library at once that no more is wanted, and it keeps what was said.
            with printing.Answer() as answer, contextlib.closing(stream):
                for last in stream:
                    said += last.text
                    answer.add(last.text)
        except signals.Ended:
            raise
        except KeyboardInterrupt:
            printing.note("stopped")
        if last is None:  # stopped before the first token: the library forgets the turn, and so does the transcript
            return
        self._record("user", text, [name for name, _ in self.pending])
        self._record("assistant", said.strip())
        self.pending = []
        if self.verbose and last.finish_reason:
            printing.details(last.timings, last.peak_memory, last.cache_memory)

    def _attach(self, argument: str) -> None:
        from mobileo_mlx.errors import ImageError
        from mobileo_mlx.images import load_image

        file = _path(argument, ImageError)
        image = load_image(file)
        self.pending.append((file, image))
        self.last_image = (file, image)
        printing.note(f"attached {file}, {image.width}x{image.height}; it goes with your next message")

    def _generate(self, prompt: str) -> None:
        self._draw("/generate", prompt, lambda seed: self.model.stream_generate(prompt, seed=seed), {})

    def _edit(self, instruction: str) -> None:
        from mobileo_mlx.errors import OptionError
        from mobileo_mlx.images import source_of

        if self.last_image is None:
            raise OptionError("there is no image to edit yet; attach one with /image FILE.")
        name, image = self.last_image
        source = source_of(image, name)
        self._draw("/edit", instruction, lambda seed: self.model.stream_edit(image, instruction, seed=seed), source)

    def _draw(
        self, command: str, prompt: str, start: Callable[[int], image_job.Stream], source: dict[str, str]
    ) -> None:
        job = image_job.plan_one(prompt, model=self.model.checkpoint.name, source=source, verbose=self.verbose)
        for file, result in image_job.run(job, self.model, start):
            printing.out(str(file))
            self.last_image = (str(file), result.images[0])
            self._record("user", f"{command} {prompt}")
            self._record("assistant", "", [str(file)])

    def _save(self, argument: str) -> None:
        from mobileo_mlx.atomic import atomic_write
        from mobileo_mlx.errors import OptionError, OutputError

        wished = Path(_path(argument, OutputError))
        suffix = wished.suffix.lower()
        if suffix not in (".json", ".md"):
            raise OptionError(f"{wished}: end the name with .json or .md.")
        text = json.dumps(self.transcript, indent=2, ensure_ascii=False) + "\n"
        if suffix == ".md":
            text = printing.visible(_markdown(self.transcript))  # people may look at it in a terminal

        def write(file: Path) -> None:
            with atomic_write(file) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

        printing.out(str(output_paths.write_free(wished, write)))
        self._saved = len(self.transcript)

    def _clear(self) -> None:
        self.chat.clear()
        self.transcript, self.pending, self.last_image, self._saved = [], [], None, 0

    def _help(self) -> None:
        printing.out(HELP)

    def _record(self, role: str, content: str, images: list[str] | None = None) -> None:
        self.transcript.append({"role": role, "content": content, "images": images or []})


def _path(argument: str, error: type[MobileOError]) -> str:
    """A file as typed, or as a terminal writes one that is dropped there: quoted, or with escaped blanks.

    Raises:
        ImageError, or what `error` is: the system does not say what there is, as for a name that is too long.
    """
    from mobileo_mlx.files import expand, kind_of

    if not kind_of(expand(argument), error=error):
        with contextlib.suppress(ValueError):  # a quotation mark of which there is only one
            words = shlex.split(argument)
            argument = words[0] if len(words) == 1 else argument
    return str(expand(argument)) if argument.startswith("~") else argument  # a URL has two slashes that `Path` joins


def _check_not_dropped(text: str) -> None:
    """Tells a message from the name of a file that was dropped on the terminal, which is quoted.

    Raises:
        OptionError: it is such a name.
    """
    from mobileo_mlx.errors import MobileOError, OptionError
    from mobileo_mlx.files import is_file

    dropped = False
    if text[0] in "'\"":
        with contextlib.suppress(MobileOError):  # the system does not say what there is: nothing that was dropped
            dropped = os.path.isabs(name := _path(text, MobileOError)) and is_file(name)
    if dropped:
        raise OptionError(f"to show an image, type /image before its name: /image {text}")


def _markdown(transcript: list[dict[str, Any]]) -> str:
    parts = ["# Chat"]
    for entry in transcript:
        images = [f"![]({'<' + name + '>' if ' ' in name else name})" for name in entry["images"]]
        body = "\n\n".join([*images, entry["content"]] if entry["content"] else images)
        parts.append(f"**{entry['role'].capitalize()}**\n\n{body}")
    return "\n\n".join(parts) + "\n"
