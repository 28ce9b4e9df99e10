"""`MobileO`: one model, four tasks. The one file that knows all the parts.

Nothing is computed or read before it is needed: loading reads configuration and headers, and each task reads only the
components that it uses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from .array_cache import prompt_key
from .chat import Chat
from .checkpoints.adapters import Adapter
from .checkpoints.checkpoint import Checkpoint, parse_dtype
from .checkpoints.hub import DEFAULT_MODEL
from .checkpoints.quantize import resolve_bits
from .conditioning import splice
from .diffusion import GenerationStep, denoise
from .errors import PromptError
from .generation_options import GenerationOptions, GenerationSettings, make_schedule, resolve_settings
from .images import cover_crop, from_array, load_image, preprocess, to_signed
from .ops.bands import joined
from .parts import Components
from .prompts import SYSTEM_PROMPT, edit_prompt, encode_prompt, generate_prompt
from .results import Answer, AnswerToken, GenerationResult

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self, Unpack

    from .decoding import AnswerOptions
    from .tokenizer import Tokenizer

    ImageSource = str | Path | bytes | Image.Image


class MobileO(Components):
    """A loaded model; what it is made of is in `Components`."""

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        dtype: str | None = None,
        quantize: Mapping[str, int] | None = None,
        preset: str | None = None,
        adapter: str | Path | None = None,
        adapter_scale: float = 1.0,
        keep_loaded: bool = True,
        progress: bool = False,
    ) -> Self:
        """Finds a model, downloading it where needed, and reads its configuration.

        Args:
            model: a bundled name, a folder, or a repository on the hub.
            dtype: "float32", "float16" or "bfloat16"; by default what is fast, see `checkpoint.default_dtype`.
            quantize: bits for components, such as {"llm": 4, "dit": 8}, applied while loading.
            preset: a set of bits by name, "small", "balanced" or "full"; `quantize` changes single components of it.
            adapter: a folder that `finetune` or the PEFT library wrote; see `mobileo_mlx.checkpoints.adapters`.
            adapter_scale: how strongly it changes the model: 0 not at all, 1 as trained.
            keep_loaded: True keeps each component once it is loaded, and what was read of an image or a prompt, for
                many tasks in one process. False frees what the next phase of a task does not need: the language
                model before denoising, the diffusion transformer before decoding. Memory peaks at the largest phase
                instead of their sum then, the results are the same, and every task loads its components again.
            progress: whether a download draws its bars on standard error.

        Raises:
            CheckpointError, ConfigError: the model is missing, damaged or foreign (DownloadError: unreachable); or the
                adapter is, or it is for another model.
            OptionError: an unknown dtype, preset, component or number of bits, or a scale that is no number.
        """
        parsed = parse_dtype(dtype) if dtype is not None else None
        bits = resolve_bits(quantize, preset)  # mistakes show before a download
        opened = None if adapter is None else Adapter.open(adapter, scale=adapter_scale)
        checkpoint = Checkpoint.open(model, progress=progress)
        return cls(checkpoint, dtype=parsed, quantize=bits, adapter=opened, keep_loaded=keep_loaded)

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height in pixels of a drawing, where no size is asked for."""
        return self.config.default_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read on first use."""
        return self.checkpoint.load_tokenizer()

    # From inputs to conditioning

    def encode_image(self, image: Image.Image | mx.array) -> mx.array:
        """An image's features for the language model, (B, image_tokens, hidden_size).

        Args:
            image: a Pillow image, or pixel values (B, H, W, 3) in [0, 1].
        """
        tower = self.component("vision_tower")
        pixels = image if isinstance(image, mx.array) else preprocess(image, self.config.image_size)
        x = pixels.astype(tower.patch_embed[0].reparam_conv.weight.dtype)
        return self.component("mm_projector")(tower.in_turn(x))

    def image_features(self, images: Sequence[Image.Image], keys: Sequence[str]) -> list[mx.array]:
        """What `encode_image` makes of each image, (image_tokens, hidden_size), evaluated or recalled.

        Args:
            images: Pillow images.
            keys: their `image_keys`.
        """
        if images:
            self.stage("vision_tower", "mm_projector")
        return [
            self.recalled(("image", key), lambda image=image: [self.encode_image(image)[0]])[0]  # type: ignore[misc]
            for image, key in zip(images, keys, strict=True)
        ]

    def hidden_states(self, input_ids: Sequence[Sequence[int]], image_features: Sequence[mx.array]) -> list[mx.array]:
        """The hidden states that condition a drawing, oldest first, each (B, N, hidden_size).

        Args:
            input_ids: B rows of equal length, `IMAGE_TOKEN_INDEX` in the places of images.
            image_features: each (tokens, hidden_size), in order.
        """
        llm = self.component("llm")
        embeds = splice(llm.embed_tokens, input_ids, image_features).inputs_embeds
        return llm.hidden_states(embeds, self.config.diffusion_connector.num_layers)

    def conditioning(
        self, states: list[mx.array], *, guided: bool, negative: list[mx.array] | None = None
    ) -> tuple[mx.array, mx.array | None]:
        """What the DiT reads, and the mask of padded positions where there are any.

        With guidance the unconditional half comes first: zero hidden states sent through the connector, as in the
        original, or the states of a negative prompt.

        Returns:
            (B or 2 B, N, caption_channels), and None or (2 B, N) bool.
        """
        connector = self.component("diffusion_connector")
        if not guided:
            return connector(states), None
        if negative is None:
            return connector([mx.concatenate([mx.zeros_like(state), state]) for state in states]), None
        halves = [connector(negative), connector(states)]
        if halves[0].shape == halves[1].shape:
            return mx.concatenate(halves), None
        length = max(half.shape[1] for half in halves)
        padded = [mx.pad(half, [(0, 0), (0, length - half.shape[1]), (0, 0)]) for half in halves]
        masks = [mx.broadcast_to(mx.arange(length) < half.shape[1], (half.shape[0], length)) for half in halves]
        return mx.concatenate(padded), mx.concatenate(masks)

    # Latents

    def noise(self, seed: int, width: int, height: int) -> mx.array:
        """The initial latents of a seed, (1, height / factor, width / factor, latent_channels) float32."""
        factor = self.config.vae.factor
        shape = (1, height // factor, width // factor, self.config.dit.in_channels)
        return mx.random.normal(shape, key=mx.random.key(seed))

    def encode_latents(self, image: Image.Image) -> mx.array:
        """Scaled latents of an image, (1, h, w, latent_channels) float32."""
        encoder = self.component("vae_encoder")
        x = to_signed(image).astype(encoder.conv_out.weight.dtype)
        return joined(encoder.stream(x)).astype(mx.float32) * self.config.vae.scaling_factor

    def decode_array(self, latents: mx.array) -> mx.array:
        """The pictures of scaled latents (B, h, w, latent_channels): (B, H, W, 3) float32, about [-1, 1]."""
        decoder = self.component("vae_decoder")
        x = (latents / self.config.vae.scaling_factor).astype(decoder.conv_in.weight.dtype)
        # One after the other: at full resolution a single image fills hundreds of megabytes.
        return mx.concatenate([joined(decoder.stream(row[None])).astype(mx.float32) for row in x])

    def decode_latents(self, latents: mx.array) -> list[Image.Image]:
        """The images of scaled latents (B, h, w, latent_channels), such as `GenerationStep.denoised`."""
        return from_array(self.decode_array(latents))

    # Tasks

    def generate(self, prompt: str, **options: Unpack[GenerationOptions]) -> GenerationResult:
        """Draws `prompt`: the last thing that `stream_generate` yields."""
        return _last(self.stream_generate(prompt, **options))

    def stream_generate(
        self, prompt: str, **options: Unpack[GenerationOptions]
    ) -> Iterator[GenerationStep | GenerationResult]:
        """Draws `prompt`, yielding every step and at last the result.

        Args:
            prompt: what to draw.
            options: see `mobileo_mlx.generation_options.GenerationOptions`.

        Raises:
            PromptError: a prompt is empty or beyond the context.
            OptionError: an option is out of range.
            CheckpointError: a component that this needs is missing or does not fit the configuration.
        """
        settings = resolve_settings(self.config, "generate", prompt, **options)
        return self._draw(settings, None, options.get("initial_latents"))

    def edit(
        self,
        image: ImageSource,
        instruction: str,
        *,
        strength: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GenerationResult:
        """Draws `image` changed as `instruction` says: the last thing that `stream_edit` yields."""
        return _last(self.stream_edit(image, instruction, strength=strength, **options))

    def stream_edit(
        self,
        image: ImageSource,
        instruction: str,
        *,
        strength: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[GenerationStep | GenerationResult]:
        """Draws `image` changed as `instruction` says, yielding every step and at last the result.

        As in the original the image enters through the language model alone, and drawing starts from noise.

        Args:
            image: a path, the bytes of a file, or a Pillow image.
            instruction: what to change.
            strength: our extension: start from the encoded image at this noise level, above 0 (the image itself)
                and up to 1 (nearly noise); only the steps below that level are run.
            options: see `mobileo_mlx.generation_options.GenerationOptions`.

        Raises:
            ImageError: the image can't be read.
            PromptError, OptionError, CheckpointError: see `stream_generate`.
        """
        settings = resolve_settings(self.config, "edit", instruction, strength=strength, **options)
        return self._draw(settings, load_image(image), options.get("initial_latents"))

    def ask(
        self, images: ImageSource | Sequence[ImageSource], question: str, **options: Unpack[AnswerOptions]
    ) -> Answer:
        """The whole answer to a question about images; takes what `stream_ask` takes."""
        return Answer.of(list(self.stream_ask(images, question, **options)))

    def stream_ask(
        self, images: ImageSource | Sequence[ImageSource], question: str, **options: Unpack[AnswerOptions]
    ) -> Iterator[AnswerToken]:
        """Answers a question about one image or several, yielding each token.

        Args:
            images: each a path, the bytes of a file, or a Pillow image.
            question: in words.
            options: see `mobileo_mlx.decoding.AnswerOptions`.

        Raises:
            ImageError, PromptError, OptionError, CheckpointError: see `Chat.stream`.
        """
        return self.chat().stream(question, images=images, **options)

    def chat(self, *, system_prompt: str = SYSTEM_PROMPT) -> Chat:
        """A conversation that remembers."""
        return Chat(self, system_prompt=system_prompt)

    def _draw(
        self, settings: GenerationSettings, image: Image.Image | None, initial_latents: mx.array | None
    ) -> Iterator[GenerationStep | GenerationResult]:
        """Checks the components and the length of the prompts now, and returns the generator that computes."""
        parts = ["llm", "diffusion_connector", "dit", "vae_decoder"]
        if image is not None:
            parts += ["vision_tower", "mm_projector"]
        if settings.strength is not None:
            parts.append("vae_encoder")
        self.require(*parts)
        ids = self._prompt_ids(settings.task, settings.prompt)
        negative = settings.negative_prompt
        negative_ids = None if negative is None else self._prompt_ids(settings.task, negative)
        return self._steps(settings, ids, negative_ids, image, initial_latents)

    def _steps(
        self,
        settings: GenerationSettings,
        ids: list[int],
        negative_ids: list[int] | None,
        image: Image.Image | None,
        latents: mx.array | None,
    ) -> Iterator[GenerationStep | GenerationResult]:
        mx.reset_peak_memory()
        begin = time.perf_counter()
        scheduler, start = make_schedule(self.config, settings)
        width, height = settings.width, settings.height
        if latents is None:
            latents = mx.concatenate([self.noise(seed, width, height) for seed in settings.seeds])
        if image is not None and settings.strength is not None:
            self.stage("vae_encoder")
            source = self.encode_latents(cover_crop(image, width, height))
            sigma = float(scheduler.sigmas[start])
            latents = (1 - sigma) * source + sigma * latents
            mx.eval(latents)  # so that it does not hold the encoder
        states, *negative = self._prompt_states([i for i in (ids, negative_ids) if i is not None], image)
        self.stage("llm", "diffusion_connector")
        conditioning, mask = self.conditioning(
            states, guided=settings.guidance_scale != 1, negative=negative[0] if negative else None
        )
        mx.eval(conditioning, latents)
        # Zero hidden states, unlike a negative prompt's, become conditioning that is equal almost everywhere.
        edge = None if negative else self.component("diffusion_connector").reach
        del states, negative
        self.stage("dit")
        encoded = time.perf_counter()
        for step in denoise(
            self.take("dit"),
            scheduler,
            latents,
            conditioning,
            guidance_scale=settings.guidance_scale,
            guidance_interval=settings.guidance_interval,
            attention_mask=mask,
            edge=edge,
            start=start,
            consume=not self.keep_loaded,
        ):
            latents = step.latents
            yield step
        denoised = time.perf_counter()
        self.stage("vae_decoder")
        images = self.decode_latents(latents)
        timings = {
            "encode": encoded - begin,
            "denoise": denoised - encoded,
            "decode": time.perf_counter() - denoised,
        }
        yield GenerationResult(
            **vars(settings),
            model=self.checkpoint.location,
            images=images,
            latents=latents,
            timings=timings,
            peak_memory=mx.get_peak_memory(),
            adapter=None if self.adapter is None else str(self.adapter.path),
            adapter_scale=1.0 if self.adapter is None else self.adapter.scale,
            dtype=None if self._dtype is None else str(self._dtype).removeprefix("mlx.core."),
            quantize=dict(self._bits) or None,
        )

    def _prompt_states(self, prompts: Sequence[list[int]], image: Image.Image | None) -> list[list[mx.array]]:
        """The `hidden_states` of each prompt, evaluated. Where all are recalled no component is needed."""
        images = [] if image is None else [image]
        names = self.image_keys(images)
        keys = [("states", *prompt_key(ids, names)) for ids in prompts]
        if self.keep_loaded and all(key in self.recall for key in keys):
            features = []
        else:
            features = self.image_features(images, names)
            self.stage("llm")
        return [
            self.recalled(key, lambda ids=ids: self.hidden_states([ids], features))  # type: ignore[misc]
            for key, ids in zip(keys, prompts, strict=True)
        ]

    def _prompt_ids(self, task: str, text: str) -> list[int]:
        template = edit_prompt if task == "edit" else generate_prompt
        ids = encode_prompt(self.tokenizer, template(text))
        positions = len(ids) + (self.config.image_tokens - 1 if task == "edit" else 0)
        context = self.config.llm.max_position_embeddings
        if positions > context:
            raise PromptError(
                f"The prompt takes {positions} positions and the model's context has {context}; shorten it."
            )
        return ids


def _last(events: Iterator[GenerationStep | GenerationResult]) -> GenerationResult:
    *_, result = events
    assert isinstance(result, GenerationResult)
    return result
