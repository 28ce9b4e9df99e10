"""A server that speaks as much of the API as `batch` needs, with a fake model and faults of its own."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from mobileo_mlx.image_settings import encode

from .faking import FakeModel

# Of a request's path and body: None where it is answered as usual; a status, headers and a message; "die", or "cut" for
# an answer that ends in the middle.
Fault = Callable[[str, Mapping[str, Any]], "tuple[int, dict[str, str], str] | str | None"]

INFO = {"object": "info", "version": "1", "model": {"id": "fake"}, "identity": {"weights": "fake"}}


class FakeServer:
    """Runs in threads of this process until `stop`.

    Args:
        fault: see `Fault`.
        key: that requests must have.
        info: what `/v1/info` says.

    Attributes:
        requests: paths and bodies of what came.
        url: where it listens.
    """

    def __init__(self, fault: Fault | None = None, *, key: str = "", info: Mapping[str, Any] = INFO) -> None:
        self.fault, self.key, self.info = fault, key, info
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.model = FakeModel()
        self._port = 0
        self.start()

    def start(self) -> None:
        """Listens, at the same place as before."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self, {})

            def do_POST(self) -> None:
                server.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        """Listens no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.requests.append((handler.path, body))
        refused = self.key and handler.headers.get("Authorization") != f"Bearer {self.key}"
        fault = (401, {}, "wrong key") if refused else self.fault(handler.path, body) if self.fault else None
        if fault == "die":
            handler.connection.close()
            return
        if isinstance(fault, tuple):
            status, headers, message = fault
            self._send(handler, status, {"error": {"message": message}}, headers)
        else:
            self._send(handler, 200, self._made(handler.path, body), {}, cut=fault == "cut")

    def _made(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/info":
            return dict(self.info)
        if path == "/v1/chat/completions":
            *images, text = body["messages"][0]["content"]
            answer = self.model.ask([_image(part["image_url"]["url"]) for part in images], text["text"])
            message = {"role": "assistant", "content": answer.text}
            return {"choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}]}
        names = ("prompt", "n", "response_format", "output_format", "image")
        options = {name: value for name, value in body.items() if name not in names}
        if path == "/v1/images/edits":
            result = self.model.edit(_image(body["image"]), body["prompt"], **options)
        else:
            result = self.model.generate(body["prompt"], **options)
        data = encode(result.images[0], "PNG", {"software": "fake", **result.metadata(0)})
        return {"data": [{"b64_json": base64.b64encode(data).decode()}]}

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler, status: int, value: Any, headers: Mapping[str, str], *, cut: bool = False
    ) -> None:
        data = json.dumps(value).encode()
        handler.send_response(status)
        for name, content in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(name, content)
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2] if cut else data)


def _image(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
