"""`batch --workers` and `batch --dask`: a real scheduler and worker processes, with a model that draws in no time."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("distributed")

import psutil

from mobileo_mlx import __version__
from mobileo_mlx.batch.dask import compute
from mobileo_mlx.batch.engine import Done, Setup
from mobileo_mlx.batch.runner import ATTEMPTS
from mobileo_mlx.batch.tasks import Task
from mobileo_mlx.image_settings import read_metadata

from .conftest import Place, prompts
from .test_kills import begun

PRELOAD = Path(__file__).with_name("dask_preload.py")
LIMIT = 100  # seconds; what takes longer hangs
WAITS = "note: waiting for a worker of this run\n"  # is said where all of them are killed, and start slowly


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder whose workers have the fake model, too."""
    place = Place(tmp_path)
    monkeypatch.setenv("FAKE_LOG", str(place.log))
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", json.dumps([PRELOAD.stem]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PRELOAD.parent), os.environ.get("PYTHONPATH", "")]))
    return place


class Cluster:
    """A scheduler and workers, each a process as a user starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.prefix: tuple[str, ...] = ()  # of commands, such as one that enters a namespace

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )
        self.processes.append(process)
        return process

    def scheduler(self, host: str = "127.0.0.1", **environment: str) -> tuple[subprocess.Popen[bytes], str]:
        """A scheduler, and its address."""
        file = self.folder / f"scheduler-{len(self.processes)}.json"
        options = ("--host", host, "--port", 0, "--no-dashboard", "--scheduler-file", file)
        process = self.start("distributed.cli.dask_scheduler", *options, **environment)
        limit = time.monotonic() + LIMIT
        while time.monotonic() < limit:
            if file.exists() and (text := file.read_text()).endswith("}"):
                return process, json.loads(text)["address"]
            time.sleep(0.05)
        raise AssertionError("the scheduler does not start")

    def worker(self, address: str, **environment: str) -> subprocess.Popen[bytes]:
        options = ("--nthreads", 1, "--memory-limit", 0, "--no-dashboard")
        return self.start("distributed.cli.dask_worker", address, *options, **environment)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    for process in cluster.processes:
        if process.poll() is None:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            process.wait(LIMIT)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.02)


def worker_processes(command: int) -> list[psutil.Process]:
    """The processes of local workers that a command has started."""
    found = []
    for process in psutil.Process(command).children(recursive=True):
        try:
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def pictures(folder: Path) -> dict[str, bytes]:
    # What was being written when a worker died lies beside them, under a name with a dot, until the next run.
    found = (path for path in folder.rglob("*.png") if not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_workers_are_killed_at_random_moments_and_every_task_is_done_once(place: Place) -> None:
    """As by a plain run, to the byte. And all that is listened to meanwhile is on this machine alone.

    A line that `ATTEMPTS` workers held when they died is given up, and on a busy machine that may be the same one by
    chance: so fewer are killed. One line waits for the last of them, as the run may be faster.
    """
    last = place.folder / "last"
    lines = [*prompts(199, "slow"), {"prompt": f"until {last}"}]
    lines.append({"task": "ask", "image": str(PRELOAD), "question": "slow answer"})
    place.write(lines)
    process = place.start("--workers", 2)
    rng, kills, addresses = random.Random(7), 0, set()
    while process.poll() is None and kills < ATTEMPTS - 1:
        enough = 10 + 60 * kills
        wait_until(lambda enough=enough: process.poll() is not None or len(place.computed()) > enough)
        if workers := worker_processes(process.pid):
            for each in [psutil.Process(process.pid), *workers]:
                addresses |= {c.laddr.ip for c in each.net_connections("inet") if c.status == psutil.CONN_LISTEN}
            time.sleep(rng.random() * 0.05)
            rng.choice(workers).kill()
            kills += 1
    last.touch()
    status, _, err = finish(process)
    assert (status, kills, err.replace(WAITS, "")) == (0, ATTEMPTS - 1, "")
    assert addresses == {"127.0.0.1"}
    results = place.results()
    assert [result["line"] for result in results] == list(range(1, 202))
    assert not (place.out / "failed.jsonl").exists()
    with_workers = pictures(place.out)
    assert len(with_workers) == 200

    plain = Place(place.folder / "plain")
    plain.folder.mkdir()
    plain.write(lines)
    assert plain.run().returncode == 0
    assert pictures(plain.out) == with_workers
    assert [r.get("text") for r in plain.results()] == [r.get("text") for r in results]


def test_workers_that_all_die_come_back_however_long_that_takes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own settings Dask gives up those that take too long."""
    monkeypatch.setenv("DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT", "10 ms")
    place.write([*prompts(30, "slow"), {"prompt": f"until {place.folder / 'last'}"}])
    process = place.start("--workers", 2)
    wait_until(lambda: process.poll() is not None or len(place.computed()) > 5)
    for each in worker_processes(process.pid):
        each.kill()
    (place.folder / "last").touch()
    status, _, err = finish(process)
    assert (status, err.replace(WAITS, "")) == (0, "")
    assert len(pictures(place.out)) == 31


