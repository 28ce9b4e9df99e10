"""By what a resumed run knows that it is the same: its settings, and digests of data and model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from ..checkpoints.adapters import Adapter
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.digests import adapter_digest, weights_digest
from ..models.mobileo import COMPONENTS
from .batches import Batches
from .options import Options
from .quadruplets import Data


def resume_settings(
    data: Data, batches: Batches, checkpoint: Checkpoint, adapter: Adapter | None, options: Options, processes: int
) -> dict[str, Any]:
    """What has to be the same for a run to go on: all that its losses depend on, but the steps of `Options`.

    Raises:
        CheckpointError: a file of the model or of the adapter can't be read.
    """
    tensors = {
        (component, key): info
        for component in COMPONENTS
        if checkpoint.has(component)
        for key, info in checkpoint.tensors(component).items()
    }
    shapes = sorted([*names, info.dtype, info.shape] for names, info in tensors.items())
    return {
        "data": _digest([data.fingerprint, batches.fingerprint()]),
        "model": _digest([checkpoint.config.to_dict(), shapes]),
        "weights": weights_digest({info.file for info in tensors.values()}),
        "adapter": None if adapter is None else adapter_digest(adapter),
        "stage": asdict(options.stage),
        "lora": None if options.lora is None else asdict(options.lora),
        "layout": options.layout,
        "cond_dropout": options.cond_dropout,
        "flow_shift": options.flow_shift,
        "held_out": options.held_out,
        "objective": options.objective,
        **({"teacher": [options.teacher_steps, options.guidance_scale]} if options.distills else {}),
        "dtype": options.dtype,
        # The keys of the adapters' dropout count micro-batches.
        "accumulate": options.accumulate,
        "processes": processes,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
