"""The engine that lets Dask's workers compute: processes on this machine, or `dask worker`s on others.

Each worker has one piece of work at a time, of about a second. So a worker that dies takes nothing with it that waits
there, a line that it died of is found in few attempts, and Dask knows of no more tasks than there are workers, however
many lines there are. Pictures come back as bytes, but from workers that see the output folder themselves.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import signal
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .. import blas
from .._version import __version__
from ..atomic import output_error
from ..errors import ImageError, MobileOError, OptionError
from ..files import read_bytes
from ..image_sources import MAX_BYTES
from .engine import PAUSE, Done, Failed, Outcome, Setup, Source
from .perform import attempt
from .tasks import Task

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

    from ..pipeline import MobileO

PATIENCE = 120.0  # seconds without any worker after which a run ends
PIECE = 1.0  # seconds that a worker computes for before it says what became of it
_LOOK = 1.0  # seconds between two looks which workers there are
_WAITS = 5.0  # seconds without any worker after which that is said
_ANSWER = 30.0  # seconds for the scheduler to answer, or for results to come over
_FAREWELL = 5.0  # seconds for a connection or a cluster to be closed

_log = logging.getLogger("mobileo_mlx")


class _DiedError(Exception):
    """A worker is gone, and with it what it would have returned."""


@dataclass
class _Worker:
    """What is known of a worker.

    Attributes:
        ready: whether it was found fit for the run; until then it is asked.
        shares: whether it sees the output folder.
        future: what it is computing.
        tasks: that it holds.
    """

    ready: bool = False
    shares: bool = False
    future: Future | None = None
    tasks: list[Task] = field(default_factory=list)


class Dask:
    """The workers of a scheduler that is running, or of one that is started for this run.

    Args:
        setup: of the run.
        workers: how many processes to start on this machine.
        address: of a running scheduler, such as "tcp://10.0.0.1:8786"; instead of own processes.
        patience: seconds for which a run goes on without any worker.
    """

    def __init__(
        self, setup: Setup, *, workers: int = 0, address: str | None = None, patience: float = PATIENCE
    ) -> None:
        if address is None and not 1 <= workers <= 1000:
            raise OptionError(f"--workers {workers}: choose a number from 1 to 1000.")
        if address is not None and not _has_port(address):  # for which Dask's client would not end for a minute
            raise OptionError(
                f"--dask {address}: write the address of the scheduler with its port, for example tcp://10.0.0.1:8786."
            )
        self._setup, self._count, self._address, self._patience = setup, workers, address or "", patience
        self._client: Client | None = None
        self._cluster: LocalCluster | None = None
        self._token: Any = None  # a file in the output folder, which workers look for
        self._workers: dict[str, _Worker] = {}  # by address
        self._refused: set[str] = set()
        self._identity: dict[str, Any] = {}
        self._finished: queue.Queue[Future] = queue.Queue()
        self._next_look = self._last_ready = 0.0
        self._seconds = PIECE  # that a task takes, about
        self._begun = self._waits = False

    def identity(self) -> dict[str, Any]:
        """See `engine.Engine`.

        Raises:
            OptionError: Dask is not installed; a worker has another version of this package than this process, or
                another model than the others.
            MobileOError: the scheduler does not answer, there are no workers, or one can't load the model.
        """
        try:
            self._connect()
            while not self._workers or not all(worker.ready for worker in self._workers.values()):
                for _ in self._look():
                    pass  # nobody holds a task yet
                with suppress(queue.Empty):
                    self._welcome(self._finished.get(timeout=PAUSE))
        except BaseException:
            self.close()
            raise
        return self._identity

    def outcomes(self, source: Source) -> Iterator[Outcome]:
        """See `engine.Engine`."""
        try:
            if not self._identity:
                self.identity()
            self._begun = True
            yield from self._feed(source)
        finally:
            self.close()

    def close(self) -> None:
        """Lets the scheduler go. Workers that were started here end; others do when their piece is done."""
        for thing in (self._client, self._cluster):
            if thing is not None:
                with suppress(Exception, asyncio.CancelledError):  # the scheduler may be gone
                    thing.close(timeout=_FAREWELL)
        if self._token is not None:
            with suppress(OSError):
                self._token.close()
        self._client = self._cluster = self._token = None

    # What there is to do, and who does it

    def _feed(self, source: Source) -> Iterator[Outcome]:
        chunk: list[Task] = []
        ended = False
        while not ended or chunk or any(worker.tasks for worker in self._workers.values()):
            yield from self._look()
            for address, worker in self._workers.items():
                if not worker.ready or worker.tasks:
                    continue
                if not chunk and not ended:
                    taken = source.take()
                    ended, chunk = taken is None, taken or []
                if not chunk:
                    break
                count = max(1, int(PIECE / max(self._seconds, 0.001)))
                piece, chunk = chunk[:count], chunk[count:]
                yield from self._give(address, worker, piece)
            with suppress(queue.Empty):
                yield from self._take_in(self._finished.get(timeout=PAUSE))

    def _give(self, address: str, worker: _Worker, tasks: list[Task]) -> Iterator[Outcome]:
        """Gives a worker a piece of work, and yields those of its tasks whose images can't be read."""
        files: dict[str, bytes] = {}
        for task in tasks:
            try:
                if not worker.shares:
                    files |= {path: read_bytes(path, limit=MAX_BYTES, error=ImageError) for path in task.images}
                worker.tasks.append(task)
            except ImageError as error:
                yield Failed(task.line, str(error))
        if worker.tasks:
            self._submit(address, worker, compute, self._setup, worker.tasks, files, worker.shares)

    def _submit(self, address: str, worker: _Worker, function: Any, *arguments: Any) -> None:
        assert self._client is not None
        try:
            # To this worker alone: wherever Dask would take it, there is other work.
            worker.future = self._client.submit(
                function,
                *arguments,
                key=f"mobileo-mlx-{uuid.uuid4().hex}",
                workers=[address],
                allow_other_workers=False,
                pure=False,
            )
        except (OSError, RuntimeError) as error:  # the connection is closed
            raise self._gone() from error
        worker.future.add_done_callback(self._finished.put)

    def _take_in(self, future: Future) -> Iterator[Outcome]:
        """What became of a piece of work."""
        address = self._holder(future)
        if address is None:
            return
        worker = self._workers[address]
        if not worker.ready:
            self._welcome(future)
            return
        try:
            results = self._result(future, address)
        except _DiedError:
            del self._workers[address]  # if it is there after all, it is met again
            yield from _deaths(address, worker.tasks)
            return
        worker.future, worker.tasks = None, []
        if seconds := [result.seconds for result in results if isinstance(result, Done)]:
            self._seconds = sum(seconds) / len(seconds)
        yield from results

    def _holder(self, future: Future) -> str | None:
        """The address of the worker that computes something; None where it was given up."""
        return next((address for address, worker in self._workers.items() if worker.future is future), None)

    def _result(self, future: Future, address: str) -> Any:
        """What a worker has returned.

        Raises:
            _DiedError: nothing, since it has ended.
            MobileOError: what it has raised.
        """
        from distributed import KilledWorker

        if future.status == "error":
            error = future.exception()
            if isinstance(error, MobileOError):
                raise MobileOError(f"at the worker {address}: {error}") if self._address else error
            if isinstance(error, KilledWorker):
                raise _DiedError
            raise MobileOError(
                f"the worker at {address} can't compute ({type(error).__name__}: {error}); let workers, scheduler and "
                f"this command run from the same environment, with mobileo-mlx {__version__}."
            )
        limit = time.monotonic() + _ANSWER
        while future.status == "finished" and time.monotonic() < limit:
            try:
                return future.result(timeout=_LOOK)
            except (TimeoutError, asyncio.TimeoutError):
                # Where the worker has ended just now, Dask waits for another one of its address.
                if address not in self._addresses():
                    break
            except (OSError, asyncio.CancelledError):
                break
        raise _DiedError

    # Which workers there are

    def _look(self) -> Iterator[Outcome]:
        """Looks from time to time who has come and gone, and yields the tasks of those that are gone.

        Raises:
            MobileOError: the scheduler is gone, or there is no worker for too long.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        there = self._addresses()
        self._next_look = time.monotonic() + _LOOK
        for address in [address for address in self._workers if address not in there]:
            yield from _deaths(address, self._workers.pop(address).tasks)
        for address in there - self._workers.keys() - self._refused:
            worker = self._workers[address] = _Worker()
            self._submit(address, worker, describe, self._setup.loading, self._token.name)
        if self._workers:
            self._last_ready = now
        elif not self._waits and now - self._last_ready > _WAITS:
            self._waits = True
            _log.warning("waiting for a worker of %s", self._address or "this run")
        elif now - self._last_ready > self._patience:
            raise MobileOError(
                f"there has been no worker for {self._patience:.0f} seconds; start them"
                + (f" with `dask worker {self._address}`" if self._address else "")
                + ", and then this command again."
            )

    def _addresses(self) -> set[str]:
        assert self._client is not None
        try:
            if self._client.status == "running":
                return set(self._client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, RuntimeError, asyncio.TimeoutError, asyncio.CancelledError) as error:
            raise self._gone() from error
        raise self._gone()

    def _gone(self) -> MobileOError:
        where = f"at {self._address} " if self._address else ""
        return MobileOError(
            f"the scheduler {where}does not answer any more; what is finished is kept: start it again, and then this "
            "command."
        )

    def _welcome(self, future: Future) -> None:
        """Makes a worker one of the run, if it is fit for it.

        Raises:
            OptionError: one of those that were there at the beginning is not.
        """
        if (address := self._holder(future)) is None:
            return
        worker = self._workers[address]
        try:
            found = self._result(future, address)
            self._check(address, found)
        except _DiedError:
            del self._workers[address]
        except MobileOError as error:
            if not self._begun:
                raise
            del self._workers[address]
            self._refused.add(address)
            _log.warning("%s", f"{str(error).rstrip('.')}: it is left out")
        else:
            worker.ready, worker.shares, worker.future = True, found["shares"], None

    def _check(self, address: str, found: Mapping[str, Any]) -> None:
        if found["version"] != __version__:
            raise OptionError(
                f"the worker at {address} has mobileo-mlx {found['version']}, and this is {__version__}; install the "
                "same version everywhere."
            )
        expected = self._identity = self._identity or found["identity"]
        if names := sorted(n for n in {*expected, *found["identity"]} if expected.get(n) != found["identity"].get(n)):
            raise OptionError(
                f"the worker at {address} has another {' and '.join(names)} than the others; let all of them find the "
                "same model."
            )

    # The cluster

    def _connect(self) -> None:
        """Connects to the scheduler, or starts it with its workers.

        Raises:
            OptionError: Dask is not installed.
            MobileOError: nobody answers.
        """
        try:
            import dask
            from distributed import Client, LocalCluster, Security

            if not self._address:
                import cryptography  # noqa: F401 - Dask makes certificates with it
        except ImportError as error:
            raise OptionError(
                f"what computes on several workers is not installed ({error}): `pip install 'mobileo-mlx[cluster]'`."
            ) from None
        encrypted = self._address.startswith("tls:")
        if encrypted and Security().get_connection_args("client").get("ssl_context") is None:
            raise OptionError(
                f"--dask {self._address}: Dask has no certificates here; name their files in its configuration, as "
                "docs/scale.md shows."
            )
        # What happens is said in our words. And images that are sent along are more than Dask expects of arguments.
        for name in ("distributed", "distributed.client", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "2 GiB"})
        # A local worker that died is not started again if that took longer, as 15 seconds on a busy machine can be.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"})
        try:
            self._token = tempfile.NamedTemporaryFile(dir=self._setup.folder, prefix=".seen-")  # noqa: SIM115
        except OSError as error:
            raise output_error(error, self._setup.folder) from error
        self._last_ready = time.monotonic()
        try:
            if self._address:
                self._client = Client(self._address, timeout=_ANSWER, set_as_default=False)
                return
            # Whoever speaks to a scheduler can let it compute anything: with keys of this run's own, nobody else can,
            # other users of this machine among them.
            security = Security.temporary()
            with _without_interrupts():
                self._cluster = LocalCluster(
                    n_workers=self._count,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,  # it counts what MLX only keeps, and would kill them
                    host="127.0.0.1",
                    dashboard_address=None,
                    # Where it says how it is; there may be two runs.
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                    security=security,
                    silence_logs=logging.CRITICAL,
                    env={"DASK_LOGGING__DISTRIBUTED": "critical"},
                )
            self._client = Client(self._cluster, timeout=_ANSWER, set_as_default=False)
        except Exception as error:
            if not self._address:
                raise
            raise MobileOError(
                f"no scheduler answers at {self._address} ({error}); start it with `dask scheduler`, or check the "
                "address."
            ) from error


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keeps Ctrl-C for later, and from what is started meanwhile: a terminal sends it to workers, too, which would say
    so at length. This process ends them.
    """
    resource_tracker.ensure_running()  # which lets interrupts through again where it starts later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _has_port(address: str) -> bool:
    try:
        place = urlsplit(address if "://" in address else f"tcp://{address}")
        return bool(place.hostname and place.port)
    except ValueError:
        return False