def test_a_line_that_kills_three_workers_is_given_up_and_the_others_are_done(place: Place) -> None:
    place.write([*prompts(12), {"id": "poison", "prompt": "die"}, *({"prompt": f"more {i}"} for i in range(7))])
    done = place.run("--workers", 2)
    assert done.returncode == 1, done.stderr
    (failure,) = place.failures()
    assert failure["id"] == "poison"
    assert len(failure["errors"]) == 3
    assert all("has ended" in error for error in failure["errors"])
    assert len(pictures(place.out)) == 19


def test_images_come_along_and_pictures_come_back_where_nothing_is_shared(
    tmp_path: Path, tiny_model: Path, photo: Path
) -> None:
    """What a worker does with images that it does not have: settings name them as if it had."""
    setup = Setup(tmp_path / "out", {"model": str(tiny_model)})
    there = "/nowhere/photo.png"
    edit = Task(1, "a", "edit", "make it blue", (there,), {"seed": 1, "steps": 1}, "0000/a.png", "digest")
    ask = Task(2, "b", "ask", "What is this?", (there, there), {"seed": 1, "max_tokens": 1})
    edited, answered = compute(setup, [edit, ask], {there: photo.read_bytes()}, False)
    assert isinstance(edited, Done)
    assert edited.data is not None
    assert read_metadata(edited.data)["image"] == "photo.png"
    assert isinstance(answered, Done)
    assert not (tmp_path / "out").exists()


