"""`mobileo-mlx eval understanding` around a stand-in for lmms-eval, which is not installed where this runs."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mobileo_cli.main import main
from PIL import Image

from mobileo_mlx import MobileO
from mobileo_mlx.errors import ExistsError, MobileOError, OptionError, OutputError
from mobileo_mlx.evals import understanding
from mobileo_mlx.evals.understanding import BENCHMARKS, BY_NAME, select
from mobileo_mlx.evals.understanding_report import report, wilson
from mobileo_mlx.evals.understanding_run import HUB, Asked, Result, Settings, model_args, run

# What `python -m lmms_eval` does here: says what the test's variable STUB asks for.
STUB = """
import json, os, pathlib, sys, time
given = lambda name: sys.argv[sys.argv.index(name) + 1]
pathlib.Path(os.environ["STUB_CALLS"]).open("a").write(given("--tasks") + "\\n")
sys.stderr.write("\\rmobileo_mlx:  50%|#####     | 1/2 [00:01<00:01,  1.0s/it]")
sys.stderr.flush()
if os.environ["STUB"] == "hang":
    time.sleep(60)
if os.environ["STUB"] == "fail":
    print("Traceback (most recent call last):\\nValueError: the data are gone.\\nINFO: bye")
    sys.exit(0)
sys.stderr.write("\\rmobileo_mlx: 100%|##########| 2/2 [00:02<00:00,  1.0s/it]\\n")
folder = pathlib.Path(given("--output_path")) / "__tiny__"
folder.mkdir(parents=True, exist_ok=True)
task = given("--tasks")
metrics = json.loads(os.environ["STUB_METRICS"])
values = {f"{name},none": value for name, value in metrics.items()} | {"submission,none": []}
results = {"results": {task: values}, "lmms_eval_version": "0.7.3"}
(folder / "20260101_000000_results.json").write_text(json.dumps(results))
with open(folder / f"20260101_000000_samples_{task}.jsonl", "w") as file:
    for answer, target in (("Yes", "yes"), ("no", "no")):
        print(json.dumps({"filtered_resps": answer, "target": target, **dict.fromkeys(metrics, 1)}), file=file)
