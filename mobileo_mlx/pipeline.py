"""`MobileO`: one model, four tasks. The one file that knows all the parts.

Nothing is computed or read before it is needed: loading reads configuration and headers, and each task reads only the
components that it uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from .answering import stream_answer
from .best_of.candidates import stream_best
from .best_of.judge import Judgement, judge_images, require_judge
from .chat import Chat
from .checkpoints.adapters import notes_of, open_adapters
from .checkpoints.checkpoint import Checkpoint
from .checkpoints.hub import DEFAULT_MODEL
from .checkpoints.precision import parse_dtypes
from .checkpoints.quantize import resolve_bits
from .conversations import Conversation, Turn, read_conversation, stream_conversation
from .diffusion import GenerationStep
from .drawing import Drawing, stream_drawing
from .errors import OptionError, PromptError
from .generation_options import (
    AnswerSettings,
    EditOptions,
    GenerationOptions,
    GenerationSettings,
    ModelSpeeds,
    Task,
    resolve,
)
from .images import ImageSource, from_array, load_image, load_images
from .latents import decode_latents
from .model_speeds import speeds_of
from .models.qwen2 import empty_cache
from .ops.finite import all_finite
from .parts import Parts
from .prompts import SYSTEM_PROMPT, ask_prompt, check_text, edit_prompt, encode_prompt, generate_prompt
from .results import Answer, AnswerToken, GenerationResult

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self, Unpack

    from .generation_options import AnswerOptions
    from .models.mobileo import MobileOConfig
    from .tokenizer import Tokenizer


class MobileO:
    """A loaded model.

    It may be used from several threads. Its tasks take turns: `generate`, `edit`, `ask` and `Chat.send` from beginning
    to end, streams step by step and token by token. A stream may be begun in one thread and read on in another.

    Attributes:
        parts: its networks, configuration and cache.
    """

    def __init__(self, parts: Parts):
        self.parts = parts

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        dtype: str | Mapping[str, str] | None = None,
        quantize: Mapping[str, int] | None = None,
        precision: str | None = None,
        preset: str | None = None,
        adapter: str | Path | Sequence[str | Path] | None = None,
        adapter_scale: float | Sequence[float] = 1.0,
        keep_loaded: bool = True,
        progress: bool = False,
    ) -> Self:
        """Finds a model, downloading it where needed, and reads its configuration.

        Args:
            model: a bundled name, a folder, or a repository on the hub.
            dtype: "float32", "float16" or "bfloat16", or by component, as in {"dit": "float16", "vae": "float32"} or
                "dit=float16,vae=float32"; by default that of `checkpoints.precision`.
            quantize: bits for components, such as {"llm": 4, "dit": 8}, applied while loading.
            precision: bits of all components by name, "small", "balanced" or "full"; `quantize` changes single ones.
            preset: the old spelling of `precision`.
            adapter: what `finetune`, the PEFT library or mlx-lm wrote, a folder or a repository on the hub; or several,
                whose changes add up. See `mobileo_mlx.checkpoints.adapters`.
            adapter_scale: how strongly it changes the model: 0 not at all, 1 as trained; one number for all adapters,
                or one for each.
            keep_loaded: True keeps each network once it is loaded, and what was read of an image or a prompt, for
                many tasks in one process. False frees what the next phase of a task does not need (see
                `mobileo_mlx.parts.PHASES`): memory peaks at the largest phase instead of the sum, the results are
                the same, and every task loads its networks again.
            progress: whether a download draws its bars on standard error.

        Raises:
            CheckpointError, ConfigError: the model is missing, damaged or foreign (DownloadError: unreachable); or the
                adapter is, or it is for another model.
            OptionError: an unknown dtype, precision, component or number of bits, or a scale that is no number.
        """
        dtypes = parse_dtypes(dtype)
        if preset is not None and precision is not None:
            raise OptionError("preset is the old name of precision; give only precision.")
        bits = resolve_bits(quantize, preset if precision is None else precision)  # mistakes show before a download
        adapters = open_adapters(adapter, adapter_scale, progress=progress)
        checkpoint = Checkpoint.open(model, progress=progress)
        loaded = cls(Parts(checkpoint, dtypes=dtypes, bits=bits, adapters=adapters, keep_loaded=keep_loaded))
        _ = loaded.speeds  # what is wrong with a few-step adapter shows here
        return loaded

    @property
    def config(self) -> MobileOConfig:
        """Dimensions of all networks."""
        return self.parts.config

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the weights come from."""
        return self.parts.checkpoint

    @cached_property
    def speeds(self) -> ModelSpeeds:
        """What the option `speed` stands for, and what is drawn with where it is not given.

        Raises:
            CheckpointError: the few-step adapter in the model's folder, or one that was given, is damaged.
            OptionError: several few-step adapters were given.
        """
        return speeds_of(self.parts.turbo, self.parts.adapters)

    @property
    def notes(self) -> list[str]:
        """What a user should know about the adapters, a sentence each."""
        return notes_of(self.parts.adapters, self.checkpoint)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read on first use."""
        return self.parts.tokenizer

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height in pixels of a drawing, where no size is asked for."""
        return self.config.default_size

    def release(self) -> None:
        """Frees the memory of all networks and of what was cached; they load again when they are needed."""
        self.parts.release()

    # Drawing

    def check(self, task: Task, prompt: str, **options: Unpack[EditOptions]) -> GenerationSettings:
        """The complete settings of a drawing, checked as far as that needs no network.

        Raises:
            PromptError, OptionError: see `stream_generate`.
        """
        settings = resolve(self.config, task, prompt, self.speeds, **options)
        for text in (prompt, settings.negative_prompt):
            if text is not None:
                self._prompt_ids(task, text)
        return settings

    def generate(self, prompt: str, **options: Unpack[GenerationOptions]) -> GenerationResult:
        """Draws `prompt`: the last thing that `stream_generate` yields."""
        with self.parts.lock:
            return _result(self.stream_generate(prompt, **options))

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
            NotFiniteError: a network gives NaN or infinity; at the first step where it does.
        """
        settings = resolve(self.config, "generate", prompt, self.speeds, **options)
        return self._draw(settings, None, options)

    def edit(
        self,
        image: ImageSource,
        instruction: str,
        **options: Unpack[EditOptions],
    ) -> GenerationResult:
        """Draws `image` changed as `instruction` says: the last thing that `stream_edit` yields."""
        with self.parts.lock:
            return _result(self.stream_edit(image, instruction, **options))

    def stream_edit(
        self,
        image: ImageSource,
        instruction: str,
        **options: Unpack[EditOptions],
    ) -> Iterator[GenerationStep | GenerationResult]:
        """Draws `image` changed as `instruction` says, yielding every step and at last the result.

        As in the original the image enters through the language model alone, and drawing starts from noise. Our
        extension `strength` starts from the encoded image at this noise level, above 0 (the image itself) and up to 1
        (nearly noise); only the steps below that level are run.

        Args:
            image: a path, the bytes of a file, an open file, a Pillow image, or an array of pixels.
            instruction: what to change.
            options: see `mobileo_mlx.generation_options.EditOptions`.

        Raises:
            ImageError: the image can't be read.
            PromptError, OptionError, CheckpointError, NotFiniteError: see `stream_generate`.
        """
        settings = resolve(self.config, "edit", instruction, self.speeds, **options)
        return self._draw(settings, load_image(image), options)

    def decode_latents(self, latents: mx.array) -> list[Image.Image]:
        """The images of scaled latents (B, h, w, latent_channels), such as `GenerationStep.denoised`.

        Raises:
            OptionError: the latents have values that are not finite.
            NotFiniteError: the decoder gives such values.
        """
        if not all_finite(latents).item():
            raise OptionError("the latents have values that are not finite; give those of a step.")
        with self.parts.lock:
            return from_array(decode_latents(self.parts, latents))

    # Judging

    def judge(self, image: ImageSource, prompt: str, *, source: ImageSource | None = None) -> Judgement:
        """What the model itself says about an image: whether it shows `prompt`.

        It is asked questions that follow from the words, and their answers are read as probabilities.

        Args:
            image: as in `edit`.
            prompt: what it is to show; with `source` an instruction.
            source: the image before the edit.

        Raises:
            ImageError, PromptError, CheckpointError, NotFiniteError: see `ask`.
        """
        check_text(prompt, "prompt" if source is None else "instruction")
        loaded = load_image(image)
        before = None if source is None else load_image(source)
        require_judge(self.parts, prompt, edits=source is not None)
        with self.parts.lock:
            return judge_images(self.parts, [loaded], prompt, source=before)[0]

    # Answering

    def ask(
        self, images: ImageSource | Sequence[ImageSource], question: str, **options: Unpack[AnswerOptions]
    ) -> Answer:
        """The whole answer to a question about images; takes what `stream_ask` takes."""
        with self.parts.lock:
            return Answer.of(list(self.stream_ask(images, question, **options)))

    def stream_ask(
        self, images: ImageSource | Sequence[ImageSource], question: str, **options: Unpack[AnswerOptions]
    ) -> Iterator[AnswerToken]:
        """Answers a question about one image or several, yielding each token.

        Args:
            images: one, or a list of several; each as in `edit`.
            question: in words.
            options: see `mobileo_mlx.generation_options.AnswerOptions`.

        Raises:
            ImageError, PromptError, OptionError, CheckpointError, NotFiniteError: see `Chat.stream`.
        """
        settings = AnswerSettings(**options)
        check_text(question, "question")
        loaded = load_images(images)
        self.parts.require("answer", *(["vision"] if loaded else []))
        context = self.config.llm.max_position_embeddings
        ids = encode_prompt(self.tokenizer, ask_prompt(question, len(loaded)), context=context)
        cache = empty_cache(self.config.llm.num_hidden_layers)
        return self.parts.in_turns(stream_answer(self.parts, ids, loaded, cache, settings))

    def chat(self, *, system_prompt: str = SYSTEM_PROMPT) -> Chat:
        """A conversation that remembers."""
        return Chat(self.parts, system_prompt=system_prompt)

    def read_messages(self, messages: Sequence[Turn], *, system_prompt: str = SYSTEM_PROMPT) -> Conversation:
        """Checks and encodes a conversation for `stream_messages`, which does it otherwise. It needs no network.

        Raises:
            ImageError, PromptError, OptionError: see `conversations.read_conversation`.
        """
        return read_conversation(self.parts, messages, system_prompt=system_prompt)

    def answer(
        self,
        messages: Sequence[Turn] | Conversation,
        *,
        system_prompt: str = SYSTEM_PROMPT,
        **options: Unpack[AnswerOptions],
    ) -> Answer:
        """The whole answer to a conversation; takes what `stream_messages` takes."""
        with self.parts.lock:
            return Answer.of(list(self.stream_messages(messages, system_prompt=system_prompt, **options)))

    def stream_messages(
        self,
        messages: Sequence[Turn] | Conversation,
        *,
        system_prompt: str = SYSTEM_PROMPT,
        **options: Unpack[AnswerOptions],
    ) -> Iterator[AnswerToken]:
        """Answers a conversation that the caller keeps, yielding each token.

        Every call gets all that was said. What the model has read before, of this conversation or of another that
        begins alike, it does not compute again as long as its keys and values are kept (where networks are).

        Args:
            messages: all turns, the oldest first; or what `read_messages` made of them. Where the last one is the
                assistant's, the answer goes on with it.
            system_prompt: said first where the first turn is not the system's; nothing where it is empty.
            options: see `mobileo_mlx.generation_options.AnswerOptions`.

        Raises:
            ImageError, PromptError, OptionError, CheckpointError, NotFiniteError: see `Chat.stream`.
        """
        settings = AnswerSettings(**options)
        if not isinstance(messages, Conversation):
            messages = self.read_messages(messages, system_prompt=system_prompt)
        self.parts.require("answer", *(["vision"] if messages.images else []))
        return self.parts.in_turns(stream_conversation(self.parts, messages, settings))

    # The phases of a drawing

    def _draw(
        self, settings: GenerationSettings, image: Image.Image | None, options: Mapping[str, Any]
    ) -> Iterator[GenerationStep | GenerationResult]:
        """Checks the components and the length of the prompts now, and returns the generator that computes."""
        best_of, latents = options.get("best_of") or 1, options.get("initial_latents")
        phases = ["condition", "denoise", "decode"]
        if image is not None:
            phases.append("vision")
        if settings.strength is not None:
            phases.append("encode")
        self.parts.require(*phases)
        if best_of > 1:
            require_judge(self.parts, settings.prompt, edits=image is not None)
        ids = self._prompt_ids(settings.task, settings.prompt)
        negative = settings.negative_prompt
        negative_ids = None if negative is None else self._prompt_ids(settings.task, negative)
        if latents is not None:
            mx.eval(latents)  # here: the first step may be computed in another thread
            if not all_finite(latents).item():
                raise OptionError("initial latents have values that are not finite; give noise.")
        drawing = Drawing(settings, ids, negative_ids, image)
        if best_of > 1:
            until_pass = bool(options.get("until_pass"))
            return self.parts.in_turns(stream_best(self.parts, drawing, best_of, until_pass=until_pass))
        return self.parts.in_turns(stream_drawing(self.parts, drawing, latents))

    def _prompt_ids(self, task: str, text: str) -> list[int]:
        template = edit_prompt if task == "edit" else generate_prompt
        context = self.config.llm.max_position_embeddings
        ids = encode_prompt(self.tokenizer, template(text), context=context)
        positions = len(ids) + (self.config.image_tokens - 1 if task == "edit" else 0)
        if positions > context:
            raise PromptError(
                f"The prompt takes {positions} positions and the model's context has {context}; shorten it."
            )
        return ids


def _result(events: Iterator[GenerationStep | GenerationResult]) -> GenerationResult:
    """The last event; no step is kept."""
    for event in events:
        if isinstance(event, GenerationResult):
            return event
    raise RuntimeError("a drawing ended without a result")
