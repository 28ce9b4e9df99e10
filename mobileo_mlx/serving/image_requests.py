"""What a request of OpenAI's image routes asks for, from JSON or from a form, checked before it may wait."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from ..errors import OptionError, PromptError
from ..generation_options import OPTIONS, GenerationSettings, Task
from ..image_settings import can_write, fits
from ..images import source_of
from ..options import declared, shown
from ..prompts import edit_prompt, encode_prompt, generate_prompt
from .edits import Edits
from .errors import ApiError
from .image_inputs import read_image
from .references import read_reference
from .requests import check_candidates, known_fields, read_drawing, read_json, read_text, read_whole, refuse_unknown
from .service import Service
from .tasks import Drawing

if TYPE_CHECKING:
    from PIL import Image

    from ..pipeline import MobileO

FORMATS = {"png": "PNG", "jpeg": "JPEG", "jpg": "JPEG", "webp": "WEBP"}
MAX_PARTIALS = 3  # as OpenAI has it

_READ = {
    "prompt",
    "n",
    "size",
    "model",
    "response_format",
    "output_format",
    "output_compression",
    "stream",
    "partial_images",
}
# What OpenAI's own models understand, and what makes no difference to a picture of this one.
IGNORED = {
    "user",
    "quality",
    "style",
    "background",
    "moderation",
    "input_fidelity",
    "safety_identifier",
    "complexity",
}
_REFUSED = {
    "mask": "Masks are not supported: the model draws the whole picture again, and says nothing of which part changes "
    "(OpenAI's mask is transparent there); leave the mask out, and name in the prompt what is to change.",
    "markup": "Drawings over an image are not supported; leave markup out, and say in the prompt what is to change.",
}
_IMAGES = ("image", "images")

Fields = Mapping[str, Any]
Source = str | bytes  # of an image: a text, or a file's bytes


@dataclass(frozen=True)
class Input:
    """An image that is to be edited, and what the metadata say of it."""

    image: Image.Image
    source: Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """A checked request.

    Attributes:
        task: "generate" or "edit".
        settings: of a picture, complete.
        options: that were given, but for the seed.
        seeds: of the pictures, or of those of each image.
        inputs: the images that are edited.
        kind: of the files, as `image_settings.FORMATS` has it; `format` is its name in the API.
        quality: of JPEG and WebP.
        by_url: whether the answer has addresses instead of the bytes.
        partials: previews of each picture; None where the answer is no stream.
        text_tokens: of the prompt, with its template.
        image_tokens: of an image that is edited.
        output_tokens: latents of a picture.
        quality_name: what the request calls the quality, which is said back.
    """

    task: Task
    settings: GenerationSettings
    options: Mapping[str, Any]
    seeds: Sequence[int]
    inputs: Sequence[Input]
    kind: str
    quality: int | None
    by_url: bool
    partials: int | None
    text_tokens: int
    image_tokens: int
    output_tokens: int
    quality_name: str | None

    @property
    def format(self) -> str:
        return self.kind.lower()

    @property
    def size(self) -> str:
        return f"{self.settings.width}x{self.settings.height}"

    def usage(self, pictures: int, inputs: int = 1) -> dict[str, Any]:
        """OpenAI's account of pictures: what the language model reads, once for each input, and what is drawn."""
        text, image = inputs * self.text_tokens, inputs * self.image_tokens
        output = pictures * self.output_tokens
        return {
            "input_tokens": text + image,
            "input_tokens_details": {"text_tokens": text, "image_tokens": image},
            "output_tokens": output,
            "total_tokens": text + image + output,
        }

    def job(self, service: Service) -> Drawing | Edits:
        """The task that draws it. Pictures are kept by the server where the answer has addresses."""
        request = {
            **self.options,
            "prompt": self.settings.prompt,
            "n": len(self.seeds) * max(1, len(self.inputs)),
            "seed": self.seeds[0],
        }
        drawings = [
            Drawing(
                name=self.task,
                prompt=self.settings.prompt,
                seeds=self.seeds,
                options=self.options,
                request=request,
                image=None if given is None else given.image,
                source={} if given is None else given.source,
                previews=self.partials or 0,
                kind=self.kind,
                quality=self.quality,
                preview_kind=self.kind,
                batch=service.settings.batch,
                keep=service.keep if self.by_url else None,
            )
            for given in self.inputs or (None,)
        ]
        return drawings[0] if len(drawings) == 1 else Edits(drawings, request)