"""

POPE = {"pope_accuracy": 0.5, "pope_f1_score": 0.4}
GQA = {"exact_match": 1.0}


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in in lmms-eval's place; the file that is returned has a line for each call."""
    package = tmp_path / "stub" / "lmms_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(textwrap.dedent(STUB))
    calls = tmp_path / "calls"
    calls.touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("STUB", "run")
    monkeypatch.setenv("STUB_CALLS", str(calls))
    monkeypatch.setenv("STUB_METRICS", json.dumps({**POPE, **GQA}))
    return calls


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the check takes for installed: versions by package, to be changed; and our entry point."""
    versions = {"lmms-eval": "0.7.3", "filelock": "3.20.4", "datasets": "5.2.0"}
    versions |= {line: "1.0" for line in understanding.requirements() if line.isidentifier() or "-" in line}
    monkeypatch.setattr(understanding, "_version", versions.get)
    entries = types.SimpleNamespace(names={"mobileo_mlx"})
    monkeypatch.setattr(understanding.metadata, "entry_points", lambda group: entries)
    return versions


# The list of benchmarks, and what they need.


def test_names_are_taken_in_the_papers_order() -> None:
    assert [one.name for one in select("gqa, POPE")] == ["pope", "gqa"]
    assert select("all") == list(BENCHMARKS)
    with pytest.raises(OptionError, match="there is no 'vqav2'; there are mmmu, textvqa, mmvet, seed, chartqa, pope"):
        select("gqa,vqav2")


def test_papers_averages_are_those_of_the_seven() -> None:
    assert round(sum(one.paper for one in BENCHMARKS) / 7, 1) == 62.1
    assert round(sum(one.fastvlm for one in BENCHMARKS) / 7, 1) == 60.5


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.name)
def test_each_has_its_task_file(benchmark: Any) -> None:
    """With its name and data set, and a metric for each number that the table shows, but for what is counted here."""
    text = understanding.task_text(benchmark)
    assert f"task: {benchmark.task}\ndataset_path: {HUB}{benchmark.data}\n" in text
    for metric in (benchmark.metric, *benchmark.variants):
        assert metric.key == understanding.AS_WRITTEN or f"- metric: {metric.key}\n" in text


def test_installation_is_checked(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    understanding.check_installation()
    installed["filelock"] = "4.3.1"
    del installed["sacrebleu"]
    with pytest.raises(OptionError, match=r"pip install 'filelock<3\.21' 'sacrebleu'\.$"):
        understanding.check_installation()
    installed |= {"filelock": "3.20.4", "sacrebleu": "2", "lmms-eval": "0.6.1"}
    with pytest.raises(OptionError, match=r"this is 0\.6\.1: pip install --no-deps lmms-eval==0\.7\.3"):
        understanding.check_installation()
    installed["lmms-eval"] = "0.7.3"
    monkeypatch.setattr(understanding.metadata, "entry_points", lambda group: types.SimpleNamespace(names=set()))
    with pytest.raises(OptionError, match="install it again with pip"):
        understanding.check_installation()
    del installed["lmms-eval"]
    with pytest.raises(OptionError, match=r"not installed: pip install --no-deps lmms-eval==0\.7\.3, then pip install"):
        understanding.check_installation()


def test_mm_vet_needs_a_key() -> None:
    understanding.check_judge(select("mmvet"), "key")
    understanding.check_judge(select("pope"), None)
    with pytest.raises(OptionError, match=r"OPENAI_API_KEY, or leave MM-Vet out: --tasks pope,gqa\.$"):
        understanding.check_judge(select("mmvet,pope,gqa"), "")


# Running them.


def test_runs_each_and_goes_on_with_the_rest(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    settings = Settings({"model": "tiny"})
    events = list(run(select("pope"), out, settings))
    assert events[:-1] == [Asked("pope", 1, 2), Asked("pope", 2, 2)]
    result = events[-1]
    assert isinstance(result, Result)
    assert result.metrics == POPE
    assert result.counts == dict.fromkeys(POPE, 2)
    events = list(run(select("gqa,pope"), out, settings))
    assert events[0] == result  # which is not run again
    assert isinstance(events[-1], Result)
    assert events[-1].metrics == {**GQA, "exact_match_as_written": 0.5}  # "Yes" is not "yes"
    assert stub.read_text().split() == ["mobileo_pope", "mobileo_gqa"]
    with pytest.raises(OptionError, match="begun with limit None and this run has 5; give the same"):
        list(run(select("pope"), out, Settings({"model": "tiny"}, limit=5)))


def test_a_benchmark_without_result_ends_the_run(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval's exit status is 0 then, too. What was done before stays."""
    out = tmp_path / "out"
    monkeypatch.setenv("STUB", "fail")
    with pytest.raises(MobileOError, match=r"no result of POPE: the data are gone; all it said is in '.*log.txt'"):
        list(run(select("pope,gqa"), out, Settings()))
    monkeypatch.setenv("STUB", "run")
    monkeypatch.setenv("STUB_METRICS", json.dumps({"another": 1.0}))
    with pytest.raises(MobileOError, match="has no pope_accuracy: is this lmms-eval another version"):
        list(run(select("pope,gqa"), out, Settings()))


