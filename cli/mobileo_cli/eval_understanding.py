"""`mobileo-mlx eval understanding`: the benchmarks of visual questions, by lmms-eval."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, printing

if TYPE_CHECKING:
    from mobileo_mlx.evals.understanding_report import Report, Row

_HEAD = ("benchmark", "metric", "questions", "here", "95 % interval", "paper", "FastVLM")


@options.takes(options.group(options.Loading))
def understanding(
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks", metavar="NAME,...|all", help="Of mmmu, textvqa, mmvet, seed, chartqa, pope, gqa; or all."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder for results; a run in it goes on.")
    ] = Path("understanding"),
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="Ask the first N questions alone.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="A folder with the data sets, such as DIR/POPE, as they are on the hub. [default: download them]",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="NAME",
            help="The language model that scores MM-Vet, with the key in OPENAI_API_KEY. [default: gpt-4-0613]",
        ),
    ] = None,
    as_json: options.Json = False,
    **given: Any,
) -> None:
    """Run the paper's benchmarks of visual questions, and print the results beside the paper's.

    lmms-eval does the work, which is installed apart: docs/understanding.md. What is finished is not run again.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.evals import understanding as seven
    from mobileo_mlx.evals.understanding_report import as_json as to_json
    from mobileo_mlx.evals.understanding_report import report
    from mobileo_mlx.evals.understanding_run import Result, Settings, run
    from mobileo_mlx.files import absolute, is_folder

    benchmarks = seven.select(tasks)
    if limit is not None and limit < 1:
        raise OptionError(f"--limit {limit}: choose a number from 1 on.")
    if data is not None and not is_folder(data, error=OptionError):
        raise OptionError(f"--data: there is no folder '{data}'.")
    loading = options.loading(options.resolve_preset(given))
    seven.check_installation()
    seven.check_judge(benchmarks, os.environ.get("OPENAI_API_KEY"))
    settings = Settings(
        {"model": options.DEFAULT_MODEL, **loading},
        limit,
        None if data is None else Path(absolute(data, error=OptionError)),
        judge or seven.JUDGE,
    )
    results: dict[str, Result] = {}
    with printing.Progress() as bar:
        bar.say(_working_on(benchmarks, results))
        for event in run(benchmarks, out, settings):
            if isinstance(event, Result):
                results[event.name] = event
                bar.say(_working_on(benchmarks, results))
            else:
                bar.label = seven.BY_NAME[event.name].title
                bar.update(event.done, event.total)
    found = report(benchmarks, results, limit=limit, judge=settings.judge)
    if as_json:
        printing.report({"folder": str(out), **to_json(found)})
    else:
        printing.out("\n".join(_lines(found)))


def _working_on(benchmarks: Any, results: Any) -> str:
    left = [benchmark.title for benchmark in benchmarks if benchmark.name not in results]
    return f"{left[0]}: the data set and the model" if left else ""


def _lines(found: Report) -> list[str]:
    average = found.average
    rows = [_HEAD, *map(_cells, found.rows)]
    names = "all seven" if average.is_complete else f"{len(average.titles)} of seven"
    rows.append(
        (
            *("average", names, ""),
            *(f"{average.value:.1f}", _interval(average.low, average.high)),
            *(f"{average.paper:.1f}", f"{average.fastvlm:.1f}"),
        )
    )
    lines = [printing.table(rows, (False, False, True, True, True, True, True))]
    if not average.is_complete:
        lines.append(
            f"\nThe averages are those of {', '.join(average.titles)} alone; of all seven the paper has 62.1, and "
            "FastVLM-0.5B 60.5."
        )
    return [*lines, *(f"\nNote: {note}" for note in found.notes)]


def _cells(row: Row) -> tuple[str, ...]:
    interval = "" if row.low is None or row.high is None else _interval(row.low, row.high)
    paper = (f"{row.benchmark.paper:.1f}", f"{row.benchmark.fastvlm:.1f}") if row.is_main else ("", "")
    title = row.benchmark.title if row.is_main else ""
    return (title, row.metric.label, f"{row.questions:,}", f"{row.value:.1f}", interval, *paper)


def _interval(low: float, high: float) -> str:
    return f"{low:.1f} - {high:.1f}"
