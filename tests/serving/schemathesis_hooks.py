"""For schemathesis' command: of what it makes valid by the schema, a part is made valid in earnest.

A schema can't say that a text is an image; with random ones alone nothing would ever be drawn.
"""

import base64
import io
import zlib

import schemathesis
from PIL import Image

_STREAM = io.BytesIO()
Image.new("RGB", (64, 64), (255, 0, 0)).save(_STREAM, "PNG")
IMAGE = _STREAM.getvalue()
URI = "data:image/png;base64," + base64.b64encode(IMAGE).decode()


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.path == "/v1/pictures" and isinstance(body, bytes) and len(body) % 2:
        case.body = IMAGE
    # Forms get images by themselves; and with bytes, which are no JSON, a changed case would count as an invalid one.
    if case.media_type != "application/json" or not isinstance(body, dict):
        return
    if zlib.crc32(repr(body).encode()) % 4 == 0:
        return
    body = dict(body)
    for name in ("size", "guidance_interval", "negative_prompt"):
        body.pop(name, None)
    if "image" in body:
        body["image"] = URI
    if isinstance(body.get("prompt"), str) and not body["prompt"].strip():
        body["prompt"] = "a red circle"
    case.body = body
