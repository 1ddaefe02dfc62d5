"""The report of maxdl-check-data: text for a terminal, JSON, and a web page with pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from maxdl_tf.data_gen.checks.findings import (
    ERROR,
    KINDS,
    NOTE,
    SEVERITIES,
    WARNING,
    Finding,
    Loaded,
    Split,
    all_findings,
)
from maxdl_tf.drawing import html_page

Load = Callable[[Split, Any], Loaded]  # The image of a split with this `source`.

_CLASSES_SHOWN = 15  # Classes on a terminal; the page and the JSON file list all.
_ON_PAGE = 100  # Findings of a kind on the page; the JSON file lists all.
_SAMPLES = 12  # Pictures of images without errors.
_SAMPLE_SIDE = 480  # Pixels of the longer side of a sample.
_RED = np.array([255, 0, 40], np.float32)


class Result(NamedTuple):
    """Result of a check.

    Attributes:
      findings: All findings, the worst first.
      summaries: Statistics of each split, from `statistics.summarize`.
    """

    findings: list[Finding]
    summaries: list[dict[str, Any]]

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def verdict(self) -> str:
        """One line with the number of findings of each severity."""
        images = sum(summary["images"] for summary in self.summaries)
        counts = [_number(self.count(severity), severity) for severity in SEVERITIES]
        return f"{_number(images, 'image')}: {', '.join(counts[:-1])} and {counts[-1]}"

    def by_kind(self) -> list[tuple[str, list[Finding]]]:
        return [(kind, list(found)) for kind, found in itertools.groupby(self.findings, lambda finding: finding.kind)]


def as_text(result: Result, shown: int) -> str:
    """Formats the report for a terminal.

    Args:
      result: Result of the check.
      shown: Number of findings of each kind to list; notes are only counted.
    """
    lines = []
    for kind, found in result.by_kind():
        severity = KINDS[kind].severity
        lines.append(f"{severity:8} {kind}: {len(found)}")
        listed = found[: shown if severity != NOTE else 0]
        lines += [f"    {finding.split}: {finding.place}: {finding.what}" for finding in listed]
        if listed and len(found) > len(listed):
            lines.append(f"    and {len(found) - len(listed)} more; --json FILE lists all")
        if severity != NOTE:
            lines.append(f"    fix: {KINDS[kind].fix}")
    for summary in result.summaries:
        lines += ["", *_summary_lines(summary)]
    return "\n".join([*lines, "", result.verdict()])


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    lines = [f"{summary['split']}"]
    lines += [f"  {name:20} {value}" for name, value in _facts(summary)]
    rows = [row for row in summary["classes"] if row["segments"] or row["crowds"]]
    width = max([len(row["name"]) for row in rows[:_CLASSES_SHOWN]] + [5])
    lines.append(f"  {'class':{width}}  {'kind':5}  {'images':>7}  {'segments':>8}  {'crowds':>6}  {'pixels %':>8}")
    for row in rows[:_CLASSES_SHOWN]:
        kind = "thing" if row["is_thing"] else "stuff"
        numbers = f"{row['images']:7}  {row['segments']:8}  {row['crowds']:6}  {100 * row['share']:8.2f}"
        lines.append(f"  {row['name']:{width}}  {kind:5}  {numbers}")
    if len(rows) > _CLASSES_SHOWN:
        lines.append(f"  and {len(rows) - _CLASSES_SHOWN} more classes; --json FILE lists all")
    return lines


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the statistics of a split that are not about single classes."""
    sizes, segments = summary["sizes"], summary["segments_per_image"]
    height, width = sizes["height"], sizes["width"]
    modes = ", ".join(f"{mode} {count}" for mode, count in summary["modes"].items()) or "none"
    absent, present = summary["absent"], len(summary["classes"]) - len(summary["absent"])
    some = ", ".join(absent[:6]) + (f" and {len(absent) - 6} more" if len(absent) > 6 else "")
    return [
        ("images", _number(summary["images"], "image")),
        ("height", f"{height['least']} to {height['most']}, median {height['median']:g}"),
        ("width", f"{width['least']} to {width['most']}, median {width['median']:g}"),
        ("colors", modes),
        (
            "segments per image",
            f"{segments['least']} to {segments['most']} ({segments['image_with_most']}), median "
            f"{segments['median']:g}, 95 % have at most {segments['percentile_95']:g}",
        ),
        ("slots", f"{segments['num_slots']}; {segments['images_above_num_slots']} images have more segments"),
        ("crowds", _number(summary["crowds"], "segment")),
        ("void", f"{100 * summary['void']:.2f} % of the pixels"),
        ("classes", f"{present} of {len(summary['classes'])} occur" + (f"; never: {some}" if absent else "")),
    ]


