"""Report of an evaluation: a web page that opens from disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.drawing.html_page import Html, bars, figure, gallery, heading, legend, paragraph, table, write_page
from maxdl_tf.evaluation.comparison import Comparison, DatasetEvaluation
from maxdl_tf.evaluation.errors import KINDS
from maxdl_tf.evaluation.network_summary import losses_line
from maxdl_tf.evaluation.quality import ClassQuality

_GROUPS = ("all", "things", "stuff")
_NOTHING = "-"
_PICTURE_SIDE = 1100  # Pixels of image, truth and prediction side by side.
_MEANINGS = {
    "missed": "a true segment that no prediction comes near",
    "false": "a predicted segment that no true one of its class comes near",
    "wrong class": "a true segment that is found under another class (IoU above 0.5)",
    "bad mask": "a true segment that is found, but not well enough to match (IoU 0.1 to 0.5)",
    "rough mask": "a match whose mask is not exact",
}


def write_report(
    path: str,
    evaluation: DatasetEvaluation,
    dataset_info: DatasetInfo,
    *,
    facts: Mapping[str, str],
    num_pictures: int,
) -> None:
    """Writes the report.

    Args:
      path: Path of the HTML file.
      evaluation: Evaluation with the pictures to show.
      dataset_info: Class table of the pictures.
      facts: Names and values that say what was compared.
      num_pictures: Number of pictures of the best images, and of the worst.

    Raises:
      OSError: The file cannot be written.
    """
    write_page(
        path,
        f"Panoptic quality {100 * evaluation.quality.all.pq:.1f} %",
        table(["", ""], [*facts.items(), ("compared", f"{evaluation.quality.num_images:,} images")]),
        heading("Result"),
        *_result(evaluation),
        heading("Cost of errors"),
        *_errors(evaluation),
        heading("Worst images"),
        *_pictures(evaluation.worst(num_pictures), evaluation, dataset_info),
        heading("Best images"),
        *_pictures(evaluation.best(num_pictures), evaluation, dataset_info),
        heading("Score threshold"),
        *_sweep(evaluation),
        heading("Classes, lowest PQ first"),
        _classes(evaluation),
    )


def _result(evaluation: DatasetEvaluation) -> list[Html]:
    rows = []
    for name in _GROUPS:
        group = getattr(evaluation.quality, name)
        cells = [name, group.num_classes]
        for kind in ("pq", "sq", "rq"):
            value = getattr(group, kind) if group.num_classes else None
            cells += [_percent(value), _span(evaluation.intervals[name][kind])]
        rows.append(cells)
    parts = [
        table(["", "classes", "PQ", "95 %", "SQ", "95 %", "RQ", "95 %"], rows),
        paragraph("In percent. 95 %: interval of the value in 95 % of the data sets that resampling the images gives."),
    ]
    if evaluation.quality.miou is not None:
        parts.append(paragraph(f"mIoU {_percent(evaluation.quality.miou)}: the mean of the classes' IoUs below."))
    if evaluation.quality.losses:
        parts.append(paragraph(f"On the same images: {losses_line(evaluation.quality.losses)}."))
    if evaluation.quality.masks_line():
        parts.append(paragraph(f"{evaluation.quality.masks_line()}."))
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
        table(["error", "number", "all", "things", "stuff", "meaning"], rows),
        paragraph("Points of PQ to gain by fixing the errors of one kind alone."),
    ]


def _sweep(evaluation: DatasetEvaluation) -> list[Html]:
    if evaluation.sweep is None:
        return [paragraph("The predicted segments have no scores.")]
    best = max(evaluation.sweep, key=lambda threshold: evaluation.sweep[threshold]["all"])
    return [
        bars({f"{threshold:.2f}": 100 * row["all"] for threshold, row in evaluation.sweep.items()}, form="{:.1f}"),
        paragraph(
            "PQ without segments that have a lower score. The best threshold is "
            f"{best:.2f} with {100 * evaluation.sweep[best]['all']:.1f}; without a threshold it is "
            f"{100 * evaluation.quality.all.pq:.1f}."
        ),
    ]


def _pictures(
    comparisons: Sequence[Comparison], evaluation: DatasetEvaluation, dataset_info: DatasetInfo
) -> list[Html]:
    shown = [
        figure(
            evaluation.pictures[image.image_id],
            _caption(image),
            longest_side=_PICTURE_SIDE,
            below=_legend(image, dataset_info),
        )
        for image in comparisons
        if image.image_id in evaluation.pictures
    ]
    if not shown:
        return [paragraph("No pictures.")]
    return [
        paragraph("From left to right: the image if there is one, truth, prediction. Striped: void."),
        gallery(shown),
    ]


def _legend(image: Comparison, dataset_info: DatasetInfo) -> Html:
    """The colors of the classes that are in the truth or the prediction of an image."""
    _, tp, fp, fn = image.counts
    present = np.flatnonzero(tp + fp + fn).tolist()
    return legend({row.name: row.color for row in map(dataset_info.by_id.get, present)})


def _caption(image: Comparison) -> str:
    errors = image.errors
    numbers = (errors.missed, errors.false, errors.wrong_class_true, errors.bad_mask)
    parts = [f"{int(number.sum())} {kind}" for kind, number in zip(KINDS, numbers) if number.sum()]
    matched = f"{int(image.counts.tp.sum())} matched"
    return f"{image.image_id}: PQ {100 * image.quality():.1f}; {', '.join([matched, *parts])}"


def _classes(evaluation: DatasetEvaluation) -> Html:
    classes = sorted((c for c in evaluation.quality.classes if c.has_segments), key=lambda c: c.pq)
    ap = evaluation.mask_ap.classes if evaluation.mask_ap else None
    columns = ["class", "", "PQ", "SQ", "RQ", "IoU", "TP", "FP", "FN", *(["AP"] if ap else []), *KINDS]
    return table(columns, [_class_row(c, evaluation, ap) for c in classes])


def _class_row(c: ClassQuality, evaluation: DatasetEvaluation, ap: Mapping[str, float | None] | None) -> list[object]:
    costs = [evaluation.errors[kind].of_class.get(c.id) for kind in KINDS]
    return [
        c.name,
        "thing" if c.is_thing else "stuff",
        *map(_percent, (c.pq, c.sq, c.rq, c.iou)),
        *(c.tp, c.fp, c.fn),
        *([_percent(ap.get(c.name))] if ap else []),
        *(_NOTHING if cost is None else f"{100 * cost:+.1f}" if abs(cost) >= 0.0005 else "" for cost in costs),
    ]


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{100 * value:.1f}"


def _span(interval: tuple[float, float] | None) -> str:
    return _NOTHING if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
