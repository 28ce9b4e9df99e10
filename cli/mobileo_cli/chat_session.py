"""One conversation: what each line that was typed does."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import image_job, output_paths, printing

if TYPE_CHECKING:
    from PIL.Image import Image

    from mobileo_mlx import MobileO

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
        self.pending: list[tuple[str, Image]] = []
        self.last_image: tuple[str, Image] | None = None

    def handle(self, line: str) -> bool:
        """Does what a line says; a user's mistake is printed, and the chat goes on.

        Returns:
            False when the chat is to end.
        """
        from mobileo_mlx.errors import MobileOError

        try:
            line = line.strip()
            name, _, argument = line.partition(" ")
            if name in ("/quit", "/exit"):
                return False
            if not line:
                return True
            if line.startswith("/"):
                self._command(name, argument.strip())
            else:
                self._answer(line)
        except MobileOError as error:
            printing.note(f"error: {error}")
        except KeyboardInterrupt:
            printing.note("stopped")
        return True

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
            raise OptionError(f"there is no command {name}; /help lists them.")
        elif not argument:
            raise OptionError(f"{name} needs something after it; see /help.")
        else:
            with_argument[name](argument)

    def _answer(self, text: str) -> None:
        from mobileo_mlx.errors import NotFiniteError

        images = [image for _, image in self.pending]
        said, last = "", None
        try:
            stream = self.chat.stream(text, images=images, **self.answering)
            # Closing tells the library at once that no more is wanted, and it keeps what was said.
            with contextlib.closing(stream):
                for last in stream:
                    said += last.text
                    printing.out(last.text, end="")
            printing.out("")
        except KeyboardInterrupt:
            printing.out("")
            printing.note("stopped")
        except NotFiniteError:  # the library forgets the turn, and so does the transcript
            if said:
                printing.out("")
            raise
        if last is None:  # stopped before the first token: the library forgets the turn, and so does the transcript
            return
        self._record("user", text, [name for name, _ in self.pending])
        self._record("assistant", said)
        self.pending = []
        if self.verbose and last.finish_reason:
            printing.details(last.timings, last.peak_memory, last.cache_memory)

    def _attach(self, argument: str) -> None:
        from mobileo_mlx.images import load_image

        file = _path(argument)
        image = load_image(file)
        self.pending.append((str(file), image))
        self.last_image = (str(file), image)
        printing.note(f"attached {file}, {image.width}x{image.height}; it goes with your next message")

    def _generate(self, prompt: str) -> None:
        self._draw("/generate", prompt, lambda seed: self.model.stream_generate(prompt, seed=seed), {})

    def _edit(self, instruction: str) -> None:
        from mobileo_mlx.errors import OptionError

        if self.last_image is None:
            raise OptionError("there is no image to edit yet; attach one with /image FILE.")
        name, image = self.last_image
        source = image_job.source_of(image, name)
        self._draw("/edit", instruction, lambda seed: self.model.stream_edit(image, instruction, seed=seed), source)

    def _draw(
        self, command: str, prompt: str, start: Callable[[int], image_job.Stream], source: dict[str, str]
    ) -> None:
        job = image_job.plan_one(prompt, model=self.model.checkpoint.name, source=source, verbose=self.verbose)
        for file, image in image_job.run(job, self.model, start):
            printing.out(str(file))
            self.last_image = (str(file), image)
            self._record("user", f"{command} {prompt}")
            self._record("assistant", "", [str(file)])

    def _save(self, argument: str) -> None:
        from mobileo_mlx.atomic import atomic_write
        from mobileo_mlx.errors import OptionError

        wished = _path(argument)
        suffix = wished.suffix.lower()
        if suffix not in (".json", ".md"):
            raise OptionError(f"{wished}: end the name with .json or .md.")
        text = json.dumps(self.transcript, indent=2, ensure_ascii=False) + "\n"
        if suffix == ".md":
            text = _markdown(self.transcript)
        file = output_paths.free(wished)
        with atomic_write(file) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        printing.out(str(file))

    def _clear(self) -> None:
        self.chat.clear()
        self.transcript, self.pending, self.last_image = [], [], None

    def _help(self) -> None:
        printing.out(HELP)

    def _record(self, role: str, content: str, images: list[str] | None = None) -> None:
        self.transcript.append({"role": role, "content": content, "images": images or []})


def _path(argument: str) -> Path:
    """A file as typed, or as a terminal writes one that is dropped there: quoted, or with escaped blanks."""
    file = Path(argument).expanduser()
    if file.exists():
        return file
    try:
        words = shlex.split(argument)
    except ValueError:
        return file
    return Path(words[0]).expanduser() if len(words) == 1 else file


def _markdown(transcript: list[dict[str, Any]]) -> str:
    parts = ["# Chat"]
    for entry in transcript:
        images = [f"![]({'<' + name + '>' if ' ' in name else name})" for name in entry["images"]]
        body = "\n\n".join([*images, entry["content"]] if entry["content"] else images)
        parts.append(f"**{entry['role'].capitalize()}**\n\n{body}")
    return "\n\n".join(parts) + "\n"