async def read_asked(task: Task, request: Request, service: Service) -> Asked:
    """Reads and checks a request.

    Raises:
        ApiError: a field is missing, out of range, unknown, or not supported.
    """
    texts = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    if texts:
        fields, sources = await _read_form(request, service)
    else:
        fields = await read_json(request)
        sources = [source for name in _IMAGES for source in _sources(fields.get(name), name)] if task == "edit" else []
    for name in _REFUSED.keys() & fields.keys():
        if fields[name]:
            raise ApiError(400, _REFUSED[name], param=name, code="unsupported_parameter")
    known = _READ | IGNORED | known_fields(OPTIONS[task])
    refuse_unknown(fields, known | set(_IMAGES) if task == "edit" else known)
    prompt = read_text(fields, "prompt", "instruction" if task == "edit" else "prompt")
    options, seeds = read_drawing(task, fields, service.settings, service.model.speeds, texts=texts)
    if task == "edit":
        _check_count(sources, len(seeds), options, service)
    output = _choice(fields, "output_format", FORMATS, "png")
    if FORMATS[output] == "WEBP" and not can_write("WEBP"):
        raise ApiError(400, "This server can't write WebP; choose png or jpeg.", param="output_format")
    # What the model is asked about candidates may repeat the prompt.
    asked_again = prompt if options.get("best_of", 1) > 1 else ""
    if not fits(FORMATS[output], prompt, options.get("negative_prompt", ""), asked_again):
        raise ApiError(
            400, "The prompt is too long for the settings in a JPEG file; choose png or webp.", param="output_format"
        )
    partials = read_whole(fields, "partial_images", 0, 0, MAX_PARTIALS)
    compression = read_whole(fields, "output_compression", 100, 0, 100)
    model = service.model
    settings, text_tokens = await asyncio.to_thread(check_drawing, model, task, prompt, seeds, options)
    return Asked(
        task=task,
        settings=settings,
        options=options,
        seeds=seeds,
        inputs=[await _read_input(source, name, service) for source, name in sources],
        kind=FORMATS[output],
        quality=None if fields.get("output_compression") in (None, "") else max(1, compression),
        by_url=_choice(fields, "response_format", ("b64_json", "url"), "b64_json") == "url",
        partials=partials if _flag(fields, "stream") else None,
        text_tokens=text_tokens,
        image_tokens=model.config.image_tokens if task == "edit" else 0,
        output_tokens=settings.width * settings.height // model.config.size_multiple**2,
        quality_name=fields["quality"] if isinstance(fields.get("quality"), str) else None,
    )


def check_drawing(
    model: MobileO, task: Task, prompt: str, seeds: list[int], options: dict[str, Any]
) -> tuple[GenerationSettings, int]:
    """The settings, and the tokens of the prompt."""
    try:
        settings = model.check(task, prompt, seed=seeds, **options)  # type: ignore[typeddict-item]
    except PromptError as error:
        raise ApiError(400, str(error), param="prompt", code="invalid_value") from None
    except OptionError as error:
        # It begins with the option that can't be, or with a word or two before it.
        places = {name: str(error).find(name.replace("_", " ")) for name in ("size", *declared(OPTIONS[task]))}
        found = [name for name, place in places.items() if place >= 0]
        param = min(found, key=lambda name: places[name]) if found else None
        raise ApiError(400, str(error), param=param, code="invalid_value") from None
    template = edit_prompt if task == "edit" else generate_prompt
    return settings, len(encode_prompt(model.tokenizer, template(prompt))) - (task == "edit")


def _check_count(sources: Sequence[Any], count: int, options: Fields, service: Service) -> None:
    if not sources:
        raise ApiError(
            400,
            "The request has no 'image'; send one as a part of a form, or as a data URI in JSON.",
            param="image",
            code="missing_parameter",
        )
    check_candidates(options, len(sources) * count, service.settings)
    if len(sources) * count > (most := service.settings.max_pictures):
        raise ApiError(
            400,
            f"{len(sources)} images with n = {count} make {len(sources) * count} pictures, and one request may ask "
            f"for {most}; send fewer.",
            param="image",
            code="too_large",
        )


async def _read_form(request: Request, service: Service) -> tuple[dict[str, Any], list[tuple[Source, str]]]:
    """The texts of a form by name, and the images in the order in which they were sent."""
    fields: dict[str, Any] = {}
    sources: list[tuple[Source, str]] = []
    async with request.form(max_files=100, max_fields=100, max_part_size=service.settings.max_body) as form:
        for name, value in form.multi_items():
            base = name.partition("[")[0]  # image[], and image[0] as some write it
            if base in _IMAGES:
                if isinstance(value, UploadFile):
                    sources.append((await value.read(), value.filename or ""))
                elif value:
                    sources.append((value, ""))
            elif isinstance(value, UploadFile) and base in _READ:
                raise ApiError(400, f"{base} is sent as a file; send a text.", param=base, code="invalid_value")
            elif isinstance(value, UploadFile):
                fields[base] = "a file"  # which is refused
            else:
                fields[name] = value
    return fields, sources


def _sources(value: Any, param: str) -> list[tuple[Source, str]]:
    """The images of a JSON value: a text, an object with one as OpenAI writes it, or a list of these."""
    if value is None:
        return []
    if isinstance(value, list):
        return [source for one in value for source in _sources(one, param)]
    if isinstance(value, dict):
        for name in ("image_url", "url", "b64_json"):
            if name in value:
                return _sources(value[name], param)
    if not isinstance(value, str):
        raise ApiError(
            400,
            f"{param} {shown(value)} is not possible; give a data URI, or a list of them.",
            param=param,
            code="invalid_value",
        )
    return [(value, "")]


async def _read_input(source: Source, name: str, service: Service) -> Input:
    picture = None
    if isinstance(source, str):
        image, picture = await read_reference(source, service, "image")
    else:
        image = await read_image(source, service.settings, param="image")
    return Input(image, await asyncio.to_thread(source_of, image, _base_name(name), picture))


def _base_name(name: str) -> str:
    """Of a file on the client's machine, without its folders."""
    return name.replace("\\", "/").rpartition("/")[2][:200]


def _choice(fields: Fields, name: str, choices: Mapping[str, str] | Sequence[str], default: str) -> str:
    value = fields.get(name)
    if value is None or value == "":
        return default
    if not isinstance(value, str) or value.lower() not in choices:
        raise ApiError(
            400, f"There is no {name} {shown(value)}; there are {', '.join(choices)}.", param=name, code="invalid_value"
        )
    return value.lower()


def _flag(fields: Fields, name: str) -> bool:
    value = fields.get(name)
    if value is None or value == "":
        return False
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} is true or false.", param=name, code="invalid_value")
    return value