def test_stopping_ends_lmms_eval(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB", "hang")
    running: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            running.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    events = run(select("pope"), tmp_path / "out", Settings())
    assert next(events) == Asked("pope", 1, 2)
    with pytest.raises(ExistsError, match="another process runs benchmarks"):
        next(run(select("gqa"), tmp_path / "out", Settings()))
    events.close()
    assert running[0].wait(10) == -signal.SIGTERM


def test_data_of_a_folder(stub: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "POPE").mkdir(parents=True)
    settings = Settings(data=tmp_path / "data")
    list(run(select("pope"), tmp_path / "out", settings))
    text = (tmp_path / "out" / "tasks" / "mobileo_pope.yaml").read_text()
    assert f'dataset_path: "{tmp_path}/data/POPE"\n' in text
    with pytest.raises(OptionError, match=r"has no folder 'GQA': put the data set lmms-lab-encoder/GQA there"):
        list(run(select("gqa"), tmp_path / "out", settings))


def test_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(OutputError, match="holds other things"):
        list(run(select("gqa"), tmp_path, Settings()))


def test_how_the_model_is_named_to_lmms_eval() -> None:
    loading = {"model": "a, b", "quantize": {"llm": 4, "dit": 8}, "adapter": ["x"], "adapter_scale": [0.5]}
    assert model_args(loading) == 'pretrained="a, b",quantize="llm=4,dit=8",adapter=["x"],adapter_scale=[0.5]'
    with pytest.raises(OptionError, match="quotation mark"):
        model_args({"model": 'a"b'})


# The report.


def test_wilson_is_that_of_the_textbook() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)


def test_report_compares_what_was_run() -> None:
    results = {
        "pope": Result("pope", {"pope_accuracy": 0.5, "pope_f1_score": 0.4}, dict.fromkeys(POPE, 100)),
        "mmvet": Result("mmvet", {"gpt_eval_score": 50.0}, {"gpt_eval_score": 100}, unjudged=3),
    }
    found = report(select("pope,mmvet"), results, limit=100, judge="somebody")
    assert [(row.metric.key, row.value, row.is_main) for row in found.rows] == [
        ("gpt_eval_score", 50.0, True),
        ("pope_accuracy", 50.0, True),
        ("pope_f1_score", 40.0, False),
    ]
    assert found.rows[1].low == pytest.approx(40.383, abs=1e-3)
    assert found.rows[2].low is None  # an F1 score is no share
    assert found.average.value == 50.0
    assert found.average.low == pytest.approx(50 - 9.617 / 2**0.5, abs=1e-3)
    assert found.average.paper == pytest.approx((86.4 + 38.1) / 2)
    assert not found.average.is_complete
    notes = " ".join(found.notes)
    assert "scored by somebody" in notes
    assert "97 of 100 answers" in notes
    assert "first 100 questions" in notes


# The command.


