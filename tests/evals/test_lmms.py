"""The seven benchmarks by the real lmms-eval, without a network, on data of the world of shapes.

The light installation of docs/understanding.md is enough. The bundled model has never seen the suffixes of the real
benchmarks, so its scores are low; that each is what the samples give, and each answer that of `ask`, is what counts.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from mobileo_mlx import MobileO
from mobileo_mlx.evals import understanding
from mobileo_mlx.evals.understanding import BENCHMARKS, BY_NAME
from mobileo_mlx.evals.understanding_run import Settings, environment

parquet = pytest.importorskip("pyarrow.parquet", reason="lmms-eval is not installed")
pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
if "mobileo_mlx" not in metadata.entry_points(group="lmms_eval.models").names:
    pytest.skip("mobileo-mlx was installed before it had its entry point", allow_module_level=True)

pytestmark = pytest.mark.slow

COUNT = 12
JUDGE = "judge-1"


class Judge(BaseHTTPRequestHandler):
    """A language model that knows one thing: whether the answer is the expected one, word for word."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Judge.asked.append((body["model"], self.headers["Authorization"]))
        _, expected, given, _ = body["messages"][0]["content"].splitlines()[-1].rsplit("|", 3)
        message = {"role": "assistant", "content": "1.0" if expected.strip() == given.strip() else "0.0"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        data = json.dumps({**answer, "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by another process: this one has the folder of the tests on its path."""
    folder = tmp_path_factory.mktemp("lmms") / "data"
    command = [sys.executable, "-m", "benchmarks.shapes", "lmms-data", "--out", str(folder), "--n", str(COUNT)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    return folder


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, judge: str) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hub"))}
    return {**os.environ, **offline, "OPENAI_API_KEY": "secret", "OPENAI_API_URL": judge}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, data: Path, env: dict[str, str]) -> Path:
    """The folder of a finished run of all seven."""
    folder = tmp_path_factory.mktemp("run") / "out"
    done = run(folder, data, env)
    assert done.returncode == 0, done.stderr
    return folder


def run(out: Path, data: Path, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mobileo_mlx", "eval", "understanding", "--tasks", "all", "--model", "tiny"]
    more = ["--data", str(data), "--out", str(out), "--judge", JUDGE, "--json", *words]
    return subprocess.run([*command, *more], env=env, capture_output=True, text=True)


def samples(out: Path, name: str) -> list[dict[str, Any]]:
    (path,) = (out / name).rglob(f"*_samples_{BY_NAME[name].task}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    (path,) = (data / BY_NAME[name].data).rglob("*.parquet" if name != "gqa" else "*instructions/*.parquet")
    return parquet.read_table(path).to_pylist()


def opened(image: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(image["bytes"])).convert("RGB")


# What the paper's numbers are, counted here from answers and rows alone.


def mmmu(answers: list[str], rows: list[dict[str, Any]], parsed: list[Any]) -> float:
    right = 0
    for answer, row, found in zip(answers, rows, parsed, strict=True):
        if row["question_type"] == "open":
            right += row["answer"] in answer.lower()
        else:  # an answer without a letter is a guess, which lmms-eval makes
            letters = re.findall(r"\b[A-D]\b", answer)
            options = ast.literal_eval(row["options"])
            assert len(options) == 4
            right += (letters[-1] if letters else found[0]) == row["answer"]
    return round(right / len(rows), 5)


def textvqa(answers: list[str], rows: list[dict[str, Any]]) -> float:
    """Each of ten people is left out once; a third of the others is enough. Numbers are digits there."""
    digits = {"one": "1", "two": "2", "three": "3", "four": "4"}
    scores = []
    for answer, row in zip(answers, rows, strict=True):
        said = " ".join(digits.get(word, word) for word in answer.lower().split() if word not in ("a", "an", "the"))
        people = [digits.get(one, one) for one in row["answers"]]
        scores.append(
            statistics.fmean(min(1, (people[:k] + people[k + 1 :]).count(said) / 3) for k in range(len(people)))
        )
    return statistics.fmean(scores)


def f1(answers: list[str], rows: list[dict[str, Any]]) -> float:
    pairs = [(answer.lower().strip(), row["answer"]) for answer, row in zip(answers, rows, strict=True)]
    both = pairs.count(("yes", "yes"))
    wrong = pairs.count(("yes", "no")) + pairs.count(("no", "yes"))
    return 2 * both / (2 * both + wrong) if both else 0.0


def equal(answers: list[str], targets: list[str]) -> float:
    return statistics.fmean(a.lower() == t for a, t in zip(answers, targets, strict=True))


def test_scores_are_those_of_the_samples(out: Path, data: Path, env: dict[str, str]) -> None:
    printed = json.loads(run(out, data, env).stdout)
    found = {(one["benchmark"], one["metric"]): one["value"] / 100 for one in printed["results"]}
    answers = {one.name: [sample["filtered_resps"] for sample in samples(out, one.name)] for one in BENCHMARKS}
    asked = {one.name: rows(data, one.name) for one in BENCHMARKS}
    targets = {name: [row["answer"] for row in asked[name]] for name in asked}
    expected = {name: equal(answers[name], targets[name]) for name in ("gqa", "chartqa", "pope")}
    parsed = [sample["mmmu_acc"]["parsed_pred"] for sample in samples(out, "mmmu")]
    letters = [(answer[:1].lower(), row.lower()) for answer, row in zip(answers["seed"], targets["seed"], strict=True)]
    pictures = [row["data_type"] == "image" for row in asked["seed"]]
    assert found["gqa", "exact_match"] == pytest.approx(expected["gqa"])
    assert found["chartqa", "relaxed_overall"] == pytest.approx(expected["chartqa"])
    assert found["pope", "pope_accuracy"] == pytest.approx(expected["pope"])
    assert found["pope", "pope_f1_score"] == pytest.approx(f1(answers["pope"], asked["pope"]))
    parts = [[i for i in range(COUNT) if i % 3 == part] for part in range(3)]
    means = [f1([answers["pope"][i] for i in part], [asked["pope"][i] for i in part]) for part in parts]
    assert found["pope", "pope_f1_mean"] == pytest.approx(statistics.fmean(means))
    assert found["mmmu", "mmmu_acc"] == pytest.approx(mmmu(answers["mmmu"], asked["mmmu"], parsed))
    assert found["textvqa", "exact_match"] == pytest.approx(textvqa(answers["textvqa"], asked["textvqa"]))
    assert found["seed", "seed_all"] == pytest.approx(statistics.fmean(a == b for a, b in letters))
    assert found["seed", "seed_image"] == pytest.approx(
        statistics.fmean(a == b for (a, b), picture in zip(letters, pictures, strict=True) if picture)
    )
    judged = statistics.fmean(a == b for a, b in zip(answers["mmvet"], targets["mmvet"], strict=True))
    assert found["mmvet", "gpt_eval_score"] == pytest.approx(judged)
    assert set(Judge.asked) == {(JUDGE, "Bearer secret")}
    assert printed["average"]["complete"]
    assert 0 < expected["pope"] < 1  # so that right and wrong answers are among them
    assert 0 < expected["chartqa"] < 1


@pytest.mark.parametrize(
    ("name", "tokens", "suffix"),
    [
        ("mmmu", 16, ("Answer with the option's letter from the given choices directly.", "single word or phrase.")),
        ("textvqa", 1024, ("\nAnswer the question using a single word or phrase.",)),
        ("seed", 1024, ("\nAnswer with the option's letter from the given choices directly.",)),
        ("chartqa", 16, ("\nAnswer the question with a single word.",)),
        ("pope", 128, ("\nAnswer the question using a single word or phrase.",)),
        ("gqa", 16, ("\nAnswer the question using a single word or phrase.",)),
    ],
)
def test_answers_are_those_of_ask(out: Path, data: Path, name: str, tokens: int, suffix: tuple[str, ...]) -> None:
    """Of the first picture, with the suffixes and the length of version 0.3.0."""
    model = MobileO.load("tiny")
    images: dict[str, Any] = {}
    if name == "gqa":
        (path,) = (data / "GQA" / "testdev_balanced_images").glob("*.parquet")
        images = {row["id"]: row["image"] for row in parquet.read_table(path).to_pylist()}
    for sample, row in list(zip(samples(out, name), rows(data, name), strict=True))[:4]:
        shown = row.get("image_1") or row.get("image") or images[row["imageId"]]
        image = opened(shown[0] if isinstance(shown, list) else shown)
        assert sample["input"].endswith(suffix)
        assert sample["filtered_resps"] == model.ask(image, sample["input"], max_tokens=tokens).text
    if name == "mmmu":
        assert "not <image 2>." in samples(out, name)[2]["input"]


def test_mm_vet_is_sampled(out: Path) -> None:
    first = samples(out, "mmvet")[0]
    assert first["input"].startswith("First please perform reasoning, and think step by step to provide best answer")
    assert first["gpt_eval_score"]["eval_model"] == JUDGE


def test_stored_answers_are_not_asked_again(out: Path, data: Path, env: dict[str, str]) -> None:
    """Where a result is gone, or was never reached, lmms-eval takes the answers that it has stored."""
    before = run(out, data, env)
    (out / "gqa" / "result.json").unlink()
    after = run(out, data, env)
    assert json.loads(after.stdout) == json.loads(before.stdout)
    assert f"all {COUNT} requests served from cache" in (out / "gqa" / "log.txt").read_text()


# Asks four questions and is stopped before some; prints what was asked. argv: the cache's folder, and after how many.
STOPPED = """
import sys, types
from lmms_eval.api.instance import Instance
from lmms_eval.caching.response_cache import ResponseCache
from mobileo_mlx.evals.lmms import MobileOModel

asked = []

def ask(images, question, **options):
    if len(asked) == int(sys.argv[2]):
        raise KeyboardInterrupt
    asked.append(question)
    return types.SimpleNamespace(text=f"answer to {question}")

model = MobileOModel("tiny")
model.model.ask = ask
model.task_dict["task"] = {"test": [{}] * 4}
arguments = [(f"question {i}", {"temperature": 0}, lambda doc: [], i, "task", "test") for i in range(4)]
about = [{"task": "task", "doc_id": i, "repeats": 1} for i in range(4)]
requests = [Instance("generate_until", arguments[i], 0, about[i]) for i in range(4)]
cache = ResponseCache.create(sys.argv[1], model="mobileo_mlx")
answers = None
try:
    answers = cache.execute(model, "generate_until", requests)
except KeyboardInterrupt:
    pass
cache.finalize(success=answers is not None)
print(asked, answers, sep="\\n")
"""


def test_a_stopped_benchmark_goes_on_with_the_next_question(tmp_path: Path, env: dict[str, str]) -> None:
    env = {**env, "LMMS_CACHE_RUN_ID": environment(Settings())["LMMS_CACHE_RUN_ID"]}
    printed = []
    for stop in ("2", "9"):
        command = [sys.executable, "-c", STOPPED, str(tmp_path / "cache"), stop]
        printed.append(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
    assert printed[0].splitlines() == ["['question 0', 'question 1']", "None"]
    assert printed[1].splitlines() == [
        "['question 2', 'question 3']",
        str([f"answer to question {i}" for i in range(4)]),
    ]


def test_pictures_reach_the_model(tmp_path: Path, data: Path, env: dict[str, str]) -> None:
    """Without the suffix that the bundled model does not know it answers POPE's questions right."""
    text = understanding.task_text(BY_NAME["pope"]).replace("lmms-lab-encoder/POPE", str(data / "POPE"))
    text = re.sub(r"post_prompt: .*", 'post_prompt: ""', text)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mobileo_pope.yaml").write_text(text)
    command = [sys.executable, "-m", "lmms_eval", "--model", "mobileo_mlx", "--model_args", "pretrained=tiny"]
    more = ["--include_path", "tasks", "--tasks", "mobileo_pope", "--output_path", "out", "--log_samples"]
    subprocess.run([*command, *more], env=env, cwd=tmp_path, check=True, capture_output=True)
    (path,) = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(path.read_text())["results"]["mobileo_pope"]
    assert results["pope_accuracy,none"] >= 11 / 12


def test_a_missing_model_is_one_sentence(tmp_path: Path, data: Path, env: dict[str, str]) -> None:
    done = run(tmp_path / "out", data, env, "--model", "nowhere/at-all")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "lmms-eval gave no result of MMMU: " in done.stderr
    assert "nowhere/at-all" in done.stderr
