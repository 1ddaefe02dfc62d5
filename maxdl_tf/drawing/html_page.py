"""Web pages that open from disk: one HTML file that contains its styles and pictures, without scripts.

Example:
    write_page(
        "report.html",
        "Panoptic quality",
        heading("Classes"),
        table(["class", "PQ"], [["person", "51.2"], ["sky", "88.0"]]),
        gallery([figure(pixels, "best: 000000000139, PQ 91.0")]),
    )

These functions escape all text. Only their results count as HTML.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from maxdl_tf.files import storage

_NARROWEST_CAPTION = 200  # Pixels.
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; } .number { text-align: right; font-variant-numeric: tabular-nums; }
.gallery { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; max-width: 100%; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .9em; color: #444; overflow-wrap: anywhere; }
.key { white-space: nowrap; margin-right: .8em; }
.key span { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border: 1px solid #888; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .15em .8em; align-items: center; }
.bars div { background: #4878a8; height: .9em; min-width: 1px; }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd; } th, td { border-color: #444; } figcaption { color: #aaa; }
}
"""


_NUMBER = ' class="number"'


class Html(str):
    """Text in HTML."""


NOTHING = Html()


def write_page(path: str | os.PathLike, title: str, *parts: Html) -> None:
    """Writes a page whole or not at all.

    Raises:
      OSError: The file cannot be written.
    """
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{_text(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    # A file name may contain bytes that are not text; they are shown as escapes.
    storage.write_whole(os.fspath(path), text.encode("utf-8", errors="backslashreplace"))


def heading(text: str) -> Html:
    return Html(f"<h2>{_text(text)}</h2>")


def paragraph(text: str) -> Html:
    return Html(f"<p>{_text(text)}</p>")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table. Cells with numbers, such as "51.2 %", and the names of their columns are aligned to the right.

    Cells may be `Html`. If all names of columns are empty, the table has no head.
    """
    rows = [list(row) for row in rows]
    is_number = [any(_is_number(cell) for cell in column) for column in zip(*rows)] or [False] * len(columns)
    names = "".join(f"<th{_NUMBER * right}>{_text(name)}</th>" for name, right in zip(columns, is_number))
    head = f"<thead><tr>{names}</tr></thead>" if any(columns) else ""
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return Html(f"<table>{head}<tbody>\n{body}\n</tbody></table>")


def bars(values: Mapping[str, float], *, form: str = "{:g}") -> Html:
    """Horizontal bars; the largest value has the longest bar.

    Args:
      values: Values of at least 0, by the text to the left of the bar.
      form: Format of the value to the right of the bar.
    """
    longest = max([*values.values(), 1e-12])
    rows = "".join(
        f'<span>{_text(name)}</span><div style="width:{max(0.0, 100 * value / longest):.2f}%"></div>'
        f'<span class="number">{_text(form.format(value))}</span>'
        for name, value in values.items()
    )
    return Html(f'<div class="bars">{rows}</div>')


def legend(colors: Mapping[str, tuple[int, int, int]]) -> Html:
    """A line of names, each behind a square of its color, RGB in 0..255."""
    return Html(
        "".join(
            f'<span class="key"><span style="background:rgb({red},{green},{blue})"></span>{_text(name)}</span>'
            for name, (red, green, blue) in colors.items()
        )
    )


def figure(pixels: np.ndarray, caption: str, *, longest_side: int = 480, below: Html = NOTHING) -> Html:
    """A picture with a caption below it.

    Args:
      pixels: uint8 [height, width, 3], RGB.
      caption: Text of the caption.
      longest_side: Largest height and width in pixels; larger pictures are reduced.
      below: Follows the caption: a `legend`, or nothing.
    """
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((longest_side, longest_side))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return Html(
        f'<figure style="width:{max(picture.width, _NARROWEST_CAPTION)}px">'
        f'<img src="data:image/jpeg;base64,{data}" width="{picture.width}" height="{picture.height}" '
        f'alt="{_text(caption)}"><figcaption>{_text(caption)} {below}</figcaption></figure>'
    )


def gallery(figures: Iterable[Html]) -> Html:
    """Figures side by side."""
    return Html(f'<div class="gallery">{"".join(figures)}</div>')


def _cell(value: object) -> str:
    if isinstance(value, Html):
        return f"<td>{value}</td>"
    return f"<td{_NUMBER * _is_number(value)}>{_text(value)}</td>"


def _is_number(value: object) -> bool:
    text = str(value)
    if text == "-":  # A missing number.
        return True
    return text.removesuffix("%").strip().lstrip("+-").replace(",", "").replace(".", "", 1).isdigit()


def _text(text: object) -> str:
    return html.escape(str(text))
