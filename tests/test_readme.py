"""What the README and docs/ show is what runs: Python, commands, options and links."""

import importlib
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from mobileo_cli.commands import NAME, program

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CARDS = sorted((ROOT / "weights").rglob("README.md"))
PAGES = [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *CARDS]
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
README_LINES = 145  # a reader who is new should see the whole of it

SHOWING = [path for path in PAGES if path.name != "CHANGELOG.md"]  # commands of today

COMMANDS = typer.main.get_command(program).commands  # type: ignore[attr-defined]
EVERYWHERE = {"--help", "-h"}


def options_inside(command: Any) -> set[str]:
    """The options of a command, and of those inside of it."""
    found = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    return found.union(*map(options_inside, getattr(command, "commands", {}).values()))


OPTIONS = {name: EVERYWHERE | options_inside(command) for name, command in COMMANDS.items()}
WITHOUT_COMMAND = EVERYWHERE | {option for p in typer.main.get_command(program).params for option in p.opts}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[path], re.DOTALL | re.MULTILINE)


def prose(path: Path) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```", "", TEXTS[path], flags=re.DOTALL | re.MULTILINE)


def spans(path: Path) -> list[str]:
    """The code between single backticks, outside of fenced blocks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(path))]


def command_lines(path: Path) -> Iterator[list[str]]:
    """Every command that a page shows, in words."""
    shell = "\n".join(blocks(path, "bash")).replace("\\\n", " ")
    for line in (*shell.splitlines(), *spans(path)):
        for part in re.split(r"&&|\s#\s|;\s", line):
            try:
                words = shlex.split(part)
            except ValueError:
                continue  # an apostrophe: no command
            if words:
                yield words


def options_of(words: list[str]) -> list[str]:
    """The options among the words of a command, without their values."""
    return [word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)]


PROGRAM_CALLS = [
    (name_of(path), words[words.index(NAME) + 1 :])
    for path in SHOWING
    for words in command_lines(path)
    if NAME in words[:4]
]
BENCHMARK_CALLS = [
    (name_of(path), words[2], words[3:])
    for path in SHOWING
    for words in command_lines(path)
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks")
]


@pytest.mark.parametrize(("page", "words"), PROGRAM_CALLS, ids=lambda value: str(value)[:60])
def test_command_and_its_options_exist(page, words):
    if not words or words[0].startswith("-") or words[0] == "...":
        assert set(options_of(words)) <= WITHOUT_COMMAND
        return
    assert words[0] in COMMANDS
    inner = getattr(COMMANDS[words[0]], "commands", None)
    if inner is not None and words[1:]:
        assert set(words[1].split("|")) <= set(inner)
    assert [option for option in options_of(words[1:]) if option not in OPTIONS[words[0]]] == []


@pytest.mark.parametrize("module", sorted({module for _, module, _ in BENCHMARK_CALLS}))
def test_benchmark_and_its_options_exist(module, capsys, monkeypatch):
    calls = [words for _, called, words in BENCHMARK_CALLS if called == module]
    package = (ROOT / Path(*module.split("."))).is_dir()
    main = importlib.import_module(f"{module}.__main__" if package else module).main
    for words in calls:
        commands = [words[0]] if module in ("benchmarks.shapes", "benchmarks.emoji") and words else []
        monkeypatch.setattr(sys, "argv", [module, *commands, "--help"])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code in (0, None)
        known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
        assert [option for option in options_of(words) if option not in known] == []


@pytest.mark.parametrize("path", [*DOCS, ROOT / "SECURITY.md"], ids=name_of)
def test_options_that_are_named_alone_exist(path):
    known = set().union(WITHOUT_COMMAND, *OPTIONS.values())
    known |= {option for _, module, words in BENCHMARK_CALLS for option in options_of(words)}
    named = {option for span in spans(path) if span.startswith("-") for option in options_of(span.split())}
    assert sorted(named - known) == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    kept = ("".join(c for c in h.lower() if c in " -_" or unicodedata.category(c)[0] in "LN") for h in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


def test_every_page_is_linked_from_the_readme():
    links = re.findall(r"\]\(([^)#\s]+)", TEXTS[ROOT / "README.md"])
    assert [name_of(path) for path in DOCS[1:] if name_of(path) not in links] == []


def test_readme_is_short():
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= README_LINES


@pytest.mark.parametrize("path", [path for path in DOCS if blocks(path, "python")], ids=name_of)
def test_python_of_a_page_runs(path, tmp_path):
    """The blocks in turn, in one folder: a block may read the images that those before it saved."""
    for block in blocks(path, "python"):
        subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True, timeout=120)


def test_readme_shows_python():
    assert blocks(ROOT / "README.md", "python")


def test_commands_with_the_bundled_model_run(tmp_path):
    """Those of the README that need no download, in turn."""
    ran = 0
    for line in "\n".join(blocks(ROOT / "README.md", "bash")).splitlines():
        words = shlex.split(line.split("&&")[-1])
        if words[:1] != [NAME] or words[1] in ("chat", "serve") or "tiny" not in words:
            continue
        code = "import sys; from mobileo_cli.main import main; sys.exit(main())"
        subprocess.run([sys.executable, "-c", code, *words[1:]], cwd=tmp_path, check=True, timeout=120)
        outputs = [words[i + 1] for i, word in enumerate(words) if word == "--output"]
        assert all((tmp_path / output).exists() for output in outputs)
        ran += 1
    assert ran


def test_ci_runs_the_command_that_the_readme_gives():
    command = next(line for line in TEXTS[ROOT / "README.md"].splitlines() if line.endswith("pytest"))
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
