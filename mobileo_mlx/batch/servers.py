"""The engine that lets running servers compute (`mobileo-mlx serve`), over the API that all of its clients use.

Each server has two requests at a time: while it computes one, the next one waits there already. A server that does not
answer is asked again and again, with growing pauses, while the others go on; and a task that it went away over goes to
another one first.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import MobileOError, OptionError
from .engine import PAUSE, Done, Failed, Outcome, Setup, Source
from .http import AtFault, Busy, Gone, Server, info_of, perform
from .tasks import Task

_AT_ONCE = 2  # requests for each server
_FAREWELL = 5.0  # seconds for threads to end; one that is just connecting takes longer, and does no harm
_LONGEST_PAUSE = 30.0  # seconds between two looks whether a server is there again

PATIENCE = 120.0  # seconds without any server after which a run ends


class Servers:
    """Several servers of the same model.

    Args:
        servers: see `http.read_servers`.
        setup: of the run.
        patience: seconds for which it goes on where no server is there.

    Attributes:
        notes: which of them did not answer when the run began, a sentence each.
    """

    def __init__(self, servers: Sequence[Server], setup: Setup, *, patience: float = PATIENCE) -> None:
        self._servers, self._setup, self._patience = servers, setup, patience
        self.notes: list[str] = []
        self._identity: dict[str, Any] = {}
        self._work: queue.Queue[Task] = queue.Queue()
        self._results: queue.Queue[Outcome | BaseException] = queue.Queue()
        self._stop = threading.Event()
        self._absent: dict[Server, float] = {}  # since when
        self._drops: Counter[Server] = Counter()  # tasks in a row in which it went away
        self._dropped: dict[int, set[Server]] = {}  # by line, where that has happened

    def identity(self) -> dict[str, Any]:
        """See `engine.Engine`."""
        found: dict[Server, dict[str, Any]] = {}
        for server in self._servers:
            try:
                found[server] = info_of(server)
            except (Gone, Busy) as error:
                self.notes.append(f"{error}; it is asked again later")
        if not found:
            raise MobileOError(f"no server answers: {self.notes[0].removesuffix('; it is asked again later')}.")
        first, self._identity = next(iter(found.items()))
        for server, identity in found.items():
            _compare(first, self._identity, server, identity)
        return {name: value for name, value in self._identity.items() if name != "version"}

    def outcomes(self, source: Source) -> Iterator[Outcome]:
        """See `engine.Engine`."""
        threads = [
            threading.Thread(target=self._serve, args=(server,), daemon=True)
            for server in self._servers
            for _ in range(_AT_ONCE)
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._feed(source, len(threads))
        finally:
            self._stop.set()
            for server in self._servers:
                server.hang_up()
            end = time.monotonic() + _FAREWELL
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))

    def _feed(self, source: Source, limit: int) -> Iterator[Outcome]:
        ended, held = False, 0
        while held or not ended:
            while not ended and self._work.qsize() < limit and (chunk := source.take()) != []:
                ended = chunk is None
                for task in chunk or ():
                    self._work.put(task)
                    held += 1
            try:
                outcome = self._results.get(timeout=PAUSE)
            except queue.Empty:
                self._check_patience()
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            held -= 1
            yield outcome

    def _check_patience(self) -> None:
        absent = dict(self._absent)
        if len(absent) == len(self._servers) and time.monotonic() - max(absent.values()) > self._patience:
            raise MobileOError(
                f"no server has answered for {self._patience:.0f} seconds; start them, and then this command again."
            )

    def _serve(self, server: Server) -> None:
        """What a thread does: one task after the other, with one server."""
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                if server in self._absent:
                    identity = info_of(server)
                    _compare(None, self._identity, server, identity)
                    self._absent.pop(server, None)
                task = self._work.get(timeout=PAUSE)
            except queue.Empty:
                pause = 0.0
                continue
            except (Gone, Busy):
                pause = min(_LONGEST_PAUSE, max(PAUSE, 2 * pause))
                continue
            except BaseException as error:
                self._results.put(error)
                return
            if self._is_for_others(server, task):
                self._work.put(task)
                pause = PAUSE
            else:
                pause = self._try(server, task)

    def _is_for_others(self, server: Server, task: Task) -> bool:
        """Whether a server went away over a task before, and another one is there that has not."""
        before = self._dropped.get(task.line, set())
        return server in before and any(other not in before and other not in self._absent for other in self._servers)

    def _try(self, server: Server, task: Task) -> float:
        """One attempt at a task, and the seconds to wait before the next one."""
        begin = time.monotonic()
        try:
            data, answer = perform(server, task, self._setup.suffix)
            self._drops[server] = 0
            self._dropped.pop(task.line, None)
            self._results.put(Done(task.line, time.monotonic() - begin, data, answer))
        except AtFault as error:
            self._results.put(Failed(task.line, str(error)))
        except Busy as error:
            self._work.put(task)
            return error.seconds
        except Gone as error:
            if self._stop.is_set():
                return 0.0
            self._absent.setdefault(server, time.monotonic())
            if not error.working:
                self._work.put(task)
                return PAUSE
            self._drops[server] += 1
            self._dropped.setdefault(task.line, set()).add(server)
            self._results.put(Failed(task.line, str(error), died=True))
            return min(_LONGEST_PAUSE, PAUSE * 2 ** self._drops[server])
        except BaseException as error:
            self._results.put(error)
        return 0.0


def _compare(first: Server | None, expected: dict[str, Any], server: Server, found: dict[str, Any]) -> None:
    if names := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
        of_the_first = f"that of {first.url}" if first is not None else "what the run was begun with"
        raise OptionError(
            f"{server.url} has another {' and '.join(names)} than {of_the_first}; let all servers run the same model "
            "and version, or leave it out."
        )
