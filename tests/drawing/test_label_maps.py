import numpy as np
import pytest
from PIL import ImageDraw
from scipy import ndimage

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.drawing import borders, label_maps
from tests.helpers import REPOSITORY

INFO = DatasetInfo(
    "toy",
    (
        SegmentClass(1, "person", True, (220, 20, 60), 1),
        SegmentClass(2, "cat", True, (0, 0, 0), 17),
        SegmentClass(7, "sky", False, (70, 130, 180), 187),
    ),
)
SKY = 7 * 256


def _gray(shape, value=128):
    return np.full((*shape, 3), value, np.uint8)


def test_stuff_has_its_class_color_and_things_of_a_class_differ():
    labels = np.full((40, 60), SKY)
    labels[:20, :20], labels[:20, 20:40] = 257, 258
    picture = label_maps.panoptic_picture(_gray(labels.shape), labels, INFO)
    inside = {
        name: picture[row, column].astype(int) for name, row, column in (("a", 9, 9), ("b", 9, 30), ("sky", 33, 9))
    }
    opacity = label_maps.OPACITY
    np.testing.assert_allclose(inside["sky"], np.array([70, 130, 180]) * opacity + 128 * (1 - opacity), atol=1)
    np.testing.assert_allclose(inside["a"], np.array([220, 20, 60]) * opacity + 128 * (1 - opacity), atol=1)
    assert np.abs(inside["a"] - inside["b"]).max() > 20


@pytest.mark.parametrize("class_id", [1, 2])
def test_consecutive_instances_are_told_apart_even_of_a_black_class(class_id):
    labels = [class_id * 256 + instance for instance in range(1, 31)]
    colors = label_maps.segment_colors(labels, INFO)
    for first, second in zip(labels, labels[1:]):
        assert np.abs(np.subtract(colors[first], colors[second])).max() >= 20
    for color in colors.values():
        assert min(color) >= 0 and max(color) <= 255


@pytest.mark.parametrize("table", ["shapes", "nuclei", "cityscapes", "coco_panoptic"])
def test_an_instances_color_is_nearest_to_that_of_its_class_in_the_legend(table):
    info = class_table.load(REPOSITORY / "configs" / "datasets" / f"{table}.textproto")
    rng = np.random.default_rng(0)
    for _ in range(20):
        legend = rng.choice(info.class_order, min(8, len(info.classes)), replace=False).tolist()
        (class_id, *_) = (one for one in legend + list(info.thing_ids) if info.by_id[one].is_thing)
        labels = [class_id * info.label_divisor + instance for instance in range(1, 31)]
        colors = label_maps.segment_colors(labels, info, legend)
        assert colors[labels[0]] == info.by_id[class_id].color
        assert len(set(colors.values())) > 20  # Instances differ.
        other_colors = {info.by_id[one].color for one in legend} | {(0, 0, 0)}
        other_colors -= {info.by_id[class_id].color}
        for color in colors.values():
            own = np.linalg.norm(np.subtract(color, info.by_id[class_id].color))
            # Half a level of rounding in each channel.
            assert own - 1 < 0.7 * min(np.linalg.norm(np.subtract(color, other)) for other in other_colors)


def test_small_pictures_are_enlarged_for_a_comparison():
    labels = np.full((40, 60), SKY)
    labels[10:20, 10:20] = 257
    picture = label_maps.comparison_picture(_gray(labels.shape), labels, np.full_like(labels, SKY), INFO)
    assert picture.shape == (label_maps.LINE_HEIGHT + 40 * 5, 3 * 60 * 5 + 2 * 4, 3)
    truth = picture[label_maps.LINE_HEIGHT :, 304:604]
    # A pixel has become a square of its color; lines between segments stay one pixel wide.
    person, sky = truth[75, 75], truth[150, 150]
    assert (truth[52:99, 52:99] == person).all() and (truth[105:, 105:] == sky).all() and (person != sky).any()
    large = np.zeros((400, 500, 3), np.uint8)
    assert label_maps.enlarged(large).shape == large.shape


