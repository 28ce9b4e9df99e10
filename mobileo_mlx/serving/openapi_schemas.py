"""The objects of `/openapi.json`: what requests and answers hold. Options follow from where they are declared."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..capabilities import capabilities
from ..generation_options import OPTIONS, AnswerOptions
from ..options import Option, declared
from . import chat_requests, image_requests
from .requests import ALIASES, MAX_GUIDANCE, MAX_PREVIEWS
from .settings import ServerSettings

Schema = dict[str, Any]

_MAX_SEED = 2**64 - 1
_TYPES: dict[type | None, str] = {int: "integer", float: "number", str: "string", bool: "boolean", list: "array"}
_LARGEST: dict[type | None, float] = {int: 2**63 - 1, float: 3.4e38}  # of int64 and float32


def ref(name: str) -> Schema:
    """A reference to one of `schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(
    properties: dict[str, Schema], words: str = "", *, optional: Collection[str] = (), more: bool = True
) -> Schema:
    """An object, of which all but `optional` properties are always there."""
    found: Schema = {"type": "object", "properties": properties}
    if required := [name for name in properties if name not in optional]:
        found["required"] = required
    if words:
        found["description"] = words
    if not more:
        found["additionalProperties"] = False
    return found


def text(words: str = "", **more: Any) -> Schema:
    """A string."""
    return {"type": "string", **({"description": words} if words else {}), **more}


def whole(words: str = "", **more: Any) -> Schema:
    """A whole number."""
    return {"type": "integer", **({"description": words} if words else {}), **more}


def number(words: str = "", **more: Any) -> Schema:
    """A number."""
    return {"type": "number", **({"description": words} if words else {}), **more}


def truth(words: str = "") -> Schema:
    """A boolean."""
    return {"type": "boolean", **({"description": words} if words else {})}


def array(items: Schema, words: str = "", **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **({"description": words} if words else {}), **more}


def or_null(schema: Schema) -> Schema:
    """The same, or null."""
    if "type" in schema:
        kind = schema["type"]
        found = {**schema, "type": [*([kind] if isinstance(kind, str) else kind), "null"]}
        return {**found, "enum": [*schema["enum"], None]} if "enum" in schema else found
    return {"anyOf": [schema, {"type": "null"}]}


def defaulted(schema: Schema) -> Schema:
    """A field of a request whose default null and "" stand for."""
    found = or_null(schema)
    if "enum" in found:
        return {**found, "enum": [*found["enum"], ""]}
    if "string" in found["type"]:
        return found
    return {**found, "type": [*found["type"], "string"], "maxLength": 0}  # which limits nothing but a string


def counted(schema: Schema) -> Schema:
    """The same for a whole number of which the digits are understood, too, as forms have them."""
    found = defaulted(schema)
    del found["maxLength"]
    return {**found, "pattern": "^[0-9]{0,9}$"}


def constant(value: str) -> Schema:
    """A string that is always the same."""
    return {"type": "string", "const": value}


def event(name: str, data: Schema, *, numbered: bool = False) -> Schema:
    """A server-sent event whose data are JSON."""
    fields = {
        "event": constant(name),
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": data},
    }
    return record({**fields, "id": text("Its number.")} if numbered else fields)


def option_schema(option: Option, settings: ServerSettings, size_multiple: int) -> Schema:
    """The values of an option in JSON; null, or leaving it out, stands for the default."""
    found: Schema = {"type": _TYPES[option.kind], "description": option.help}
    low, high = option.low, option.high
    if option.name in ("width", "height"):
        found |= {"multipleOf": size_multiple}
        low, high = size_multiple, settings.max_side // size_multiple * size_multiple
    elif option.name == "steps":
        high = min(high, settings.max_steps)
    elif option.name == "best_of":
        high = min(high, settings.max_pictures)
        found["description"] += " Each candidate counts as a picture of the request."
    elif option.name == "guidance_scale":
        high = MAX_GUIDANCE
    elif option.name == "seed":
        low, high = 0, _MAX_SEED
        found["description"] = "Of the randomness; a random one by default. The same seed gives the same again."
    elif option.kind in _LARGEST:
        high = min(high, _LARGEST[option.kind])
    if option.kind is list:
        found |= {"items": {"type": "number", "minimum": 0, "maximum": 1}, "minItems": 2, "maxItems": 2}
    if abs(low) != float("inf"):
        found["exclusiveMinimum" if option.above else "minimum"] = low
    if option.kind in (int, float) and high != float("inf"):
        found["maximum"] = high
    if option.choices:
        found["enum"] = list(option.choices)
    if option.default is not None and option.name != "seed":
        found["default"] = option.default
    if option.several and option.kind is str:
        return {"anyOf": [text(), array(text()), {"type": "null"}], "description": option.help}
    if option.kind is list:
        return {**or_null(found), "type": ["array", "null", "string"]}  # "0.3,0.95", as on the command line
    return defaulted(found)


def option_schemas(
    declaration: type, settings: ServerSettings, size_multiple: int, *, skip: Collection[str] = ()
) -> dict[str, Schema]:
    """Those of a task, and of other programs' names of them."""
    known = {name: option for name, option in declared(declaration).items() if option.kind is not None}
    found = {name: option_schema(option, settings, size_multiple) for name, option in known.items() if name != "preset"}
    for alias, name in ALIASES.items():
        if name in found:
            found[alias] = {**found[name], "description": f"The same as `{name}`, which wins.", "deprecated": True}
    return {name: schema for name, schema in found.items() if name not in skip}


def schemas(settings: ServerSettings, size_multiple: int) -> dict[str, Schema]:
    """All objects by name.

    Args:
        settings: whose limits hold.
        size_multiple: of the model: sides are multiples of it.
    """
    options = {name: option_schemas(options, settings, size_multiple) for name, options in OPTIONS.items()}
    return {
        **_common(),
        **_meta(),
        **_pictures(),
        **_jobs(options, option_schemas(AnswerOptions, settings, size_multiple), settings),
        **_chat(option_schemas(AnswerOptions, settings, size_multiple)),
        **_images(options, settings),
    }


def drawing_extras(settings: ServerSettings) -> dict[str, Schema]:
    """What a drawing takes beside its options."""
    return {
        "n": counted(
            whole("How many pictures; their seeds follow each other.", minimum=1, maximum=settings.max_pictures)
        ),
        "size": defaulted(text("WIDTHxHEIGHT in pixels, or auto.", examples=["512x512"])),
    }


def _common() -> dict[str, Schema]:
    error = record(
        {
            "message": text("One sentence, with the remedy."),
            "type": text("Such as invalid_request_error."),
            "param": or_null(text("The field that is at fault.")),
            "code": or_null(text("For programs, such as model_not_found.")),
        }
    )
    candidate = {"seed": whole(), "score": number(minimum=0, maximum=1), "passes": truth()}
    check = {
        "question": text(),
        "expected": text(),
        "answer": text("The model's."),
        "probability": number("Of the expected answer.", minimum=0, maximum=1),
    }
    return {
        "Error": record({"error": error}, "Why a request was refused."),
        "BestOf": record(
            {
                "candidates": array(record(candidate), "All that were drawn."),
                "checks": array(record(check), "What the model was asked about the one that was kept."),
            },
            "What the model said of its candidates; the settings of a picture have it, too.",
        ),
    }


def _meta() -> dict[str, Schema]:
    brief = record({"id": or_null(text("Null for one that can't be asked for.")), "task": text()})
    return {
        "Model": record(
            {"id": text(), "object": constant("model"), "created": whole(), "owned_by": text()},
            "A model that is loaded.",
        ),
        "Models": record({"object": constant("list"), "data": array(ref("Model"))}),
        "Health": record({"status": {"type": "string", "enum": ["ok", "ending"]}}),
        "Queue": record(
            {
                "object": constant("queue"),
                "waiting": whole("Jobs that wait.", minimum=0),
                "limit": whole("More are refused with status 429.", minimum=0),
                "running": or_null(brief),
                "jobs": array(brief, "Those that wait, in the order of their next turns."),
                "seconds_per_turn": number("That a turn takes, an exponential mean."),
            }
        ),
        "Info": record(
            {
                "object": constant("info"),
                "version": text(),
                "model": ref("Model"),
                "identity": {
                    "type": "object",
                    "description": "Digests and settings by which one model is told from another of the same name.",
                },
                "device": text("What computes."),
                "backend": {"type": "string", "enum": ["cpu", "metal", "cuda"]},
                "default_size": array(whole(), "Width and height.", minItems=2, maxItems=2),
                "size_multiple": whole("Sides are multiples of it."),
                "capabilities": {
                    "type": "object",
                    "description": "Tasks with their options, and the names that options take.",
                    "required": sorted(capabilities()),
                },
                "memory": {
                    "type": "object",
                    "description": "Bytes that MLX holds: active, cache, and peak.",
                    "additionalProperties": whole(),
                },
                "seconds_per_turn": number(),
                "pictures": {"type": "string", "enum": ["folder", "memory"]},
                "allow_image_urls": truth("Whether requests may name images by URL."),
                "inline_images": truth("Whether a chat that is asked for a picture answers with one."),
                "limits": {"type": "object", "additionalProperties": whole()},
            },
            "What a page needs to know.",
        ),
    }


def _pictures() -> dict[str, Schema]:
    return {
        "Picture": record(
            {
                "id": text("Its time and 128 random bits: whoever knows it may see the picture."),
                "object": constant("picture"),
                "url": text("Of the file; it needs no key."),
                "thumbnail_url": text("Of a WebP of 320 pixels at most; it needs no key."),
                "width": whole(minimum=1),
                "height": whole(minimum=1),
                "bytes": whole(minimum=1),
                "created_at": whole("Seconds since 1970."),
                "kind": {"type": "string", "enum": ["generated", "edited", "uploaded"]},
                "seed": or_null(whole()),
                "settings": or_null({"type": "object", "description": "How it was made."}),
                "source": or_null(text("Id of the picture that was edited.")),
                "warning": text("Why it is kept in memory alone: the disk is full, or the folder was removed."),
            },
            "A picture that the server keeps.",
            optional=("warning",),
        ),
        "Pictures": record(
            {
                "object": constant("list"),
                "data": array(ref("Picture")),
                "has_more": truth("Whether there are older ones."),
            }
        ),
        "DeletedPicture": record({"id": text(), "object": constant("picture"), "deleted": truth()}),
    }


def _jobs(
    options: dict[Any, dict[str, Schema]], answer: dict[str, Schema], settings: ServerSettings
) -> dict[str, Schema]:
    drawing = {
        "prompt": text("What to draw; for an edit, what to change.", minLength=1),
        **drawing_extras(settings),
        "previews": counted(
            whole("How many steps of each picture are shown meanwhile.", minimum=0, maximum=MAX_PREVIEWS, default=0)
        ),
    }
    talking = {
        "draw": or_null(truth("Whether a message that asks for a picture is drawn; the job is then of that task.")),
        "previews": drawing["previews"],
        **{name: options["generate"][name] for name in chat_requests.DRAWING_CHOICES},
    }
    image = text("`picture:<id>`, or the image as a data URI.", minLength=1)
    progress = record(
        {
            "step": whole(),
            "steps": whole("Of all candidates together; fewer are run where one of them passes."),
            "index": whole("Of the picture."),
            "n": whole(),
            "seconds_left": or_null(number()),
            "candidates": whole("Of this picture, where there are several."),
            "candidate": whole("Its number, where they are drawn one after the other."),
        },
        optional=("candidates", "candidate"),
    )
    preview = record(
        {"index": whole(), "step": whole(), "steps": whole(), "b64_json": text(), "output_format": constant("jpeg")}
    )
    when = or_null(number("Seconds since 1970."))
    return {
        "GenerateJob": record(
            {"task": constant("generate"), **drawing, **options["generate"]},
            optional={*drawing, *options["generate"]} - {"prompt"},
            more=False,
        ),
        "EditJob": record(
            {"task": constant("edit"), **drawing, "image": image, **options["edit"]},
            optional={*drawing, *options["edit"]} - {"prompt"},
            more=False,
        ),
        "AnswerJob": record(
            {"task": constant("answer"), "messages": array(ref("Message"), minItems=1), **talking, **answer},
            "The URL of an image in a message may be `picture:<id>`.",
            optional={*talking, *answer},
            more=False,
        ),
        "Job": record(
            {
                "id": text(),
                "object": constant("job"),
                "task": {"type": "string", "enum": ["generate", "edit", "answer"]},
                "status": {"type": "string", "enum": ["queued", "generating", "completed", "failed", "cancelled"]},
                "created_at": number("Seconds since 1970."),
                "started_at": when,
                "finished_at": when,
                "queue_position": or_null(whole("0 is next; null unless it is queued.")),
                "request": {"type": "object", "description": "What was asked for, without the bytes of images."},
                "progress": or_null(progress),
                "pictures": array(ref("Picture")),
                "text": text("Of an answer, as far as it has come."),
                "usage": or_null(ref("Usage")),
                "finish_reason": or_null(text()),
                "error": or_null({"type": "object"}),
                "timings": or_null({"type": "object", "additionalProperties": number()}),
                "peak_memory": or_null(whole("Bytes.")),
            },
            "A task that goes on when whoever asked for it has left.",
        ),
        "Jobs": record({"object": constant("list"), "data": array(ref("Job")), "has_more": truth()}),
        "JobEvent": {
            "oneOf": [
                event(name, data, numbered=True)
                for name, data in {
                    "status": ref("Job"),
                    "progress": progress,
                    "preview": preview,
                    "picture": ref("Picture"),
                    "text": record({"delta": text("A piece of the answer.")}),
                    "completed": ref("Job"),
                    "failed": ref("Job"),
                    "cancelled": ref("Job"),
                }.items()
            ]
        },
    }


def _chat(answer: dict[str, Schema]) -> dict[str, Schema]:
    url = text("A data URI, or `picture:<id>`.", minLength=1)
    part = {
        "oneOf": [
            record({"type": constant("text"), "text": text()}),
            record({"type": constant("image_url"), "image_url": {"anyOf": [url, record({"url": url})]}}),
        ]
    }
    roles = ["system", "developer", "user", "assistant", "tool"]
    streaming = record(
        {"include_usage": or_null(truth("Whether a last chunk tells the usage."))}, optional=("include_usage",)
    )
    extras: dict[str, Schema] = {
        "model": or_null(text("Any name; the model that is loaded answers.")),
        "stream": or_null(truth("Whether the answer comes as server-sent events.")),
        "stream_options": or_null(streaming),
        "tools": or_null(array({"type": "object"}, "Those named `generate_image` and `edit_image` may be called.")),
        "tool_choice": {"description": "As OpenAI has it."},
        **{name: {"description": "Makes no difference here."} for name in sorted(chat_requests.IGNORED)},
        **{
            name: {"description": "Not supported but for what changes nothing.", "enum": [*allowed, None]}
            for name, allowed in chat_requests.REFUSED.items()
        },
    }
    return {
        "Message": record(
            {
                "role": {"type": "string", "enum": roles},
                "content": {"anyOf": [text(), array(part), {"type": "null"}]},
            },
        ),
        "ChatRequest": record(
            {"messages": array(ref("Message"), minItems=1), **extras, **answer},
            optional={*extras, *answer},
            more=False,
        ),
        "ChatCompletion": record(
            {
                "id": text(),
                "object": constant("chat.completion"),
                "created": whole(),
                "model": text(),
                "choices": array(
                    record(
                        {
                            "index": whole(),
                            "message": record(
                                {
                                    "role": constant("assistant"),
                                    "content": or_null(text()),
                                    "tool_calls": array({"type": "object"}),
                                },
                                optional=("tool_calls",),
                            ),
                            "finish_reason": text(),
                        }
                    )
                ),
                "usage": ref("Usage"),
            }
        ),
        "ChatChunk": record(
            {
                "id": text(),
                "object": constant("chat.completion.chunk"),
                "created": whole(),
                "model": text(),
                "choices": array(
                    record({"index": whole(), "delta": {"type": "object"}, "finish_reason": or_null(text())}),
                    "None in the last one, which has the usage, where that was asked for.",
                ),
                "usage": or_null(ref("Usage")),
            },
            optional=("usage",),
        ),
        "ChatEvent": {
            "oneOf": [
                event("message", ref("ChatChunk")),
                record({"event": constant("message"), "data": constant("[DONE]")}),
            ]
        },
        "Usage": record({"prompt_tokens": whole(), "completion_tokens": whole(), "total_tokens": whole()}),
    }


def _images(options: dict[Any, dict[str, Schema]], settings: ServerSettings) -> dict[str, Schema]:
    common = {
        "prompt": text("What to draw; for an edit, what to change.", minLength=1),
        "model": or_null(text("Any name; the model that is loaded draws.")),
        **drawing_extras(settings),
        "response_format": defaulted({"type": "string", "enum": ["b64_json", "url"]}),
        "output_format": defaulted({"type": "string", "enum": list(image_requests.FORMATS)}),
        "output_compression": counted(whole("Quality of JPEG and WebP.", minimum=0, maximum=100)),
        "stream": defaulted(truth("Whether the answer comes as server-sent events.")),
        "partial_images": counted(
            whole("Previews of each picture in the stream.", minimum=0, maximum=image_requests.MAX_PARTIALS)
        ),
        **{name: {"description": "Makes no difference here."} for name in sorted(image_requests.IGNORED)},
    }
    upload = {"type": "string", "format": "binary"}
    uri = text("A data URI, base64, or `picture:<id>`.")
    images = {"description": "One or several; `n` pictures are made of each."}
    json_images = {"anyOf": [uri, array(uri, minItems=1)], **images}

    def request(task: str, image: Schema | None = None) -> Schema:
        fields = {**common, **options[task]}
        found = {**fields, **({} if image is None else {"image": image})}
        return record(found, optional=set(fields) - {"prompt"}, more=False)

    item = {
        "b64_json": text(),
        "url": text(),
        "seed": whole(),
        "image_index": whole("Of the image that was edited."),
        "best_of": ref("BestOf"),
    }
    usage = record(
        {
            "input_tokens": whole(),
            "input_tokens_details": record({"text_tokens": whole(), "image_tokens": whole()}),
            "output_tokens": whole(),
            "total_tokens": whole(),
        }
    )
    about = {
        "size": text("WIDTHxHEIGHT."),
        "quality": text(),
        "background": constant("opaque"),
        "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"]},
    }
    streamed = {"created_at": whole(), **about, "index": whole("Of the picture."), "b64_json": text()}
    preview = {**streamed, "partial_image_index": whole(), "step": whole(), "steps": whole()}
    finished = {**streamed, **item, "usage": usage}
    optional = ("url", "image_index", "best_of")
    error = {"type": constant("error"), "error": {"type": "object"}}
    return {
        "ImageRequest": request("generate"),
        "ImageEditForm": _as_form(request("edit", {"anyOf": [upload, array(upload, minItems=1)], **images})),
        "ImageEditRequest": request("edit", json_images),
        "Images": record(
            {
                "created": whole("Seconds since 1970."),
                "data": array(record(item, optional=("b64_json", *optional))),
                **about,
                "usage": usage,
            },
            optional=("quality",),
        ),
        "ImageEvent": {
            "oneOf": [
                *(
                    event(f"{name}.{kind}", record({"type": constant(f"{name}.{kind}"), **fields}, optional=optional))
                    for name in ("image_generation", "image_edit")
                    for kind, fields in (("partial_image", preview), ("completed", finished))
                ),
                event("error", record(error)),
            ]
        },
    }


def _as_form(schema: Schema) -> Schema:
    """The same as a form, which has texts: no null, and two numbers with a comma between."""
    fields = {name: _without_null(field) for name, field in schema["properties"].items()}
    fields["guidance_interval"] = text(fields["guidance_interval"]["description"], examples=["0.3,0.95"])
    return {**schema, "properties": fields}


def _without_null(schema: Schema) -> Schema:
    found = {name: value for name, value in schema.items() if name not in ("maxLength", "pattern")}
    if isinstance(schema.get("type"), list):
        found["type"] = schema["type"][0]
    if "enum" in schema:
        found["enum"] = [value for value in schema["enum"] if value]
    return found