def _deaths(address: str, tasks: Iterable[Task]) -> Iterator[Failed]:
    for task in tasks:
        yield Failed(task.line, f"the worker at {address} has ended, or is not reached any more", died=True)


# What runs in a worker

_loaded: dict[str, tuple[MobileO, dict[str, Any]]] = {}  # the model of this process, and its identity


def load_model(loading: Mapping[str, Any]) -> tuple[MobileO, dict[str, Any]]:
    """The model of a worker's process, which is loaded once, and its identity.

    Raises:
        CheckpointError, ConfigError, OptionError: see `MobileO.load`.
    """
    key = json.dumps(loading, sort_keys=True, default=str)
    if key not in _loaded:
        blas.preload()  # before MLX

        from .. import identity
        from ..pipeline import MobileO

        _loaded.clear()
        model = MobileO.load(**loading, keep_loaded=True)
        _loaded[key] = model, identity.of(model)
    return _loaded[key]


def describe(loading: Mapping[str, Any], token: str) -> dict[str, Any]:
    """What a worker is: "version", "identity", and whether it "shares" the output folder, where there is a file."""
    _, identity = load_model(loading)
    return {"version": __version__, "identity": identity, "shares": os.path.lexists(token)}


def compute(setup: Setup, tasks: list[Task], files: Mapping[str, bytes], write: bool) -> list[Done | Failed]:
    """Computes tasks one after the other.

    Args:
        setup: of the run.
        tasks: what to do.
        files: images by path, where this machine does not have them.
        write: whether this machine sees the output folder.

    Raises:
        CheckpointError, ConfigError, OutputError: see `perform.attempt`.
    """
    model, _ = load_model(setup.loading)
    if not files:
        return [attempt(model, task, setup, write=write) for task in tasks]
    with tempfile.TemporaryDirectory() as folder:
        here = {}
        for number, (path, data) in enumerate(files.items()):
            here[path] = Path(folder, str(number), Path(path).name)  # settings say the name
            here[path].parent.mkdir()
            here[path].write_bytes(data)
        local = [replace(task, images=tuple(str(here.get(path, path)) for path in task.images)) for task in tasks]
        return [attempt(model, task, setup, write=write) for task in local]
