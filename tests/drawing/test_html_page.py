"""Pages are one file in which text stays text."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from maxdl_tf.drawing import html_page


class _Reader(HTMLParser):
    """What a page has: its text, its tags, and whatever it would load."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.tags, self.sources = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_loads_nothing_and_shows_text_as_it_is(tmp_path):
    red = np.full([30, 60, 3], [255, 0, 0], np.uint8)
    hostile = '<script>alert("1")</script> & \udcff'
    html_page.write_page(
        tmp_path / "page.html",
        hostile,
        html_page.heading(hostile),
        html_page.paragraph(hostile),
        html_page.table(["a", hostile], [["1", hostile]]),
        html_page.bars({hostile: 2.0}),
        html_page.gallery([html_page.figure(red, hostile)]),
    )
    page = _Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert sum('<script>alert("1")</script> & \\udcff' in text for text in page.text) == 8
    (source,) = page.sources
    picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
    assert picture.size == (60, 30)
    np.testing.assert_allclose(np.asarray(picture), red, atol=3)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_legend_stands_below_its_picture():
    keys = html_page.legend({"cat & dog": (200, 10, 0), "sky": (0, 0, 255)})
    figure = html_page.figure(np.zeros([10, 10, 3], np.uint8), "best", below=keys)
    assert "best <span" in figure and 'style="background:rgb(200,10,0)"></span>cat &amp; dog</span>' in figure
    assert figure.index("cat &amp; dog") < figure.index("rgb(0,0,255)") < figure.index("</figcaption>")


def test_large_pictures_are_made_smaller():
    figure = html_page.figure(np.zeros([100, 1000, 3], np.uint8), "wide", longest_side=200)
    assert 'width="200" height="20"' in figure


@pytest.mark.parametrize("text", ["51.2", "-3", "1,234", "12.5 %", "+0.1"])
def test_numbers_are_aligned(text):
    assert 'class="number"' in html_page.table(["a"], [[text]])


@pytest.mark.parametrize("text", ["", "person", "1.2.3", "7 classes", "%"])
def test_words_are_not(text):
    assert 'class="number"' not in html_page.table(["a"], [[text]])


def test_bars_are_as_long_as_their_values():
    widths = re.findall(r"width:([\d.]+)%", html_page.bars({"a": 1, "b": 4, "none": 0}))
    assert [float(width) for width in widths] == [25, 100, 0]
    assert "width:0.00%" in html_page.bars({"only": 0})
