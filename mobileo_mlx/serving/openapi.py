"""`/openapi.json`: every route, what it takes and what it answers, in OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from .._version import __version__
from .openapi_schemas import ref, schemas, text, whole
from .settings import ServerSettings

_DESCRIPTION = """Text to images, image editing, questions about images and chat, by one model. Chat and images are \
spoken as by OpenAI's API. Jobs go on when whoever asked for them has left, and pictures are kept."""

_EVENTS = """`status` (the job), `progress`, `preview` (a JPEG in base64), `picture`, `text` (a piece of an answer), \
and last `completed`, `failed` or `cancelled` (the job). Each has a number: a reader who comes back goes on behind the \
last one that it has seen."""

_UPLOADS = """It is kept upright, in sRGB, with 4096 pixels a side at most, and without metadata but the settings of a \
picture of ours; as WebP if it came in a lossy format, else as PNG."""

_WORDS = {
    400: "The request is at fault.",
    401: "The API key is missing or wrong.",
    403: "A page of another origin may not ask.",
    404: "There is none.",
    405: "Not with this method.",
    408: "The body came too slowly.",
    413: "The request is too large.",
    415: "The body is of a kind that is not read here.",
    421: "The server does not answer to this name.",
    429: "The queue is full; `Retry-After` says for how many seconds.",
    500: "The server failed.",
    503: "The server is ending.",
}
_ALWAYS = (400, 401, 403, 421, 500)
_BODY = (408, 413, 415, 503)  # of what has a body; 503 where too many are being read
_MODEL = (429, 503)  # of what takes a turn of the model

Operation = dict[str, Any]


def make_document(settings: ServerSettings, size_multiple: int) -> dict[str, Any]:
    """The document of a server.

    Args:
        settings: whose limits hold.
        size_multiple: of the model: sides of pictures are multiples of it.
    """
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "mobileo-mlx",
            "version": __version__,
            "description": _DESCRIPTION,
        },
        "tags": [
            {"name": "chat", "description": "Answers, as by OpenAI's API."},
            {"name": "images", "description": "Pictures, as by OpenAI's API."},
            {"name": "jobs", "description": "Tasks that outlive their clients, and their events."},
            {"name": "pictures", "description": "What was drawn and uploaded."},
            {"name": "server", "description": "The server itself."},
        ],
        "paths": {**_chat(), **_images(), **_jobs(), **_pictures(), **_server()},
        "components": {
            "schemas": schemas(settings, size_multiple),
            "responses": {
                f"Error{status}": {
                    "description": words,
                    "content": {"application/json": {"schema": ref("Error")}},
                }
                for status, words in _WORDS.items()
            },
        },
    }
    if settings.api_key is not None:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _operation(
    tag: str,
    id: str,
    summary: str,
    answers: dict[str, Any],
    *,
    takes: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    errors: tuple[int, ...] = (),
    public: bool = False,
    words: str = "",
) -> Operation:
    """One operation.

    Args:
        tag, id, summary: see OpenAPI; `words` say more.
        answers: by status.
        takes: schemas of the body by media type.
        parameters: of path and query.
        errors: statuses beside those that each may have.
        public: whether it needs no key.
    """
    found: Operation = {"tags": [tag], "operationId": id, "summary": summary}
    if words:
        found["description"] = words
    if parameters:
        found["parameters"] = parameters
    if takes is not None:
        content = {kind: {"schema": schema} for kind, schema in takes.items()}
        found["requestBody"] = {"required": True, "content": content}
    refused = sorted({*_ALWAYS, *errors, *(_BODY if takes is not None else ())})
    errors_of = {str(status): {"$ref": f"#/components/responses/Error{status}"} for status in refused}
    found["responses"] = {**answers, **errors_of}
    if public:
        found["security"] = []
    return found


def _answer(words: str, schema: Any, kind: str = "application/json") -> dict[str, Any]:
    return {"description": words, "content": {kind: {"schema": schema}}}


def _json(name: str, words: str) -> dict[str, Any]:
    return _answer(words, ref(name))


def _streamed(name: str, event: str, words: str) -> dict[str, Any]:
    """JSON, or server-sent events, each as `event` describes it, where they are asked for."""
    found = _json(name, words)
    found["content"]["text/event-stream"] = {"schema": ref(event)}
    return found


def _parameter(place: str, name: str, schema: Any, *, required: bool = False) -> dict[str, Any]:
    found = {"in": place, "name": name, "schema": schema, "required": required}
    if "description" in schema:
        found["description"] = schema["description"]
    return found


_ID = [_parameter("path", "id", text(), required=True)]


def _chat() -> dict[str, Any]:
    return {
        "/v1/chat/completions": {
            "post": _operation(
                "chat",
                "createChatCompletion",
                "Answer a conversation, with or without images.",
                {"200": _streamed("ChatCompletion", "ChatEvent", "The answer.")},
                takes={"application/json": ref("ChatRequest")},
                errors=_MODEL,
            )
        }
    }