@pytest.mark.parametrize("side, width", [(20, 1), (1499, 1), (1500, 2)])
def test_a_thin_white_line_lies_in_the_larger_of_two_segments(side, width):
    labels = np.full((side, side), SKY)
    labels[:, 12:] = 257
    picture = label_maps.panoptic_picture(_gray((side, side)), labels, INFO)
    white = (picture == 255).all(-1)
    inside = slice(12 - width, 12) if side == 20 else slice(12, 12 + width)
    assert white[:, inside].all() and white.sum() == side * width


def test_small_things_of_a_large_picture_are_not_under_lines():
    labels = np.full((3000, 3000), SKY)
    labels[500:505, 510:515] = 257
    labels[500:505, 515:520] = 258  # Touches the first.
    labels[label_maps._BAND_ROWS - 2 : label_maps._BAND_ROWS + 3, 700:705] = 259  # Across two bands.
    picture = label_maps.panoptic_picture(_gray(labels.shape), labels, INFO)
    colors = [np.unique(picture[labels == label], axis=0) for label in (257, 258, 259)]
    assert [len(found) for found in colors] == [1, 1, 1]  # Each pixel is in the thing's color, none under a line.
    assert np.abs(colors[0].astype(int) - colors[1]).max() > 30
    around = ndimage.binary_dilation(labels != SKY, iterations=2) & (labels == SKY)
    np.testing.assert_array_equal((picture == 255).all(-1), around)


def test_things_among_smaller_ones_keep_half_of_their_pixels():
    for side in (7, 8, 14, 15, 40):
        labels = np.full((1500, 1500), SKY)
        labels[100 : 100 + side, 100 : 100 + side] = 257
        places = ((101 - side, 100), (100 + side, 100), (100, 101 - side), (100, 100 + side))
        for number, (row, column) in enumerate(places, start=258):
            labels[row : row + side - 1, column : column + side - 1] = number
        white = (label_maps.panoptic_picture(_gray(labels.shape), labels, INFO) == 255).all(-1)
        assert white[labels == 257].mean() < 0.5 and white[labels == 257].any() == (side > 7)


@pytest.mark.parametrize("table", ["shapes", "nuclei", "cityscapes", "coco_panoptic"])
def test_things_that_touch_differ_in_color(table):
    """Things on a grid; the difference between darkest and brightest shade limits what is possible."""
    info = class_table.load(REPOSITORY / "configs" / "datasets" / f"{table}.textproto")
    thing = next(one for one in info.class_order if info.by_id[one].is_thing)
    instances = np.random.default_rng(0).permutation(100).reshape(10, 10) + 1
    labels = (thing * info.label_divisor + instances).repeat(4, axis=0).repeat(4, axis=1)
    colors = label_maps.segment_colors(np.unique(labels), info, neighbors=borders.neighbors(labels))
    extremes = np.array(list(colors.values()))
    widest = np.abs(extremes[:, np.newaxis] - extremes).sum(-1).max()
    for one, others in borders.neighbors(labels).items():
        assert 2 <= len(others) <= 4
        for other in others:
            assert np.abs(np.subtract(colors[one], colors[other])).sum() > widest / 8


