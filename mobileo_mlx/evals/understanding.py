"""The seven benchmarks of visual questions in table 1 of arXiv 2602.20161, and what running them needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..errors import OptionError
from ..files import read_text

LMMS_EVAL = "0.7.3"  # the version whose functions the task files name
JUDGE = "gpt-4-0613"  # of MM-Vet, in lmms-eval 0.3.0
MODEL = "mobileo_mlx"  # the entry point's name
ENTRY_POINTS = "lmms_eval.models"
REQUIREMENTS = "lmms-requirements.txt"

_MAX_FILE = 2**16  # bytes of a file that comes with the package


@dataclass(frozen=True)
class Metric:
    """A number that lmms-eval gives.

    Attributes:
        key: its name there.
        label: what it is.
        is_share: of questions, whose interval is binomial; F1 scores are none.
    """

    key: str
    label: str
    is_share: bool = True


@dataclass(frozen=True)
class Benchmark:
    """One of the seven.

    Attributes:
        name: on the command line.
        title: in the paper.
        task: in `tasks/`.
        data: its folder among the data sets.
        questions: of the whole benchmark that `metric` counts.
        paper, fastvlm: percent, of Mobile-O-0.5B and FastVLM-0.5B in table 1.
        metric: what is taken for the paper's.
        variants: other readings of the paper's number, and what the benchmark has besides.
        full: what `metric` is worth at most.
        needs_judge: it is scored by a language model elsewhere.
    """

    name: str
    title: str
    task: str
    data: str
    questions: int
    paper: float
    fastvlm: float
    metric: Metric
    variants: tuple[Metric, ...] = ()
    full: float = 1.0
    needs_judge: bool = False


AS_WRITTEN = "exact_match_as_written"  # counted here, not by lmms-eval

BENCHMARKS = (
    Benchmark("mmmu", "MMMU", "mobileo_mmmu_val", "MMMU", 900, 34.6, 33.3, Metric("mmmu_acc", "accuracy")),
    Benchmark(
        "textvqa", "TextVQA", "mobileo_textvqa_val", "textvqa", 5000, 67.8, 68.0, Metric("exact_match", "VQA accuracy")
    ),
    Benchmark(
        *("mmvet", "MM-Vet", "mobileo_mmvet", "MMVet", 218, 38.1, 37.5, Metric("gpt_eval_score", "judge's score")),
        full=100.0,
        needs_judge=True,
    ),
    Benchmark(
        *("seed", "SEED", "mobileo_seedbench", "SEED-Bench", 14_233, 69.4, 69.3, Metric("seed_image", "pictures")),
        variants=(Metric("seed_video", "videos, first frame"), Metric("seed_all", "all")),
    ),
    Benchmark(
        *("chartqa", "ChartQA", "mobileo_chartqa", "ChartQA", 2500, 75.2, 71.6),
        metric=Metric("relaxed_overall", "relaxed accuracy"),
        variants=(Metric("relaxed_human_split", "by people"), Metric("relaxed_augmented_split", "by a program")),
    ),
    Benchmark(
        *("pope", "POPE", "mobileo_pope", "POPE", 9000, 86.4, 81.1, Metric("pope_accuracy", "accuracy")),
        variants=(
            Metric("pope_f1_score", "F1 of all", is_share=False),
            Metric("pope_f1_mean", "mean F1 of three parts", is_share=False),
        ),
    ),
    Benchmark(
        *("gqa", "GQA", "mobileo_gqa", "GQA", 12_578, 62.9, 62.7, Metric("exact_match", "without case, punctuation")),
        variants=(Metric(AS_WRITTEN, "as written"),),
    ),
)
BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}


def select(tasks: str) -> list[Benchmark]:
    """The benchmarks that a list of names means, in the paper's order.

    Args:
        tasks: names with commas between them, or "all".

    Raises:
        OptionError: there is no such name.
    """
    names = {name.strip().lower() for name in tasks.split(",")}
    if unknown := sorted(names - BY_NAME.keys() - {"all"}):
        raise OptionError(f"--tasks: there is no {unknown[0]!r}; there are {', '.join(BY_NAME)} and all.")
    return [benchmark for benchmark in BENCHMARKS if benchmark.name in names or "all" in names]


def check_judge(benchmarks: Sequence[Benchmark], key: str | None) -> None:
    """Says early that MM-Vet can't be scored.

    Args:
        benchmarks: that are to be run.
        key: of the judge's service.

    Raises:
        OptionError: one of them needs a judge, and there is no key.
    """
    if key or not any(benchmark.needs_judge for benchmark in benchmarks):
        return
    others = ",".join(benchmark.name for benchmark in benchmarks if not benchmark.needs_judge)
    without = f", or leave MM-Vet out: --tasks {others}" if others else ""
    raise OptionError(f"MM-Vet is scored by a language model, the judge: put its key into OPENAI_API_KEY{without}.")


def check_installation() -> None:
    """Says which packages are missing, without importing any.

    Raises:
        OptionError: lmms-eval, or what it needs, is missing, or has a version that doesn't go with it; with the
            commands that change that.
    """
    if _version("lmms-eval") is None:
        raise OptionError(
            f"this runs lmms-eval, which is not installed: pip install --no-deps lmms-eval=={LMMS_EVAL}, then "
            f"pip install -r '{requirements_file()}'."
        )
    if unfit := [line for line in requirements() if not _is_met(line)]:
        packages = " ".join(f"'{line}'" for line in unfit)
        raise OptionError(f"lmms-eval needs packages that are missing, or too new or old: pip install {packages}.")
    found = _version("lmms-eval")
    if found is None or _numbers(found) < _numbers(LMMS_EVAL):
        raise OptionError(
            f"the tasks are those of lmms-eval {LMMS_EVAL} and this is {found}: "
            f"pip install --no-deps lmms-eval=={LMMS_EVAL}."
        )
    if MODEL not in metadata.entry_points(group=ENTRY_POINTS).names:
        raise OptionError(
            "lmms-eval finds models of installed packages only, and mobileo-mlx is not installed, or was before it had "
            "this command: install it again with pip."
        )


def requirements_file() -> Path:
    """The list for pip."""
    return Path(__file__).with_name(REQUIREMENTS)


def tasks_folder() -> Path:
    """Where lmms-eval's task files are."""
    return Path(__file__).with_name("tasks")


def task_text(benchmark: Benchmark) -> str:
    """The task file of a benchmark."""
    return read_text(tasks_folder() / f"{benchmark.task}.yaml", limit=_MAX_FILE)


def requirements() -> list[str]:
    """Its lines, such as `filelock<3.21`."""
    lines = read_text(requirements_file(), limit=_MAX_FILE).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _is_met(requirement: str) -> bool:
    match = re.fullmatch(r"([\w-]+)(?:(<|>=)([\d.]+))?", requirement)
    assert match is not None, requirement
    name, relation, bound = match.groups()
    found = _version(name)
    if found is None or relation is None:
        return found is not None
    return (_numbers(found) < _numbers(bound)) == (relation == "<")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