def _images() -> dict[str, Any]:
    return {
        "/v1/images/generations": {
            "post": _operation(
                "images",
                "createImage",
                "Draw pictures of a prompt.",
                {"200": _streamed("Images", "ImageEvent", "The pictures.")},
                takes={"application/json": ref("ImageRequest")},
                errors=_MODEL,
            )
        },
        "/v1/images/edits": {
            "post": _operation(
                "images",
                "createImageEdit",
                "Change a picture as an instruction says.",
                {"200": _streamed("Images", "ImageEvent", "The pictures.")},
                takes={"multipart/form-data": ref("ImageEditForm"), "application/json": ref("ImageEditRequest")},
                errors=_MODEL,
            )
        },
        "/v1/images/variations": {
            "post": _operation(
                "images", "createImageVariation", "Not supported; the answer says what is.", {}, errors=(404,)
            )
        },
    }


def _jobs() -> dict[str, Any]:
    body = {"oneOf": [ref("GenerateJob"), ref("EditJob"), ref("AnswerJob")]}
    return {
        "/v1/jobs": {
            "get": _operation(
                "jobs",
                "listJobs",
                "The newest jobs.",
                {"200": _json("Jobs", "The jobs.")},
                parameters=[_parameter("query", "limit", whole(minimum=1, maximum=200, default=50))],
            ),
            "post": _operation(
                "jobs",
                "createJob",
                "Put a task into the queue.",
                {"202": _json("Job", "It waits.")},
                takes={"application/json": body},
                errors=_MODEL,
            ),
        },
        "/v1/jobs/{id}": {
            "get": _operation("jobs", "getJob", "A job.", {"200": _json("Job", "It.")}, parameters=_ID, errors=(404,)),
            "delete": _operation(
                "jobs",
                "deleteJob",
                "Cancel a job, or forget one that has ended; its pictures stay.",
                {"200": _json("Job", "As it is now: one that runs ends at its next step or token.")},
                parameters=_ID,
                errors=(404,),
            ),
        },
        "/v1/jobs/{id}/events": {
            "get": _operation(
                "jobs",
                "getJobEvents",
                "What happens to a job, as server-sent events.",
                {"200": _answer("The events.", ref("JobEvent"), "text/event-stream")},
                parameters=[
                    *_ID,
                    _parameter("query", "after", whole("Only events after this one.", minimum=0, maximum=999_999_999)),
                    _parameter("header", "Last-Event-ID", whole("The same; it wins.", minimum=0, maximum=999_999_999)),
                ],
                errors=(404,),
                words=_EVENTS,
            )
        },
    }


def _pictures() -> dict[str, Any]:
    file = {
        "description": "The file.",
        "content": {kind: {"schema": {}} for kind in ("image/png", "image/webp", "image/jpeg")},
    }
    upload = {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}, "required": ["image"]}
    return {
        "/v1/pictures": {
            "get": _operation(
                "pictures",
                "listPictures",
                "The newest pictures.",
                {"200": _json("Pictures", "They.")},
                parameters=[
                    _parameter("query", "limit", whole(minimum=1, maximum=100, default=40)),
                    _parameter("query", "before", text("An id; only older pictures.")),
                ],
            ),
            "post": _operation(
                "pictures",
                "uploadPicture",
                "Upload a picture.",
                {"201": _json("Picture", "As it is kept.")},
                takes={"multipart/form-data": upload, "image/*": {}},
                words=_UPLOADS,
            ),
        },
        "/v1/pictures/{id}": {
            "get": _operation(
                "pictures", "getPicture", "A picture.", {"200": _json("Picture", "It.")}, parameters=_ID, errors=(404,)
            ),
            "delete": _operation(
                "pictures",
                "deletePicture",
                "Put a picture into the bin, which keeps it for a day.",
                {"200": _json("DeletedPicture", "It is gone.")},
                parameters=_ID,
                errors=(404,),
            ),
        },
        "/v1/pictures/{id}/restore": {
            "post": _operation(
                "pictures",
                "restorePicture",
                "Take a picture out of the bin.",
                {"200": _json("Picture", "It is back.")},
                parameters=_ID,
                errors=(404,),
            )
        },
        **{
            f"/v1/pictures/{{id}}/{name}": {
                "get": _operation(
                    "pictures", f"get{name.title()}", words, {"200": file}, parameters=_ID, errors=(404,), public=True
                )
            }
            for name, words in (
                ("content", "The file of a picture."),
                ("thumbnail", "A small one, 320 pixels at most."),
            )
        },
    }


def _server() -> dict[str, Any]:
    def get(id: str, summary: str, answers: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"get": _operation("server", id, summary, answers, **more)}

    health = {"200": _json("Health", "It is well."), "503": _json("Health", "It is ending.")}
    return {
        "/v1/models": get("listModels", "The model that is loaded.", {"200": _json("Models", "A list of one.")}),
        "/v1/models/{id}": get(
            "getModel",
            "The model of a name, which may hold slashes.",
            {"200": _json("Model", "It.")},
            parameters=_ID,
            errors=(404,),
        ),
        "/health": get(
            "getHealth", "Whether the server is well. It answers while the model computes.", health, public=True
        ),
        "/metrics": get(
            "getMetrics", "Counts for Prometheus.", {"200": _answer("In its text format.", text(), "text/plain")}
        ),
        "/v1/queue": get("getQueue", "What waits and what runs.", {"200": _json("Queue", "The queue.")}),
        "/v1/info": get("getInfo", "Model, device, limits and options.", {"200": _json("Info", "They.")}),
        "/openapi.json": get("getOpenapi", "This document.", {"200": _answer("It.", {"type": "object"})}, public=True),
        "/docs": get(
            "getDocs", "This document to read.", {"200": _answer("A page.", text(), "text/html")}, public=True
        ),
    }
