"""What an evaluation learns about the network besides the metric: its losses, and the rules that removed its masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from maxdl_tf.evaluation import diagnosis

if TYPE_CHECKING:
    from maxdl_tf.evaluation.model_images import EvaluatedImage
    from maxdl_tf.evaluation.quality import PanopticQualityResult


class NetworkSummary:
    """Collects losses and diagnoses image by image.

    Args:
      thresholds: Thresholds of the post-processing by name, see `Postprocessor.thresholds`.
    """

    def __init__(self, thresholds: Mapping[str, float]):
        self._thresholds = thresholds
        self._losses: list[Mapping[str, float]] = []
        self._masks = diagnosis.total([])
        self._is_diagnosed = False

    def add(self, image: EvaluatedImage) -> None:
        """Adds the losses and the diagnosis of an image, if it has them."""
        if image.losses:
            self._losses.append(image.losses)
        if image.diagnosis:
            self._masks = diagnosis.total([self._masks, image.diagnosis])
            self._is_diagnosed = True

    def added_to(self, result: PanopticQualityResult) -> PanopticQualityResult:
        """The result with the mean losses and the line about masks."""
        masks = diagnosis.as_line(self._masks, self._thresholds) if self._is_diagnosed else None
        return dataclasses.replace(result, losses=mean_losses(self._losses), masks=masks)


def mean_losses(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each loss over images; empty if there are no losses."""
    return {name: float(np.mean([image[name] for image in losses])) for name in (losses[0] if losses else ())}


def losses_line(losses: Mapping[str, float]) -> str:
    """The total and, in parentheses, its terms in a human-readable line."""
    terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items() if name != "total" and value)
    return f"loss {losses['total']:.4g}" + (f" ({terms})" if terms else "")


def losses_curves(losses: Mapping[str, float]) -> dict[str, float]:
    """The losses by TensorBoard's tags, which are those of training."""
    return {f"losses/{name}": value for name, value in losses.items()}


def losses_in_json(losses: Mapping[str, float]) -> dict[str, float | None]:
    """The losses as JSON can hold them: null for one that is not finite."""
    return {name: value if np.isfinite(value) else None for name, value in losses.items()}
