"""What the server says of itself."""

import re
import threading

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.testclient import TestClient

from mobileo_mlx.capabilities import capabilities
from mobileo_mlx.serving.app import make_app
from mobileo_mlx.serving.metrics import Metrics
from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings

from .conftest import Steps


def test_the_model_by_its_name(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert client.get("/v1/models/tiny").json() == model
    for name in ("gpt-4o", "org/model", "%2f", "tiny/"):
        answer = client.get(f"/v1/models/{name}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"


def test_a_name_with_a_slash(client, service, monkeypatch):
    monkeypatch.setattr(type(service), "model_id", "Amshaker/Mobile-O-0.5B")
    for name in ("Amshaker/Mobile-O-0.5B", "Amshaker%2FMobile-O-0.5B"):
        assert client.get(f"/v1/models/{name}").json()["id"] == "Amshaker/Mobile-O-0.5B"


def test_info_says_what_a_page_needs(client):
    info = client.get("/v1/info").json()
    assert info["model"]["id"] == "tiny"
    assert info["default_size"] == [64, 64]
    assert info["device"]
    assert info["pictures"] == "folder"
    assert info["limits"]["max_n"] == ServerSettings().max_pictures
    assert {task: [one["name"] for one in options] for task, options in info["capabilities"]["tasks"].items()} == {
        task: [one["name"] for one in options] for task, options in capabilities()["tasks"].items()
    }


def test_health_and_queue_while_the_model_computes(worker):
    """With a job that holds the worker, and others that wait."""
    service = Service(ServerSettings(), worker)
    with TestClient(make_app(service), base_url="http://localhost") as client:
        task = Steps(held=True)
        made = [client.portal.call(submit, service, one) for one in (task, Steps())]
        assert task.reached.acquire(timeout=60)
        assert client.get("/health").json() == {"status": "ok"}
        queue = client.get("/v1/queue").json()
        assert queue["running"] == {"id": made[0].id, "task": "generate"}
        assert (queue["waiting"], queue["jobs"]) == (1, [{"id": made[1].id, "task": "generate"}])
        task.allow(10)
        client.portal.call(made[1].ended)
        assert client.get("/v1/queue").json()["waiting"] == 0


async def submit(service, task, kept=True):
    import asyncio

    from mobileo_mlx.serving.jobs import Job

    job = Job(task, client="a", kept=kept, loop=asyncio.get_running_loop())
    service.worker.submit(job)
    service.jobs.add(job)
    return job


def test_jobs_of_requests_are_counted_but_can_not_be_asked_for(worker):
    service = Service(ServerSettings(), worker)
    with TestClient(make_app(service), base_url="http://localhost") as client:
        task = Steps(held=True)
        job = client.portal.call(submit, service, task, False)
        assert task.reached.acquire(timeout=60)
        assert client.get("/v1/queue").json()["running"] == {"id": None, "task": "generate"}
        assert client.get(f"/v1/jobs/{job.id}").status_code == 404
        assert client.get("/v1/jobs").json()["data"] == []
        task.allow(10)


def test_health_when_the_worker_has_ended(tmp_path):
    from mobileo_mlx.serving.worker import Worker

    worker = Worker(lambda: object(), limit=1, max_bytes=1)
    worker.start()
    with TestClient(make_app(Service(ServerSettings(), worker)), base_url="http://localhost") as client:
        assert worker.stop(60)
        answer = client.get("/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "ending"})


def values(text: str) -> dict[str, float]:
    """The samples of Prometheus' text format, each line checked."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r'([a-z_]+(?:\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+\})?) ([0-9.e+-]+)', line)
            assert match, line
            assert match[1] not in found
            found[match[1]] = float(match[2])
    return found


def test_metrics_count_what_was_done(client):
    body = {"task": "generate", "prompt": "a red circle", "steps": 3, "n": 2}
    job = client.post("/v1/jobs", json=body).json()
    client.get(f"/v1/jobs/{job['id']}/events")
    client.post("/v1/jobs", json={})
    client.get("/nowhere")
    client.request("BREW", "/health")
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = values(answer.text)
    assert found['mobileo_jobs_total{task="generate",outcome="completed"}'] == 1
    assert found['mobileo_steps_total{task="generate"}'] == 6
    assert found['mobileo_turns_total{task="generate"}'] in (1, 2)  # the last is counted when its thread has time
    assert found['mobileo_requests_total{route="/v1/jobs",method="POST",status="202"}'] == 1
    assert found['mobileo_requests_total{route="/v1/jobs",method="POST",status="400"}'] == 1
    assert found['mobileo_requests_total{route="/v1/jobs/{id}/events",method="GET",status="200"}'] == 1
    assert found['mobileo_requests_total{route="other",method="GET",status="404"}'] == 1
    assert found['mobileo_requests_total{route="/health",method="other",status="405"}'] == 1
    assert found["mobileo_queue_length"] == 0
    assert found['mobileo_memory_bytes{kind="peak"}'] > 0
    assert found['mobileo_info{version="' + client.get("/v1/info").json()["version"] + '",model="tiny"}'] == 1
    types = re.findall(r"# TYPE (\S+) (\S+)", answer.text)
    assert all(kind == ("counter" if name.endswith("_total") else "gauge") for name, kind in types)


def test_a_failing_route_counts_as_500(service, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(service.metrics), "text", fail)
    with TestClient(make_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = client.get("/metrics")
        assert answer.status_code == 500
        assert "a bug" not in answer.text
        monkeypatch.undo()
        assert (
            values(client.get("/metrics").text)['mobileo_requests_total{route="/metrics",method="GET",status="500"}']
            == 1
        )


def test_labels_are_escaped(worker):
    text = Metrics().text(worker, 'a "model"\\of\nlines')
    assert 'model="a \\"model\\"\\\\of\\nlines"' in text
    values(text)


def test_counts_of_many_threads(worker):
    metrics = Metrics()
    threads = [
        threading.Thread(target=lambda: [metrics.count("turns_total", task="edit") for _ in range(1000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values(metrics.text(worker, "tiny"))['mobileo_turns_total{task="edit"}'] == 4000