def as_dict(result: Result) -> dict[str, Any]:
    """Formats the report for JSON."""
    return {
        "errors": result.count(ERROR),
        "warnings": result.count(WARNING),
        "notes": result.count(NOTE),
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "split": finding.split,
                "file": finding.file,
                "record": finding.record,
                "segment": finding.segment,
                "what": finding.what,
                "fix": finding.fix,
            }
            for finding in result.findings
        ],
        "splits": result.summaries,
    }


def write_page(
    path: str, title: str, result: Result, shown: Sequence[tuple[np.ndarray, str]], samples: Sequence[html_page.Html]
) -> None:
    """Writes the report as a web page.

    Args:
      path: Path of the HTML file.
      title: Title of the page.
      result: Result of the check.
      shown: Pictures of images with findings, uint8 [h, w, 3], each with a caption.
      samples: Figures of images without errors.

    Raises:
      OSError: The file cannot be written.
    """
    parts = [html_page.paragraph(result.verdict())]
    if result.findings:
        rows = [(KINDS[kind].severity, kind, len(found), KINDS[kind].fix) for kind, found in result.by_kind()]
        parts += [html_page.heading("Findings"), html_page.table(["", "kind", "findings", "fix"], rows)]
    if shown:
        parts.append(html_page.heading("Images with errors or warnings; faulty segments are red"))
        parts.append(html_page.gallery(html_page.figure(pixels, caption) for pixels, caption in shown))
    if samples:
        parts.append(html_page.heading("Samples: images under their labels; void is dark and striped"))
        parts.append(html_page.gallery(samples))
    for summary in result.summaries:
        parts += _summary_parts(summary)
    for kind, found in result.by_kind():
        parts.append(html_page.heading(f"{kind}: {KINDS[kind].severity}"))
        rows = [(finding.split, finding.place, finding.what) for finding in found[:_ON_PAGE]]
        parts.append(html_page.table(["split", "place", "finding"], rows))
        if len(found) > _ON_PAGE:
            parts.append(html_page.paragraph(f"and {len(found) - _ON_PAGE} more; the JSON file lists all"))
    html_page.write_page(path, title, *parts)


def _summary_parts(summary: dict[str, Any]) -> list[html_page.Html]:
    rows = [
        (
            row["name"],
            "thing" if row["is_thing"] else "stuff",
            row["images"],
            row["segments"],
            row["crowds"],
            f"{100 * row['share']:.2f} %",
        )
        for row in summary["classes"]
        if row["segments"] or row["crowds"]
    ]
    columns = ["class", "kind", "images", "segments", "crowds", "pixels"]
    return [
        html_page.heading(summary["split"]),
        html_page.table(["", ""], _facts(summary)),
        html_page.paragraph("Number of images by number of segments:"),
        html_page.bars(summary["segments_per_image"]["histogram"]),
        html_page.table(columns, rows),
    ]


