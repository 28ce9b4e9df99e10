"""The model as a plug-in of lmms-eval, by the entry point `mobileo_mlx` of the group `lmms_eval.models`.

    python -m lmms_eval --model mobileo_mlx --model_args pretrained=tiny --tasks ...

It answers as the original's runner did (lmms-eval 0.3.0, `--model llava`, one question at a time): only the first
picture of a question is shown, in front of its text, which stays as it is, marks such as "<image 2>" too; the likeliest
token is taken unless the task's temperature is above 0; `until` is not applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval.api.model import lmms

from mobileo_mlx.errors import OptionError
from mobileo_mlx.files import parse_json

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

    from mobileo_mlx.generation_options import AnswerOptions

NAME = "mobileo_mlx"
MAX_TOKENS = 1024  # of a task that does not say


def manifest() -> ModelManifest:
    """What the entry point names: where the class is, and that it is of lmms-eval's simple kind."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.MobileOModel")


class MobileOModel(lmms):
    """Mobile-O for lmms-eval. `--model_args` are those of `MobileO.load`.

    Args:
        pretrained: a bundled name, a folder, or a repository on the hub; by default the published 0.5B.
        dtype, quantize, precision: as the options of the command. Several parts need quotes:
            `quantize="llm=4,vision_tower=8"`.
        adapter: a folder or a repository; or several as JSON, `adapter=["a","b"]`.
        adapter_scale: a number; or one for each, as JSON.
        **ignored: `batch_size`, `max_batch_size` and `device`, which lmms-eval gives to every model.

    Raises:
        MobileOError: as `MobileO.load`.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: Any = None,
        dtype: Any = None,
        quantize: Any = None,
        precision: Any = None,
        adapter: Any = None,
        adapter_scale: Any = None,
        **ignored: Any,
    ) -> None:
        super().__init__()
        from mobileo_mlx import blas

        blas.preload()  # before MLX is imported
        from mobileo_mlx.checkpoints.hub import DEFAULT_MODEL
        from mobileo_mlx.checkpoints.quantize import parse_quantize
        from mobileo_mlx.pipeline import MobileO

        if unknown := sorted(ignored.keys() - {"batch_size", "max_batch_size", "device"}):
            raise OptionError(
                f"--model_args: there is no {unknown[0]!r}; there are pretrained, dtype, quantize, precision, adapter "
                "and adapter_scale."
            )
        scale = _value(adapter_scale)
        self.model = MobileO.load(
            str(_value(pretrained) or DEFAULT_MODEL),
            dtype=_value(dtype),
            quantize=parse_quantize(_value(quantize)) if quantize is not None else None,
            precision=_value(precision),
            adapter=_value(adapter),
            adapter_scale=1.0 if scale is None else scale,
            keep_loaded=True,  # a second question about a picture computes its own words alone
        )

    def generate_until(self, requests: Sequence[Any]) -> Iterator[str]:  # type: ignore[override]
        """Yields an answer for each question, in their order.

        lmms-eval stores each as it comes (`--use_cache`), because this is an iterator: a run that was stopped goes on
        with the next question.

        Args:
            requests: lmms-eval's, of the simple kind; `args` are the text, the task's `generation_kwargs`, the function
                that gives the pictures of a document, and the document's number, task and split.
        """
        from tqdm import tqdm

        with tqdm(total=len(requests), desc=NAME) as bar:
            for request in requests:
                context, generation_kwargs, doc_to_visual, doc_id, task, split = request.args
                images = doc_to_visual(self.task_dict[task][split][doc_id])[:1]
                answer = self.model.ask(images, context, **answer_options(generation_kwargs, int(doc_id)))
                bar.update()  # before the last one is taken: nobody asks for one more
                yield answer.text

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """None of the paper's benchmarks asks for it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("mobileo_mlx answers in words; choose a task with output_type: generate_until.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """None of the paper's benchmarks asks for it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("mobileo_mlx answers single questions; choose a task with one round.")


def answer_options(generation_kwargs: dict[str, Any], seed: int) -> AnswerOptions:
    """The options of `MobileO.ask` that a task's `generation_kwargs` stand for.

    `do_sample`, `num_beams`, `until` and `image_aspect_ratio` stand for nothing, as in the original's runner: sampling
    follows the temperature alone.

    Args:
        generation_kwargs: of the task.
        seed: of the sampling, where there is any: each question has its own.
    """
    known = {name: generation_kwargs.get(name) for name in ("max_new_tokens", "temperature", "top_p")}
    return {
        "max_tokens": MAX_TOKENS if known["max_new_tokens"] is None else int(known["max_new_tokens"]),
        "temperature": known["temperature"] or 0.0,
        "top_p": known["top_p"] or 1.0,  # a task may say 0 where nothing is sampled
        "seed": seed,
    }


def _value(given: Any) -> Any:
    """A value of `--model_args`: lmms-eval leaves its quotes, and reads no lists."""
    if not isinstance(given, str):
        return given
    if given.startswith(("[", "{")):
        return parse_json(given)
    return given[1:-1] if len(given) > 1 and given[0] == given[-1] and given[0] in "'\"" else given