def test_dask_that_is_not_installed_is_one_sentence(place: Place, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['distributed'] = None")
    place.write(prompts(1))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        place.arguments("--workers", 2), env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'mobileo-mlx[cluster]'" in done.stderr
    assert not place.out.exists()


@pytest.mark.parametrize("count", [0, 5])
def test_an_interrupt_from_a_terminal_is_one_sentence(place: Place, count: int) -> None:
    """A terminal sends it to the workers, too: while they begin, and later."""
    place.write(prompts(400, "slow"))
    process = subprocess.Popen(
        place.arguments("--workers", 2, "--progress", "json"), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    if count:
        begun(process, count)
    else:
        wait_until(lambda: list(place.out.glob(".seen-*")) != [])
    os.killpg(process.pid, signal.SIGINT)
    rest = [line for line in process.stderr if not line.startswith('{"event": "st')]
    assert (process.wait(), rest) == (130, ['{"event": "interrupted", "message": "interrupted"}\n'])


@pytest.mark.parametrize("address", ["", "nobody", "tcp://127.0.0.1", "tls://host:", "tcp://host:99999", "tcp://:8786"])
def test_an_address_without_a_port_is_refused_at_once(place: Place, address: str) -> None:
    place.write(prompts(1))
    refused = place.run("--dask", address)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"--dask {address}: write the address of the scheduler with its port" in refused.stderr
    assert not place.out.exists()


@pytest.mark.parametrize("options", [("--workers", 0), ("--workers", 2, "--dask", "tcp://127.0.0.1:1")])
def test_options_that_can_not_be(place: Place, options: tuple[Any, ...]) -> None:
    place.write(prompts(1))
    done = place.run(*options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--workers" in done.stderr


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_run_which_goes_on_with_another(place: Place, cluster: Cluster) -> None:
    place.write(prompts(400, "slow"))
    scheduler, address = cluster.scheduler()
    cluster.worker(address)
    cluster.worker(address)
    process = place.start("--dask", address)
    wait_until(lambda: len(place.computed()) > 40)
    scheduler.kill()
    status, _, err = finish(process)
    assert status == 2
    assert err.count("\n") == 1
    assert f"the scheduler at {address} does not answer any more" in err
    kept = pictures(place.out)
    assert 0 < len(kept) < 400

    gone = place.run("--dask", address)
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
    assert f"no scheduler answers at {address}" in gone.stderr

    begun = len(place.computed())
    _, address = cluster.scheduler()
    cluster.worker(address)
    assert place.run("--dask", address).returncode == 0
    assert [result["line"] for result in place.results()] == list(range(1, 401))
    assert len(place.computed()) - begun == 400 - len(kept)
    assert {name: data for name, data in pictures(place.out).items() if name in kept} == kept


@pytest.mark.slow
def test_settings_models_and_versions_must_be_those_of_the_run(place: Place, cluster: Cluster) -> None:
    place.write(prompts(30))
    _, address = cluster.scheduler()
    cluster.worker(address)
    assert place.run("--dask", address).returncode == 0
    other = place.run("--dask", address, "--steps", 3)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "steps" in other.stderr

    late = cluster.worker(address, FAKE_WEIGHTS="others")
    wait_until(lambda: "has another weights than the others" in place.run("--dask", address).stderr)
    late.terminate()
    late.wait(LIMIT)
    cluster.worker(address, FAKE_VERSION="0.0.1")
    said = f"has mobileo-mlx 0.0.1, and this is {__version__}; install the same version everywhere."
    wait_until(lambda: said in place.run("--dask", address).stderr)


@pytest.mark.slow
def test_workers_come_and_go_and_bad_ones_are_left_out(place: Place, cluster: Cluster) -> None:
    place.write(prompts(600, "slow"))
    _, address = cluster.scheduler()
    first = cluster.worker(address)
    process = place.start("--dask", address)
    wait_until(lambda: len(place.computed()) > 20)
    cluster.worker(address, FAKE_WEIGHTS="others")
    wait_until(lambda: len(place.computed()) > 150)
    cluster.worker(address)
    wait_until(lambda: len(place.computed()) > 250)
    first.terminate()
    status, _, err = finish(process)
    assert status == 0
    assert err.count("\n") == 1
    assert "has another weights than the others; let all of them find the same model: it is left out" in err
    assert len(pictures(place.out)) == 600


_TLS = """
distributed:
  comm:
    require-encryption: true
    tls:
      ca-file: {0}/cert.pem
      scheduler: {{cert: {0}/cert.pem, key: {0}/key.pem}}
      worker: {{cert: {0}/cert.pem, key: {0}/key.pem}}
      client: {{cert: {0}/cert.pem, key: {0}/key.pem}}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_as_the_docs_show_it(
    place: Place, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates come from Dask's own configuration; who has none is not let in."""
    place.write(prompts(5))
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    (make,) = (line for line in page.splitlines() if line.startswith("openssl req "))
    subprocess.run(make.split(), cwd=tmp_path, check=True, capture_output=True)
    assert _TLS.format("/path") in page
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "tls.yaml").write_text(_TLS.format(tmp_path))
    with_tls = {"DASK_CONFIG": str(tmp_path / "config")}
    _, address = cluster.scheduler("tls://127.0.0.1", **with_tls)
    assert address.startswith("tls://")
    cluster.worker(address, **with_tls)
    without = place.run("--dask", address)
    assert (without.returncode, without.stderr.count("\n")) == (2, 1), without.stderr
    assert "Dask has no certificates here" in without.stderr
    monkeypatch.setenv("DASK_CONFIG", with_tls["DASK_CONFIG"])
    done = place.run("--dask", address)
    assert done.returncode == 0, done.stderr
    assert len(pictures(place.out)) == 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_loses_nothing(place: Place, small_disk: Path) -> None:
    place.write(prompts(100))
    arguments = place.arguments("--workers", 2)
    arguments[arguments.index(str(place.out))] = str(small_disk / "out")
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1
    kept = pictures(small_disk)
    for path in (small_disk / "out").rglob("[!.]*.png"):
        Image.open(path).load()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert subprocess.run(arguments, capture_output=True).returncode == 0
    after = pictures(small_disk)
    assert len(after) == 100
    assert {name: data for name, data in after.items() if name in kept} == kept


class Hosts:
    """Network namespaces that stand for machines: "here", and others that a cable of their own leads to."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.cables: dict[str, str] = {}

    def ip(self, *words: object) -> None:
        done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no network namespaces can be made here: {done.stderr.strip()}")

    def add(self, name: str) -> str:
        """A machine."""
        name = f"mobileo{os.getpid()}{name}"
        self.ip("netns", "add", name)
        self.names.append(name)
        self.ip("-n", name, "link", "set", "lo", "up")
        return name

    def connect(self, here: str, other: str, number: int) -> None:
        """Lays the cable; `here` has the address 10.91.NUMBER.1 on it, the other one 10.91.NUMBER.2."""
        ends = f"mo{os.getpid()}h{number}"[-15:], f"mo{os.getpid()}o{number}"[-15:]
        self.ip("link", "add", ends[0], "netns", here, "type", "veth", "peer", "name", ends[1], "netns", other)
        for host, end, last in ((here, ends[0], 1), (other, ends[1], 2)):
            self.ip("-n", host, "addr", "add", f"10.91.{number}.{last}/24", "dev", end)
            self.ip("-n", host, "link", "set", end, "up")
        self.ip("-n", other, "route", "add", "default", "via", f"10.91.{number}.1")
        self.cables[other] = ends[0]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("network namespaces need root, ip and unshare")
    hosts = Hosts()
    yield hosts
    for name in hosts.names:
        subprocess.run(["ip", "netns", "delete", name])


@pytest.mark.slow
def test_hosts_that_share_no_disk_and_one_whose_cable_is_pulled(
    place: Place, cluster: Cluster, hosts: Hosts, photo: Path, tmp_path: Path
) -> None:
    """Images go there, pictures come back; what the lost machine held is done by the other one."""
    inside = Place(tmp_path / "private")
    inside.folder.mkdir()
    shutil.copy(photo, inside.folder / "photo.png")
    edits = [{"task": "edit", "image": "photo.png", "instruction": f"slow edit {i}"} for i in range(300)]
    inside.write([*edits, {"task": "ask", "image": ["photo.png", "photo.png"], "question": "What?"}])
    here, one, two = (hosts.add(name) for name in ("here", "one", "two"))
    hosts.connect(here, one, 1)
    hosts.connect(here, two, 2)
    host, cluster.prefix = "10.91.1.1", ("ip", "netns", "exec", here)
    _, address = cluster.scheduler(host)
    hidden = f'mount -t tmpfs none {inside.folder} && exec "$@"'
    for name in (one, two):
        cluster.prefix = ("ip", "netns", "exec", name, "unshare", "-m", "sh", "-c", hidden, "sh")
        cluster.worker(address, FAKE_LOG=str(place.folder / name))
    logs = [place.folder / name for name in (one, two)]
    command = ["ip", "netns", "exec", here, *inside.arguments("--dask", address)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: process.poll() is not None or all(log.exists() for log in logs))
    hosts.ip("-n", here, "link", "set", hosts.cables[two], "down")
    status, _, err = finish(process)
    assert (status, err) == (0, "")
    assert [result["line"] for result in inside.results()] == list(range(1, 302))
    assert len(pictures(inside.out)) == 300
    assert read_metadata(next(inside.out.rglob("*.png")))["image"] == "photo.png"
