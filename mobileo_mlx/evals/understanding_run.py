"""Runs the benchmarks of visual questions with lmms-eval, one process each, in a folder that says what is done.

settings.json           the model and the rest, which a run that goes on must have, too
tasks/                  the task files, where the data sets are in a folder
pope/log.txt            what lmms-eval said
pope/cache/             answers, each stored when it is given: a run that was stopped goes on with the next question
pope/lmms-eval/         what lmms-eval writes: its results and a line for each question
pope/result.json        the numbers; written last, and where it is the benchmark is not run again
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._version import __version__
from ..atomic import atomic_write, output_error
from ..batch.folder import make_folder
from ..errors import ExistsError, MobileOError, OptionError
from ..files import JSONError, is_file, is_folder, open_input, parse_json, read_json
from ..locks import lock
from .lmms_tasks import DATA
from .understanding import AS_WRITTEN, JUDGE, MODEL, Benchmark, task_text, tasks_folder

SETTINGS, RESULT = "settings.json", "result.json"
HUB = "lmms-lab-encoder/"  # whose data sets the task files name
_RUN = "mobileo"  # the name of lmms-eval's run: with one of its own, each would begin anew
_PROGRESS = re.compile(rb"[\r\n]" + MODEL.encode() + rb": +\d+%[^\r\n]*?(\d+)/(\d+) ")
_LONGEST = 300  # characters of a reason
_ERROR = re.compile(r"(?:[\w.]+\.)?(\w*(?:Error|Exception|Exit|Interrupt))(?:: (.*))?")


@dataclass(frozen=True)
class Result:
    """What a benchmark gave.

    Attributes:
        name: of the benchmark.
        metrics: by lmms-eval's names.
        counts: how many questions each is about.
        unjudged: questions that the judge said nothing about; lmms-eval counts them as wrong.
        seconds: that the last run took.
        lmms_eval: its version.
    """

    name: str
    metrics: dict[str, float]
    counts: dict[str, int]
    unjudged: int = 0
    seconds: float = 0.0
    lmms_eval: str = ""


@dataclass(frozen=True)
class Asked:
    """How far a benchmark is: questions that were answered now, and those that were to be."""

    name: str
    done: int
    total: int


@dataclass(frozen=True)
class Settings:
    """What all benchmarks of a folder have in common.

    Attributes:
        loading: arguments of `MobileO.load`.
        limit: the first questions alone; None for all.
        data: a folder with the data sets, each in one of its name; None for the hub.
        judge: the name of MM-Vet's judge.
    """

    loading: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    data: Path | None = None
    judge: str = JUDGE


def run(benchmarks: Sequence[Benchmark], out: Path, settings: Settings) -> Iterator[Asked | Result]:
    """Runs what is not done yet, and yields how far it is, and the result of each benchmark when it is known.

    Args:
        benchmarks: in their order.
        out: the folder; made where it is missing.
        settings: those of its earlier runs, where there were any.

    Raises:
        OptionError: other settings; or a data set is missing.
        ExistsError: another process works in the folder.
        MobileOError: lmms-eval gives no result.
        OutputError: the folder can't be written.
    """
    out = make_folder(out, manifest=SETTINGS)
    with _locked(out):
        _check_settings(out, settings)
        tasks = _task_files(benchmarks, out, settings)
        for benchmark in benchmarks:
            folder = out / benchmark.name
            folder.mkdir(exist_ok=True)
            if not is_file(folder / RESULT):
                yield from _run_one(benchmark, folder, tasks, settings)
            yield read_result(folder)


def read_result(folder: Path) -> Result:
    """The result of a benchmark.

    Raises:
        MobileOError: it is not one.
    """
    try:
        return Result(**read_json(folder / RESULT, error=MobileOError, remedy="remove it, to run the benchmark again"))
    except TypeError as error:
        raise MobileOError(f"'{folder / RESULT}' is not a result; remove it, to run the benchmark again.") from error


def model_args(loading: Mapping[str, Any]) -> str:
    """Arguments of `MobileO.load` as lmms-eval's `--model_args`; `lmms.py` reads them.

    Raises:
        OptionError: a name has a quotation mark, which lmms-eval can't be given.
    """
    given = {"pretrained" if name == "model" else name: value for name, value in loading.items()}
    texts = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            value = ",".join(f"{part}={of_part}" for part, of_part in value.items())
        text = json.dumps(value) if isinstance(value, list | tuple) else f'"{value}"'
        if text.count('"') % 2 or "\\" in text or (isinstance(value, str) and '"' in value):
            raise OptionError(f"{value}: lmms-eval can't be given a name with a quotation mark or a backslash.")
        texts[name] = text
    return ",".join(f"{name}={text}" for name, text in texts.items())


def command_line(benchmark: Benchmark, folder: Path, tasks: Path, settings: Settings) -> list[str]:
    """How lmms-eval is called."""
    return [
        *(sys.executable, "-m", "lmms_eval", "--model", MODEL),
        *("--model_args", model_args(settings.loading), "--force_simple", "--batch_size", "1"),
        *("--include_path", str(tasks), "--tasks", benchmark.task),
        *("--output_path", str(folder / "lmms-eval"), "--log_samples", "--use_cache", str(folder / "cache")),
        # In several threads MMMU's guesses for answers that are no option would differ from run to run.
        *("--process_docs_parallel", "4" if benchmark.needs_judge else "1"),
        *(("--limit", str(settings.limit)) if settings.limit is not None else ()),
    ]


def environment(settings: Settings) -> dict[str, str]:
    """The variables that lmms-eval, the tasks and the judge read, over those of this process."""
    data = {DATA: str(settings.data)} if settings.data is not None else {}
    return {
        **os.environ,
        **data,
        "LMMS_CACHE_RUN_ID": _RUN,
        "MODEL_VERSION": settings.judge,
        "API_TYPE": "openai",
        "PYTHONSAFEPATH": "1",  # what lies in the working directory is not imported
    }


def _run_one(benchmark: Benchmark, folder: Path, tasks: Path, settings: Settings) -> Iterator[Asked]:
    begin = time.time()
    log = folder / "log.txt"
    for done, total in _follow(command_line(benchmark, folder, tasks, settings), environment(settings), log):
        yield Asked(benchmark.name, done, total)
    results = [path for path in (folder / "lmms-eval").rglob("*_results.json") if path.stat().st_mtime >= begin - 2]
    if not results:
        raise MobileOError(f"lmms-eval gave no result of {benchmark.title}: {_reason(log)}; all it said is in '{log}'.")
    result = _collect(benchmark, max(results), time.time() - begin)
    with atomic_write(folder / RESULT, overwrite=True) as path:
        path.write_text(json.dumps(asdict(result), indent=2), encoding="utf-8")


def _follow(command: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[tuple[int, int]]:
    """Runs a program to its end, writes what it says into a file, and yields how many questions it has answered.

    The program is ended where the caller stops early.

    Raises:
        OutputError: the file can't be written.
    """
    try:
        file = open(log, "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise output_error(error, log) from error
    with (
        file,
        subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        assert process.stdout is not None
        try:
            end = b"\n"  # of what it said: a line may come in pieces
            while said := process.stdout.read1():  # type: ignore[attr-defined]
                try:
                    file.write(said)
                    file.flush()
                except OSError as error:
                    raise output_error(error, log) from error
                end += said
                read = max(end.rfind(b"\r"), end.rfind(b"\n"))
                for match in _PROGRESS.finditer(end):
                    yield int(match[1]), int(match[2])
                    read = max(read, match.end())
                end = end[read:][-1000:]
        finally:
            if process.poll() is None:
                process.terminate()


def _reason(log: Path) -> str:
    """The last error that a log names."""
    with open_input(log) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 100_000))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        if match := _ERROR.fullmatch(line.strip()):
            reason = match[2] or match[1]
            return f"{reason[:_LONGEST]}..." if len(reason) > _LONGEST else reason.rstrip(".")
    return "it ended without saying why"


def _collect(benchmark: Benchmark, results: Path, seconds: float) -> Result:
    """What lmms-eval's files say of a benchmark.

    Raises:
        MobileOError: they lack its number.
    """
    found = read_json(results, error=MobileOError, remedy="run it again")
    values = found.get("results", {}).get(benchmark.task, {})
    known = {metric.key for metric in (benchmark.metric, *benchmark.variants)}
    metrics = {key: values[f"{key},none"] for key in known if isinstance(values.get(f"{key},none"), int | float)}
    counts = dict.fromkeys(metrics, 0)
    unjudged = as_written = questions = 0
    for sample in _samples(results, benchmark.task):
        questions += 1
        for key in metrics:
            counts[key] += key in sample
        if benchmark.needs_judge:
            unjudged += not sample.get(benchmark.metric.key, {}).get("eval_model")
        as_written += sample.get("filtered_resps") == sample.get("target")
    if AS_WRITTEN in known and questions:
        metrics[AS_WRITTEN], counts[AS_WRITTEN] = as_written / questions, questions
    if benchmark.metric.key not in metrics:
        raise MobileOError(f"'{results}' has no {benchmark.metric.key}: is this lmms-eval another version?")
    return Result(
        benchmark.name, metrics, counts, unjudged, round(seconds, 1), str(found.get("lmms_eval_version") or "")
    )


def _samples(results: Path, task: str) -> Iterator[dict[str, Any]]:
    """The lines that lmms-eval wrote beside its results, one for each question."""
    path = results.with_name(results.name.replace("_results.json", f"_samples_{task}.jsonl"))
    with open_input(path, error=MobileOError) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield parse_json(line, surrogates=True)
            except JSONError as error:
                raise MobileOError(f"'{path}', line {number} {error}; run the benchmark again.") from error


def _check_settings(out: Path, settings: Settings) -> None:
    """Writes the settings, or compares them with those of an earlier run.

    Raises:
        OptionError: they differ.
    """
    path = out / SETTINGS
    data = None if settings.data is None else str(settings.data)
    now: dict[str, Any] = {"mobileo-mlx": __version__, **asdict(settings), "data": data}
    if not is_file(path):
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(now, indent=2), encoding="utf-8")
        return
    before = read_json(path, error=OptionError, remedy="choose another folder")
    now = parse_json(json.dumps(now))  # lists for tuples
    if differing := sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name)):
        name = differing[0]
        raise OptionError(
            f"'{out}' was begun with {name} {before.get(name)} and this run has {now.get(name)}; give the same, or "
            "another --out."
        )


def _task_files(benchmarks: Sequence[Benchmark], out: Path, settings: Settings) -> Path:
    """The folder with the task files: ours, or copies that name a folder's data sets.

    Raises:
        OptionError: a data set is missing.
    """
    if settings.data is None:
        return tasks_folder()
    folder = out / "tasks"
    folder.mkdir(exist_ok=True)
    for benchmark in benchmarks:
        data = settings.data / benchmark.data
        if not is_folder(data, error=OptionError):
            raise OptionError(
                f"--data: '{settings.data}' has no folder '{benchmark.data}': put the data set {HUB}{benchmark.data} "
                "there, or leave --data out to download it."
            )
        text = task_text(benchmark)
        name = f"dataset_path: {HUB}{benchmark.data}\n"
        assert name in text, benchmark.task
        with atomic_write(folder / f"{benchmark.task}.yaml", overwrite=True) as path:
            path.write_text(text.replace(name, f"dataset_path: {json.dumps(str(data))}\n"), encoding="utf-8")
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder.

    Raises:
        ExistsError: one works there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if lock(descriptor) is False:
            raise ExistsError(f"another process runs benchmarks in '{folder}'; wait for it, or choose another --out.")
        yield
    finally:
        os.close(descriptor)
