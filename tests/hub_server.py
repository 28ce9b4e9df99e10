"""A small hub on this machine's loopback."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPO = "someone/Mobile-O"
REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """As much of the hub as a download needs. Files lie in `folder`; `log` has (method, path, headers)."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.status = 200  # of all answers, unless it is 200
        self.headers: dict[str, str] = {}
        self.cut: dict[str, int] = {}  # file: bytes after which the line goes dead, for good
        self.elsewhere = False  # whether data come from another host
        self.damage: set[str] = set()
        self.answers: dict[tuple[str, str], list[tuple[int, dict[str, str]]]] = {}  # (method, file): the first answers
        self.revisions = {"main", REVISION}
        self.listed: list[str] = []  # names of files beside those that are there
        self.tokens = True  # whether any is accepted
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> set[str]:
        return {str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()}

    def fetched(self) -> set[str]:
        """The files whose data were asked for."""
        return {name for method, path, _ in self.log if method == "GET" and (name := file_of(path))}

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


def file_of(path: str) -> str | None:
    for marker in (f"/{REPO}/resolve/{REVISION}/", f"/{REPO}/resolve/main/", "/elsewhere/"):
        if path.startswith(marker):
            return path.removeprefix(marker)
    return None


def revision_of(path: str) -> str | None:
    """The revision of which a list of files is asked for."""
    path = urllib.parse.unquote(path.split("?")[0])
    if path == f"/api/models/{REPO}":
        return "main"
    start = f"/api/models/{REPO}/revision/"
    return path.removeprefix(start) if path.startswith(start) else None


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.log.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.server.status != 200:
            self.reply(self.server.status, b"", self.server.headers)
        elif first := self.server.answers.get((self.command, file_of(self.path) or "")):
            self.reply(first[0][0], b"", first.pop(0)[1])
        elif not self.server.tokens and self.headers.get("Authorization"):
            message = "Invalid credentials in Authorization header"
            self.reply(401, json.dumps({"error": message}).encode(), {"X-Error-Message": message})
        elif (asked := revision_of(self.path)) is not None and asked not in self.server.revisions:
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif asked is not None:
            siblings = [{"rfilename": name} for name in sorted(self.server.files()) + self.server.listed]
            content = {"id": REPO, "modelId": REPO, "sha": REVISION, "siblings": siblings, "tags": []}
            self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})
        elif (name := file_of(self.path)) is not None and (self.server.folder / name).is_file():
            self.file(name)
        else:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION})

    def file(self, name: str) -> None:
        content = (self.server.folder / name).read_bytes()
        headers = {"X-Repo-Commit": REVISION, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if self.server.elsewhere and not self.path.startswith("/elsewhere/"):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
            headers["Location"] = f"http://localhost:{self.server.server_port}/elsewhere/{name}"
            return self.reply(302, b"", headers)
        if name in self.server.damage:
            content = bytes(len(content))
        begin = 0
        if span := self.headers.get("Range"):
            begin = int(span.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and (end := self.server.cut.get(name)) is not None:
            if begin < end:
                self.reply(206 if begin else 200, content[begin:], headers, upto=end - begin)
            self.close_connection = True
            return None
        return self.reply(206 if begin else 200, content[begin:], headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str], upto: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:upto])
