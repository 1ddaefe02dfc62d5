"""The figures of an evaluation as a page that opens from disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maxdl_tf.drawing.html_page import Html, bars, figure, gallery, heading, paragraph, table, write_page
from maxdl_tf.evaluation.comparison import Comparison
from maxdl_tf.evaluation.dataset_evaluation import DatasetEvaluation
from maxdl_tf.evaluation.errors import KINDS
from maxdl_tf.evaluation.quality import ClassQuality

_GROUPS = ("all", "things", "stuff")
_NOTHING = "-"
_PICTURE_SIDE = 1100  # Pixels of image, truth and prediction side by side.
_MEANINGS = {
    "missed": "a true segment that no prediction comes near",
    "false": "a predicted segment where none of its class is",
    "wrong class": "a true segment that is found, under another class (IoU above 0.5)",
    "bad mask": "a true segment that is found, but not well enough to count (IoU 0.1 to 0.5)",
    "rough mask": "a match whose mask is not exact",
}


def write_report(
    path: str,
    evaluation: DatasetEvaluation,
    *,
    facts: Mapping[str, str],
    pictures: Mapping[Any, np.ndarray],
    num_pictures: int,
) -> None:
    """Writes the page.

    Args:
      path: Of the HTML file.
      evaluation: What was found.
      facts: What was compared: names and values.
      pictures: uint8 [h, w, 3] by image id, of the best and the worst images.
      num_pictures: How many of each are shown.

    Raises:
      OSError: It cannot be written.
    """
    write_page(
        path,
        f"Panoptic quality {100 * evaluation.quality.all.pq:.1f}",
        table(["", ""], [*facts.items(), ("compared", f"{evaluation.quality.num_images:,} images")]),
        heading("Result"),
        *_result(evaluation),
        heading("What costs panoptic quality"),
        *_errors(evaluation),
        heading("Worst images"),
        _pictures(evaluation.worst(num_pictures), pictures),
        heading("Best images"),
        _pictures(evaluation.best(num_pictures), pictures),
        heading("Score threshold"),
        *_sweep(evaluation),
        heading("Classes, lowest PQ first"),
        _classes(evaluation),
    )


def _result(evaluation: DatasetEvaluation) -> list[Html]:
    rows = []
    for name in _GROUPS:
        group = getattr(evaluation.quality, name)
        figures = [name, group.num_classes]
        for kind in ("pq", "sq", "rq"):
            low, high = evaluation.intervals[name][kind]
            defined = group.num_classes > 0
            figures += [_percent(getattr(group, kind) if defined else None), _span(low, high) if defined else _NOTHING]
        rows.append(figures)
    parts = [
        table(["", "classes", "PQ", "95 %", "SQ", "95 %", "RQ", "95 %"], rows),
        paragraph("In percent. 95 %: where the figure lies in 95 % of the data sets that drawing images anew gives."),
    ]
    found = evaluation.mask_ap
    if found:
        names = ["AP", "AP50", "AP75", "small", "medium", "large"]
        values = [found.ap, found.ap50, found.ap75, found.small, found.medium, found.large]
        parts.append(table([f"mask {names[0]}", *names[1:]], [map(_percent, values)]))
    return parts


def _errors(evaluation: DatasetEvaluation) -> list[Html]:
    rows = [
        [kind, cost.count, *(f"{100 * value:+.1f}" for value in (cost.all, cost.things, cost.stuff)), _MEANINGS[kind]]
        for kind, cost in evaluation.errors.items()
    ]
    return [
        bars({kind: max(0.0, 100 * cost.all) for kind, cost in evaluation.errors.items()}, form="{:.1f}"),
        table(["error", "number", "all", "things", "stuff", "what it is"], rows),
        paragraph("Points of PQ that mending the errors of one kind alone would gain."),
    ]


def _sweep(evaluation: DatasetEvaluation) -> list[Html]:
    if evaluation.sweep is None:
        return [paragraph("The predicted segments have no scores.")]
    best = max(evaluation.sweep, key=lambda threshold: evaluation.sweep[threshold]["all"])
    return [
        bars({f"{threshold:.2f}": 100 * row["all"] for threshold, row in evaluation.sweep.items()}, form="{:.1f}"),
        paragraph(
            "PQ if segments with a lower score were left out. Most is reached with "
            f"{best:.2f}: {100 * evaluation.sweep[best]['all']:.1f}; without a threshold it is "
            f"{100 * evaluation.quality.all.pq:.1f}."
        ),
    ]


def _pictures(comparisons: Sequence[Comparison], pictures: Mapping[Any, np.ndarray]) -> Html:
    shown = [
        figure(pictures[found.image_id], _caption(found), longest_side=_PICTURE_SIDE)
        for found in comparisons
        if found.image_id in pictures
    ]
    return gallery(shown) if shown else paragraph("No pictures.")


def _caption(found: Comparison) -> str:
    errors = found.errors
    numbers = (errors.missed, errors.false, errors.wrong_class_true, errors.bad_mask)
    parts = [f"{int(number.sum())} {kind}" for kind, number in zip(KINDS, numbers) if number.sum()]
    matched = f"{int(found.counts.tp.sum())} matched"
    return f"{found.image_id}: PQ {100 * found.quality():.1f}; {', '.join([matched, *parts])}"


def _classes(evaluation: DatasetEvaluation) -> Html:
    classes = sorted((c for c in evaluation.quality.classes if c.has_segments), key=lambda c: c.pq)
    ap = evaluation.mask_ap.classes if evaluation.mask_ap else None
    columns = ["class", "", "PQ", "SQ", "RQ", "TP", "FP", "FN", *(["AP"] if ap else []), *KINDS]
    return table(columns, [_class_row(c, evaluation, ap) for c in classes])


def _class_row(c: ClassQuality, evaluation: DatasetEvaluation, ap: Mapping[str, float | None] | None) -> list[object]:
    costs = [evaluation.errors[kind].of_class.get(c.id) for kind in KINDS]
    return [
        c.name,
        "thing" if c.is_thing else "stuff",
        *map(_percent, (c.pq, c.sq, c.rq)),
        *(c.tp, c.fp, c.fn),
        *([_percent(ap.get(c.name))] if ap else []),
        *(_NOTHING if cost is None else f"{100 * cost:+.1f}" if abs(cost) >= 0.0005 else "" for cost in costs),
    ]


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{100 * value:.1f}"


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"
