"""Pictures of label maps: TensorBoard's and maxdl-predict's. NumPy and Pillow only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.drawing import borders

OPACITY = 0.6  # Opacity of a segment's color over the image.
HATCH_PERIOD = 10  # Pixels between the stripes of void.
BOUNDARY_COLOR = (255, 255, 255)
_WIDE_FROM = 1500  # Pictures whose shorter side has this many pixels have lines of two pixels.
BACKGROUND = 24  # Gray level of captions and legends.
FONT_SIZE = 13
_BAND_ROWS = 256  # Rows blended at a time: a large picture in floating point would take too much memory.
LINE_HEIGHT = 18
_LEGEND_WIDTH = 480  # Largest width of a legend in pixels.
_LEGEND_TEXT = 40  # Longest name in a legend, in characters.

# Largest share of black or white in the color of an instance.
_LARGEST_SHARE = 0.5
# An instance's color is at most this many times as far from its class's color as from the others in the legend.
_NEAREST_CLASS = 0.7
_LEAST_SIDE = 320  # Pixels of the longer side of a picture in a comparison.


def panoptic_picture(
    image: np.ndarray, label_map: np.ndarray, dataset_info: DatasetInfo, legend: Collection[int] | None = None
) -> np.ndarray:
    """The image under the colors of its segments, with white lines between them. Void is dark and striped.

    Instances of a class have shades of its color, see `segment_colors`. A line is one pixel wide, or two in large
    pictures. It lies in the larger of its two segments, and never in small ones.

    Args:
      image: uint8 [height, width, 3], RGB.
      label_map: int [height, width], `class id * label_divisor + instance`.
      dataset_info: Class table of `label_map`.
      legend: Ids of the classes that a reader compares with, see `segment_colors`.

    Returns:
      uint8 [height, width, 3].

    Raises:
      ValueError: The sizes differ, or the class of a label is not in the table.
    """
    image, label_map = np.asarray(image), np.asarray(label_map)
    if image.shape != (*label_map.shape, 3):
        raise ValueError(f"image {image.shape} and label map {label_map.shape}: want [h, w, 3] and [h, w] of one size")
    area_of_label = _areas(label_map)
    labels = np.array(sorted(area_of_label))
    areas = np.array([area_of_label[label] for label in labels.tolist()])
    colors = segment_colors(labels, dataset_info, legend, borders.neighbors(label_map))
    palette = np.array([colors.get(label, (0, 0, 0)) for label in labels.tolist()], np.float32)
    line_width = 2 if min(label_map.shape) >= _WIDE_FROM else 1
    picture = np.empty_like(image)
    for top in range(0, image.shape[0], _BAND_ROWS):
        band = slice(top, top + _BAND_ROWS)
        above = min(top, line_width)  # Rows around the band, whose lines reach into it.
        number = np.searchsorted(labels, label_map[top - above : band.stop + line_width])
        own = slice(above, above + len(image[band]))
        picture[band] = _blend(image[band], palette[number[own]], label_map[band] == dataset_info.void, top)
        picture[band][borders.lines(number, areas, line_width)[own]] = BOUNDARY_COLOR
    return picture


def _blend(image: np.ndarray, colors: np.ndarray, void: np.ndarray, top: int) -> np.ndarray:
    """uint8 [rows, width, 3], rows of the image from `top` under the colors of their pixels, and stripes on void."""
    blend = image * np.float32(1.0 - OPACITY) + colors * np.float32(OPACITY)
    rows, columns = np.indices(void.shape, sparse=True)
    # The color of void is black: between the stripes the image is only darker.
    blend[void & ((rows + top + columns) % HATCH_PERIOD < 2)] += 70.0
    return np.clip(blend + 0.5, 0, 255).astype(np.uint8)


def segment_colors(
    labels: Sequence[int] | np.ndarray,
    dataset_info: DatasetInfo,
    legend: Collection[int] | None = None,
    neighbors: Mapping[int, Collection[int]] | None = None,
) -> dict[int, tuple[int, int, int]]:
    """RGB of each label except void: the class's color for its first instance, darker or brighter shades for others.

    Shades keep the hue. They are nearer to the color of their class than to those of the other classes and of void.

    Args:
      labels: Labels of the picture.
      dataset_info: Class table of the labels.
      legend: Ids of the classes that a reader compares with. Default: those of the labels.
      neighbors: For each label, those that touch it. Instances that touch get shades that differ much.

    Raises:
      ValueError: The class of a label is not in the table.
    """
    by_class: dict[int, list[int]] = {}
    for label in sorted(int(label) for label in set(labels)):
        if label == dataset_info.void:
            continue
        class_id = label // dataset_info.label_divisor
        if class_id not in dataset_info.by_id:
            raise ValueError(
                f"label {label} is of class {class_id}, which data set {dataset_info.name!r} does not have; "
                "use the class table of the labels"
            )
        by_class.setdefault(class_id, []).append(label)
    shown = {tuple(dataset_info.by_id[class_id].color) for class_id in {*by_class, *(legend or ())}} | {(0, 0, 0)}
    colors = {}
    for class_id, instances in by_class.items():
        color = tuple(dataset_info.by_id[class_id].color)
        colors[instances[0]] = color
        darkest, brightest = _shades(color, np.array([*(shown - {color})]).reshape(-1, 3))
        # The second instance gets a shade from the wider side, far from the color of the first.
        ends = (brightest, darkest) if brightest >= -darkest else (darkest, brightest)
        own = {instances[0]: color}  # Shades of this class.
        for rank, label in enumerate(instances[1:], start=2):
            touching = [own[other] for other in (neighbors or {}).get(label, ()) if other in own]
            shares = [_spread(rank + later) for later in range(8 if touching else 1)]
            shades = [_shade(color, ends[0] + share * (ends[1] - ends[0])) for share in shares]
            shade = max(shades, key=lambda shade: min((abs(shade - other).sum() for other in touching), default=0))
            own[label] = tuple(np.round(shade).astype(int).tolist())
        colors.update(own)
    return colors


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str] | None = None, gap: int = 4) -> np.ndarray:
    """A row of pictures, aligned at the top, with titles above them.

    Args:
      pictures: uint8 [h, w, 3] each; sizes may differ.
      titles: One title for each picture, or None for no titles. Titles wider than their picture are cut off.
      gap: Number of pixels between two pictures.

    Returns:
      uint8 [height, width, 3].

    Raises:
      ValueError: There are no pictures, or the numbers of titles and pictures differ.
    """
    if not pictures:
        raise ValueError("side_by_side got no pictures; give at least one")
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"{len(titles)} titles for {len(pictures)} pictures; give one for each")
    top = LINE_HEIGHT if titles is not None else 0
    height = top + max(p.shape[0] for p in pictures)
    width = sum(p.shape[1] for p in pictures) + gap * (len(pictures) - 1)
    row = np.full((height, width, 3), BACKGROUND, np.uint8)
    left = 0
    for index, picture in enumerate(pictures):
        h, w = picture.shape[:2]
        row[top : top + h, left : left + w] = picture
        if titles is not None:
            row[:top, left : left + w] = _text_strip(titles[index], w)
        left += w + gap
    return row


def comparison_picture(
    image: np.ndarray | None, truth: np.ndarray, prediction: np.ndarray, dataset_info: DatasetInfo
) -> np.ndarray:
    """Draws an image and the label maps of its truth and its prediction side by side. Small ones are enlarged.

    Args:
      image: uint8 [height, width, 3]. None: the label maps alone, on gray.
      truth: int [height, width].
      prediction: int [height, width].
      dataset_info: Class table of both label maps.

    Returns:
      uint8 [.., .., 3].
    """
    if image is not None:
        image = enlarged(image)
    truth, prediction = enlarged(truth), enlarged(prediction)
    below = np.full((*truth.shape, 3), 128, np.uint8) if image is None else image
    present = {label // dataset_info.label_divisor for labels in (truth, prediction) for label in _areas(labels)}
    legend = present & set(dataset_info.by_id)
    pictures = [panoptic_picture(below, label_map, dataset_info, legend) for label_map in (truth, prediction)]
    if image is None:
        return side_by_side(pictures, ["truth", "prediction"])
    return side_by_side([image, *pictures], ["image", "truth", "prediction"])


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Enlarges a small picture or label map, [h, w, ...], by a whole factor, so that its pixels stay squares."""
    factor = max(1, round(_LEAST_SIDE / max(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def with_legend(picture: np.ndarray, label_map: np.ndarray, dataset_info: DatasetInfo) -> np.ndarray:
    """The picture with a legend at its right: classes of `label_map` by area, and the number of instances of things.

    The legend is at most 480 pixels wide. Its last line counts the classes that do not fit.

    Args:
      picture: uint8 [height, width, 3].
      label_map: int, any shape.
      dataset_info: Class table of `label_map`.

    Returns:
      uint8 [at least height, more than width, 3].
    """
    rows = _legend_rows(label_map, dataset_info)
    font = ImageFont.load_default(FONT_SIZE)
    swatch, margin = LINE_HEIGHT - 6, 6
    column_width = min(int(max(font.getlength(text) for text, _ in rows)) + 1 + swatch + 3 * margin, _LEGEND_WIDTH)
    lines = max(picture.shape[0], 8 * LINE_HEIGHT) // LINE_HEIGHT  # In one column, even beside a low picture.
    columns = min(-(-len(rows) // lines), _LEGEND_WIDTH // column_width)
    if len(rows) > columns * lines:
        left_out = len(rows) - columns * lines + 1
        rows[-left_out:] = [(f"and {left_out} more", (BACKGROUND,) * 3)]
    lines = min(lines, len(rows))
    height = max(picture.shape[0], lines * LINE_HEIGHT)
    legend = Image.new("RGB", (columns * column_width, lines * LINE_HEIGHT), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(legend)
    for index, (text, color) in enumerate(rows):
        left = (index // lines) * column_width + margin
        top = (index % lines) * LINE_HEIGHT + 3
        draw.rectangle((left, top, left + swatch - 1, top + swatch - 1), fill=color, outline=BOUNDARY_COLOR)
        draw.text((left + swatch + margin, top - 2), text, fill=(230, 230, 230), font=font)
    joined = np.full((height, picture.shape[1] + legend.width, 3), BACKGROUND, np.uint8)
    joined[: picture.shape[0], : picture.shape[1]] = picture
    joined[: legend.height, picture.shape[1] :] = np.asarray(legend)
    return joined


def _legend_rows(label_map: np.ndarray, dataset_info: DatasetInfo) -> list[tuple[str, tuple[int, int, int]]]:
    """(text, color) of each class in the map and of void, largest area first."""
    area_of_class: dict[int, int] = {}
    segments_of_class: dict[int, int] = {}
    for label, area in sorted(_areas(label_map).items()):
        class_id = label // dataset_info.label_divisor
        area_of_class[class_id] = area_of_class.get(class_id, 0) + area
        segments_of_class[class_id] = segments_of_class.get(class_id, 0) + 1
    rows = []
    for class_id in sorted(area_of_class, key=lambda c: -area_of_class[c]):
        row = dataset_info.by_id.get(class_id)
        if row is None:
            rows.append(("(void)", (0, 0, 0)))
        elif row.is_thing and segments_of_class[class_id] > 1:
            rows.append((f"{_short(row.name)} x {segments_of_class[class_id]}", tuple(row.color)))
        else:
            rows.append((_short(row.name), tuple(row.color)))
    return rows


def _short(name: str) -> str:
    """A name for one line of a legend."""
    name = " ".join(name.split())
    return name if len(name) <= _LEGEND_TEXT else f"{name[: _LEGEND_TEXT - 3]}..."


def _areas(label_map: np.ndarray) -> dict[int, int]:
    """The number of pixels of each label."""
    areas: dict[int, int] = {}
    label_map = np.asarray(label_map)
    for top in range(0, len(label_map), _BAND_ROWS):
        counts = np.bincount(label_map[top : top + _BAND_ROWS].ravel())  # Many times faster than sorting the pixels.
        for label in np.flatnonzero(counts).tolist():
            areas[label] = areas.get(label, 0) + int(counts[label])
    return areas


def _shades(color: tuple[int, int, int], others: np.ndarray) -> tuple[float, float]:
    """Limits of the share in a `_shade` that stays much nearer to the color than to the others, float [n, 3]."""
    shares = np.linspace(-_LARGEST_SHARE, _LARGEST_SHARE, 51)
    shades = np.array([_shade(color, share) for share in shares])
    nearest = np.linalg.norm(shades[:, np.newaxis] - others, axis=-1).min(axis=1, initial=np.inf)
    allowed = shares[np.linalg.norm(shades - color, axis=1) <= _NEAREST_CLASS * nearest]
    # A dark color has no visible darker shades, a bright one no brighter ones.
    darkest = 0.0 if max(color) < 64 else allowed.min(initial=0.0)
    brightest = 0.0 if min(color) > 191 else allowed.max(initial=0.0)
    return darkest, brightest


def _shade(color: tuple[int, int, int], share: float) -> np.ndarray:
    """float [3], the color with a share of black (below 0) or white (above 0)."""
    color = np.array(color, np.float64)
    return color + abs(share) * ((255.0 if share > 0 else 0.0) - color)


def _spread(rank: int) -> float:
    """Numbers in 0..1 that lie far apart for consecutive ranks and repeat for none (van der Corput's sequence)."""
    return int(f"{rank:b}"[::-1], 2) / 2 ** rank.bit_length()


def _text_strip(text: str, width: int) -> np.ndarray:
    """uint8 [LINE_HEIGHT, width, 3] with the text at the left."""
    strip = Image.new("RGB", (width, LINE_HEIGHT), (BACKGROUND,) * 3)
    ImageDraw.Draw(strip).text((3, 1), text, fill=(230, 230, 230), font=ImageFont.load_default(FONT_SIZE))
    return np.asarray(strip)