def test_large_pictures_are_made_in_bands_that_nobody_sees():
    """Every row as by the formula, and stripes run on where one band ends."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (2 * label_maps._BAND_ROWS + 40, 24, 3), np.uint8)
    labels = np.where(np.arange(24) < 12, SKY, 0) * np.ones((image.shape[0], 1), int)
    picture = label_maps.panoptic_picture(image, labels, INFO)
    sky = image[:, :12] * 0.4 + np.array([70, 130, 180]) * 0.6
    np.testing.assert_allclose(picture[:, :12], sky, atol=0.51)
    rows, columns = np.indices(labels.shape)
    void = image * 0.4 + 70.0 * ((rows + columns) % label_maps.HATCH_PERIOD < 2)[..., np.newaxis]
    np.testing.assert_allclose(picture[:, 13:], np.minimum(void, 255)[:, 13:], atol=0.51)


def test_void_is_darker_than_the_image_and_striped():
    labels = np.zeros((64, 64), int)
    picture = label_maps.panoptic_picture(_gray((64, 64)), labels, INFO)[..., 0].astype(int)
    values, counts = np.unique(picture, return_counts=True)
    assert len(values) == 2 and counts[0] > 3 * counts[1]  # Stripes are the brighter and the smaller part.
    assert values[0] < 64 and values[1] < 128


def test_an_unknown_class_or_another_size_is_an_error():
    with pytest.raises(ValueError, match="label 1281 is of class 5"):
        label_maps.panoptic_picture(_gray((4, 4)), np.full((4, 4), 1281), INFO)
    with pytest.raises(ValueError, match="of one size"):
        label_maps.panoptic_picture(_gray((4, 5)), np.full((4, 4), 257), INFO)


def test_side_by_side_keeps_every_picture_below_its_title():
    pictures = [_gray((30, 50), 200), _gray((60, 20), 10)]
    row = label_maps.side_by_side(pictures, ["truth", "prediction"], gap=4)
    top = label_maps.LINE_HEIGHT
    assert row.shape == (top + 60, 50 + 4 + 20, 3)
    np.testing.assert_array_equal(row[top : top + 30, :50], pictures[0])
    np.testing.assert_array_equal(row[top:, 54:], pictures[1])
    assert row[:top, :50].max() > 150 and row[:top, 54:].max() > 150  # Something is written there.
    np.testing.assert_array_equal(label_maps.side_by_side(pictures[:1]), pictures[0])
    with pytest.raises(ValueError, match="1 titles for 2 pictures"):
        label_maps.side_by_side(pictures, ["truth"])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 400)])
def test_the_legend_stands_beside_an_unchanged_picture(size):
    labels = np.full(size, SKY)
    labels[0, 0] = 257
    picture = label_maps.panoptic_picture(_gray(size), labels, INFO)
    legend = label_maps.with_legend(picture, labels, INFO)
    np.testing.assert_array_equal(legend[: size[0], : size[1]], picture)
    right = legend[:, size[1] :].reshape(-1, 3).tolist()
    assert [220, 20, 60] in right
    assert ([70, 130, 180] in right) == (size != (1, 1))


def test_the_legend_lists_classes_by_area_with_the_number_of_things():
    labels = np.full((10, 10), SKY)
    labels[0, :3] = (257, 258, 0)
    rows = label_maps._legend_rows(labels, INFO)
    assert [text for text, _ in rows] == ["sky", "person x 2", "(void)"]


@pytest.mark.parametrize("name", ["x", "many words " * 100, "one\ntwo", "界" * 40])
@pytest.mark.parametrize("height", [20, 40_000])
def test_the_legend_is_bounded_whatever_the_picture_and_the_names(name, height):
    """A JPEG file has at most 65,500 columns and rows, and the picture alone may have 65,000."""
    classes = tuple(SegmentClass(number, f"{number} {name}", False, (255, 0, 0), number) for number in range(1, 151))
    info = DatasetInfo("many", classes, label_divisor=2)
    labels = np.resize(2 * np.arange(1, 151), (height, 1))
    legend = label_maps.with_legend(_gray((height, 1)), labels, info)
    assert legend.shape[1] <= 1 + 480 and legend.shape[0] == max(height, 8 * label_maps.LINE_HEIGHT)


def test_the_last_line_of_a_full_legend_counts_the_classes_that_do_not_fit(monkeypatch):
    classes = tuple(SegmentClass(number, "x" * 40, False, (255, 0, 0), number) for number in range(1, 151))
    texts = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda draw, place, text, **options: texts.append(text))
    label_maps.with_legend(_gray((1, 20)), 2 * np.arange(1, 21)[np.newaxis], DatasetInfo("many", classes, 2))
    assert texts == ["x" * 40] * 7 + ["and 13 more"]