def pictures(splits: Sequence[Split], load: Load, count: int) -> list[tuple[np.ndarray, str]]:
    """Draws images with errors or warnings: first one of each kind, then others.

    Args:
      splits: Results of the checks.
      load: Function that loads the image of a split with a `source`.
      count: Largest number of pictures.

    Returns:
      Pictures, uint8 [h, w, 3], each with a caption.
    """
    chosen, others, kinds = [], [], set()
    order = {id(finding): rank for rank, finding in enumerate(all_findings(list(splits)))}
    for split in splits:
        for image in split.images:
            serious = [finding for finding in image.findings if finding.severity != NOTE]
            if serious and image.source is not None:
                new = {finding.kind for finding in serious} - kinds
                kinds |= new
                (chosen if new else others).append((split, image, serious))
    chosen.sort(key=lambda entry: min(order[id(finding)] for finding in entry[2]))
    drawn = []
    for split, image, serious in [*chosen, *others]:
        if len(drawn) == count:
            break
        pixels, id_map = load(split, image.source)[:2]
        picture = _picture(pixels, id_map, [finding.segment for finding in serious if finding.segment])
        if picture is not None:
            caption = "; ".join(f"{finding.kind}: {finding.what}" for finding in serious)
            drawn.append((picture, f"{split.name}: {image.name}: {caption}"))
    return drawn


def samples(splits: Sequence[Split], load: Load) -> list[html_page.Html]:
    """Figures of images without errors under their labels, with a legend: evenly spaced ones of each split."""
    from maxdl_tf.drawing import label_maps

    figures = []
    for split in splits:
        good = [image for image in split.images if not any(f.severity == ERROR for f in image.findings)]
        count = min(-(-_SAMPLES // len(splits)), len(good))
        for image in (good[len(good) * number // count] for number in range(count)):
            found = load(split, image.source)
            if found.pixels is None or found.label_map is None or found.pixels.shape[:2] != found.label_map.shape:
                continue
            pixels, label_map = _resized(found.pixels, found.label_map)
            picture = label_maps.panoptic_picture(pixels, label_map, found.dataset_info)
            picture = label_maps.with_legend(picture, label_map, found.dataset_info)
            figures.append(html_page.figure(picture, f"{split.name}: {image.name}", longest_side=2 * _SAMPLE_SIDE))
    return figures[:_SAMPLES]


def _resized(pixels: np.ndarray, label_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image and its label map with a longer side of _SAMPLE_SIDE pixels; small images are enlarged."""
    from PIL import Image

    height, width = label_map.shape
    scale = _SAMPLE_SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, (height, width)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], method)), label_map[np.ix_(rows, columns)]


def _picture(pixels: np.ndarray | None, id_map: np.ndarray | None, faulty: list[int]) -> np.ndarray | None:
    """Draws the image beside its segments. Faulty segments are red; the image shines through if the sizes agree."""
    from maxdl_tf.drawing import label_maps

    parts = [] if pixels is None else [pixels]
    if id_map is not None:
        ids, places = np.unique(id_map, return_inverse=True)
        places = places.reshape(id_map.shape)
        colors = np.array([_color(rank) for rank in range(len(ids))], np.float32)
        colors[ids == 0] = 0
        colors[np.isin(ids, faulty)] = _RED
        drawing = colors[places]
        if pixels is not None and pixels.shape[:2] == id_map.shape:
            weight = np.where(np.isin(ids, faulty), 0.75, 0.55).astype(np.float32)[places][..., np.newaxis]
            drawing = weight * drawing + (1 - weight) * pixels
        drawing[_borders(id_map)] = 255
        parts.append(drawing.astype(np.uint8))
    return label_maps.side_by_side(parts) if parts else None


def _color(rank: int) -> tuple[float, ...]:
    """RGB, 0..255: greens to violets, never red, a golden angle apart."""
    import colorsys

    return tuple(255 * part for part in colorsys.hsv_to_rgb(0.2 + 0.62 * (0.618034 * rank % 1), 0.5, 0.9))


def _borders(id_map: np.ndarray) -> np.ndarray:
    """bool [h, w], true for pixels whose right or lower neighbor has another id."""
    borders = np.zeros(id_map.shape, bool)
    borders[:, :-1] |= id_map[:, :-1] != id_map[:, 1:]
    borders[:-1] |= id_map[:-1] != id_map[1:]
    return borders


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
