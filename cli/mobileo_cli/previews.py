"""`--previews`: what the model sees at each step, saved while it draws, and a contact sheet of it at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from . import output_paths

if TYPE_CHECKING:
    from PIL.Image import Image

    from mobileo_mlx import GenerationStep, MobileO


class Previews:
    """The previews of one image.

    Args:
        folder: created with the first preview; until then a failure leaves nothing behind.
        model: decodes.
        seed: of the image; begins the file names.
        overwrite: replace files that exist.
    """

    def __init__(self, folder: Path, model: MobileO, seed: int, *, overwrite: bool) -> None:
        self.folder = folder
        self.model = model
        self.seed = seed
        self.overwrite = overwrite
        self.images: list[Image] = []

    def add(self, step: GenerationStep) -> None:
        """Decodes and saves what a step predicts the image to be.

        Raises:
            OutputError: it can't be written.
        """
        (image,) = self.model.decode_latents(step.denoised)
        self.images.append(image)
        self._save(image, f"step-{step.step:02d}")

    def finish(self) -> None:
        """Saves the contact sheet.

        Raises:
            OutputError: it can't be written.
        """
        from mobileo_mlx.images import contact_sheet

        self._save(contact_sheet(self.images, math.ceil(math.sqrt(len(self.images)))), "contact-sheet")

    def _save(self, image: Image, name: str) -> None:
        from mobileo_mlx.images import save_png

        self.folder.mkdir(exist_ok=True)
        path = output_paths.free(self.folder / f"{self.seed}-{name}.png", overwrite=self.overwrite)
        save_png(image, path, overwrite=self.overwrite)
