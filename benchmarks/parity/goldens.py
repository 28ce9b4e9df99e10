"""The reference directory: which cases there are, and their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mobileo_mlx import files
from mobileo_mlx.errors import MobileOError


class GoldenError(MobileOError):
    """The reference directory, or what it is compared with, is incomplete or damaged."""


@dataclass(frozen=True)
class Case:
    """One case of a component's index.

    Attributes:
        params: as the index gives them.
        inputs: the tensors of role `input`, the case's own or those of the case that it refers to.
        expected: name to what the index says of a tensor of another role, its shape and its rounding among it.
        description: in words; a few goldens say only here which part of a tensor they are.
    """

    component: str
    name: str
    description: str
    params: dict[str, Any]
    inputs: dict[str, np.ndarray]
    expected: dict[str, dict[str, Any]]


class Goldens:
    """One `<name>.json` with the tensors in the file that it names.

    Attributes:
        index: the parsed JSON.
        folder: where it lies, and the files that it names.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        self.index = read_json(path)
        if not isinstance(self.index.get("cases"), dict):
            raise GoldenError(f"'{path}' lists no cases; copy the reference directory again.")

    @property
    def component(self) -> str:
        return self.path.stem

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load_file

        path = self.folder / self.index.get("file", f"{self.component}.safetensors")
        try:
            return load_file(path)
        except Exception as error:  # the library has an exception of its own for every kind of damage
            raise GoldenError(f"'{path}' can't be read ({error}); copy the reference directory again.") from error

    def array(self, key: str) -> np.ndarray:
        """The tensor `<case>/<name>`.

        Raises:
            GoldenError: the file is missing, damaged, or lacks it.
        """
        if key not in self._arrays:
            raise GoldenError(f"The tensors of '{self.path}' lack {key}; copy the reference directory again.")
        return self._arrays[key]

    @property
    def unlisted(self) -> list[str]:
        """Tensors in the file that the index does not know."""
        entries = ((name, entry.get("tensors", {})) for name, entry in self.index["cases"].items())
        listed = {spec.get("key", f"{name}/{n}") for name, tensors in entries for n, spec in tensors.items()}
        return sorted(self._arrays.keys() - listed)

    def expected(self, case: Case, name: str) -> np.ndarray:
        """The original's value of an output or intermediate tensor."""
        return self.array(case.expected[name].get("key", f"{case.name}/{name}"))

    def cases(self) -> Iterator[Case]:
        """All cases, in the index's order.

        Raises:
            GoldenError: a case refers to one that is not there.
        """
        for name, entry in self.index["cases"].items():
            tensors = entry.get("tensors", {})
            yield Case(
                component=self.component,
                name=name,
                description=entry.get("description", ""),
                params=entry.get("params", {}),
                inputs=self._inputs(name),
                expected={n: spec for n, spec in tensors.items() if spec.get("role") != "input"},
            )

    def _own_inputs(self, name: str) -> dict[str, np.ndarray]:
        tensors = self.index["cases"][name].get("tensors", {})
        return {
            n: self.array(spec.get("key", f"{name}/{n}")) for n, spec in tensors.items() if spec.get("role") == "input"
        }

    def _inputs(self, name: str) -> dict[str, np.ndarray]:
        cases = self.index["cases"]
        params = cases[name].get("params", {})
        inputs = self._own_inputs(name)
        shared = params.get("inputs")
        if isinstance(shared, str) and (found := re.fullmatch(r"(\w+)\.safetensors: (\w+)/\*", shared)) is not None:
            inputs = Goldens(self.path.with_name(f"{found[1]}.json"))._own_inputs(found[2]) | inputs
        elif isinstance(shared, str):
            if shared not in cases:
                raise GoldenError(f"The case {name} of '{self.path}' refers to {shared}, which is not there.")
            inputs = self._own_inputs(shared) | inputs
        # A single tensor can be referred to by its key: "input_ids": "greedy_text/input_ids".
        for n, key in params.items():
            if isinstance(key, str) and key.count("/") == 1 and key.split("/")[0] in cases:
                inputs[n] = self.array(key)
        if not inputs:
            # `<case>_eos` repeats `<case>` with one thing changed, and does not say so elsewhere.
            bases = [other for other in cases if name.startswith(f"{other}_")]
            inputs = self._own_inputs(max(bases, key=len)) if bases else {}
        return inputs


@dataclass(frozen=True)
class Reference:
    """A reference directory."""

    path: Path

    @property
    def goldens(self) -> dict[str, Path]:
        """The index of each component that is there."""
        return {path.stem: path for path in sorted((self.path / "tiny" / "goldens").glob("*.json"))}

    @property
    def unknown_files(self) -> list[str]:
        """Files that look like goldens and that nothing here knows."""
        tensors = (self.path / "tiny" / "goldens").glob("*.safetensors")
        texts = set((self.path / "prompts").glob("*.json")) - {self.prompts, self.training_tokens}
        files = [*(path for path in tensors if not path.with_suffix(".json").exists()), *texts]
        return sorted(str(path.relative_to(self.path)) for path in files)

    @property
    def checkpoint(self) -> Path:
        return self.path / "tiny" / "checkpoint"

    @property
    def prompts(self) -> Path:
        return self.path / "prompts" / "prompts.json"

    @property
    def training_tokens(self) -> Path:
        return self.path / "prompts" / "training_tokens.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "qwen2-tokenizer"

    @property
    def fullsize(self) -> list[Path]:
        """The indices of full-size goldens."""
        return sorted((self.path / "fullsize").glob("fullsize-*.json"))


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        GoldenError: it is missing, or no JSON object.
    """
    return files.read_json(path, error=GoldenError, remedy="copy the reference directory again")