def test_command_prints_the_table(
    stub: Path, installed: object, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["eval", "understanding", "--tasks", "pope,gqa", "--model", "tiny", "--out", "out"]
    assert main(words) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["POPE", "accuracy", "2", "50.0", "9.5", "-", "90.5", "86.4", "81.1"] in rows
    assert ["average", "2", "of", "seven", "75.0", *rows[6][5:8], "74.7", "71.9"] in rows
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["average"]["benchmarks"] == ["pope", "gqa"]
    assert found["results"][0]["paper"] == 86.4
    assert len(stub.read_text().split()) == 2  # the second time nothing was run


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tasks", "chess"], "there is no 'chess'"),
        (["--tasks", "pope", "--limit", "0"], "choose a number from 1 on"),
        (["--tasks", "pope", "--data", "nowhere"], "there is no folder 'nowhere'"),
        (["--tasks", "pope"], "pip install --no-deps lmms-eval==0.7.3"),
    ],
)
def test_command_refuses_in_one_sentence(
    words: list[str],
    sentence: str,
    installed: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    del installed["lmms-eval"]
    assert main(["eval", "understanding", *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_both_programs(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends with status 130, and lmms-eval, which would go on for a minute, with it."""
    monkeypatch.setenv("STUB", "hang")
    code = (
        "import sys; from mobileo_cli.main import main; from mobileo_mlx.evals import understanding as u; "
        "u.check_installation = lambda: None; sys.exit(main())"
    )
    words = ["eval", "understanding", "--tasks", "pope", "--model", "tiny", "--progress", "json"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        begin = time.monotonic()
        for line in process.stderr:
            if b'"step"' in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()  # to its end: lmms-eval, which has no part of it, must not keep it open
        assert process.wait(30) == 130, rest
        assert time.monotonic() - begin < 55
    assert b"interrupted" in rest


# The plug-in, on a stand-in for lmms-eval's base class.


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    class Base:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}

    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = Base  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "mobileo_mlx.evals.lmms", raising=False)
    yield importlib.import_module("mobileo_mlx.evals.lmms")
    sys.modules.pop("mobileo_mlx.evals.lmms", None)


def request(doc_id: int, context: str, **generation_kwargs: Any) -> Any:
    arguments = (context, generation_kwargs, lambda doc: doc["images"], doc_id, "task", "test")
    return types.SimpleNamespace(args=arguments)


def test_plugin_shows_the_first_picture_and_leaves_the_text(plugin: Any) -> None:
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    model = plugin.MobileOModel(pretrained='"tiny"', batch_size=1, max_batch_size=None, device=None)
    model.task_dict["task"] = {"test": [{"images": [red, blue]}, {"images": [blue]}]}
    question = "what color is the background? It is not in <image 2>."
    answers = list(model.generate_until([request(i, question, max_new_tokens=3, until=["a"]) for i in (0, 1)]))
    tiny = MobileO.load("tiny")
    assert answers == [tiny.ask(image, question, max_tokens=3).text for image in (red, blue)]
    assert answers[0] != tiny.ask([red, blue], question, max_tokens=3).text


def test_plugin_answers_one_by_one(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval stores an answer when it gets it: what was answered before Ctrl-C is not asked again."""
    model = plugin.MobileOModel("tiny")
    model.task_dict["task"] = {"test": [{"images": []}] * 3}
    asked = []

    def ask(images: Any, question: str, **options: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append((question, options["seed"]))
        return types.SimpleNamespace(text=question)

    monkeypatch.setattr(model.model, "ask", ask)
    answers = model.generate_until([request(i, f"question {i}") for i in range(3)])
    assert next(answers) == "question 0"
    assert asked == [("question 0", 0)]
    assert next(answers) == "question 1"
    with pytest.raises(KeyboardInterrupt):
        next(answers)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1024, 0.0, 1.0)),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 0, "do_sample": True}, (16, 0.0, 1.0)),
        ({"max_new_tokens": 1024, "temperature": 0.2, "top_p": 1.0, "do_sample": False}, (1024, 0.2, 1.0)),
        ({"until": ["ASSISTANT:"], "image_aspect_ratio": "original", "num_beams": 1}, (1024, 0.0, 1.0)),
    ],
)
def test_options_follow_the_temperature(plugin: Any, given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    options = plugin.answer_options(given, 7)
    assert (options["max_tokens"], options["temperature"], options["top_p"]) == expected
    assert options["seed"] == 7
    assert "stop" not in options


def test_plugin_refuses_what_it_has_not(plugin: Any) -> None:
    with pytest.raises(OptionError, match="there is no 'conv_template'"):
        plugin.MobileOModel("tiny", conv_template="qwen_2")
    model = plugin.MobileOModel("tiny", dtype='"llm=float32"', quantize="all=8")
    assert model.model.parts.bits
    with pytest.raises(NotImplementedError, match="choose a task with output_type: generate_until"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="one round"):
        model.generate_until_multi_round([])


def test_data_need_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.shapes.lmms_data import write_lmms_data

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(OptionError, match="pip install datasets"):
        write_lmms_data(tmp_path / "data", 1)


def test_help_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "understanding", "--help"]) == 0
    assert f"Of {', '.join(BY_NAME)}; or all." in " ".join(capsys.readouterr().out.split())
