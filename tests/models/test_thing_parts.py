"""Connected components against SciPy's, and the numbers of parts by hand."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from maxdl_tf.models.thing_parts import connected_components, split_things


@pytest.fixture(scope="module", params=[1, 2])
def components(request):
    """The function for one connectivity, traced once for all sizes, and its reference."""

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)], autograph=False)
    def traced(value):
        return connected_components(value, request.param)

    structure = ndimage.generate_binary_structure(2, request.param)

    def reference(value):
        """SciPy's components of each value, numbered in raster order of their first pixels."""
        number, count = np.full(value.shape, -1), 0
        for one in np.unique(value[value >= 0]):
            labels, found = ndimage.label(value == one, structure)
            number[labels > 0] = count + labels[labels > 0] - 1
            count += found
        _, first = np.unique(number[number >= 0], return_index=True)
        return np.where(number >= 0, np.argsort(np.argsort(first))[number] if count else -1, -1)

    return traced, reference


def assert_equal(components, value):
    traced, reference = components
    value = np.asarray(value, np.int32)
    found, wanted = traced(tf.constant(value)), reference(value)
    np.testing.assert_array_equal(found.number, wanted)
    np.testing.assert_array_equal(found.area, np.bincount(wanted[wanted >= 0], minlength=wanted.max() + 1))
    np.testing.assert_array_equal(found.value, [value[wanted == n][0] for n in range(wanted.max() + 1)])


def test_components_are_scipys(components):
    generator = np.random.default_rng(0)
    for _ in range(100):
        size = generator.integers(1, 25, 2)
        assert_equal(components, generator.integers(-1, generator.integers(1, 5), size))
    for value in ([[-1, -1]], [[0]], [[0, 0, 1, 0]], [[0], [0], [1], [0]]):
        assert_equal(components, value)


def spiral(side):
    """A path of zeros, one pixel wide, with walls of -1 between its turns."""
    value = np.full([side, side], -1)
    row, column, down, right, turns = 0, 0, 0, 1, 0
    value[0, 0] = 0
    is_path = lambda *place: all(0 <= x < side for x in place) and value[place] == 0  # noqa: E731
    while turns < 2:
        ahead = row + down, column + right
        if all(0 <= x < side for x in ahead) and not is_path(row + 2 * down, column + 2 * right):
            (row, column), turns = ahead, 0
            value[row, column] = 0
        else:
            down, right, turns = right, -down, turns + 1
    return value


def test_long_paths_and_many_pieces(components):
    """A path of 5,000 pixels, seen from outside, from inside and from the side; a checkerboard; a comb."""
    path = spiral(101)
    assert (path == 0).sum() > 5000 and components[0](tf.constant(path, tf.int32)).area.shape == 1
    for value in (path, path[::-1, ::-1], path.T):
        assert_equal(components, value)
    rows, columns = np.indices([60, 61])
    assert_equal(components, (rows + columns) % 2)
    assert_equal(components, np.where((columns % 2 == 0) | (rows == 59), 0, -1))


def split(rows, max_segments=9, **options):
    """Segments as rows of digits; "." where a pixel is dropped. In `rows`, digits are slots; 2 and 3 are stuff."""
    slot = np.array([[int(x) for x in row] for row in rows])
    options = {"min_area": 1, "connectivity": 2, **options}
    parts = split_things(
        tf.constant(slot, tf.int32), tf.constant(slot < 2), num_slots=4, max_segments=max_segments, **options
    )
    assert parts.slot.shape == max_segments
    segment, dropped = parts.segment.numpy(), parts.dropped.numpy()
    np.testing.assert_array_equal(parts.slot.numpy()[segment], slot)  # Also where a pixel is dropped.
    np.testing.assert_array_equal(segment[slot > 1], slot[slot > 1])
    return ["".join("." if d else str(s) for s, d in zip(*row)) for row in zip(segment, dropped)]


def test_the_largest_part_keeps_the_number_and_others_follow_by_area():
    assert split(["0022000", "2222222", "1121211"]) == ["4422000", "2222222", "1126255"]
    # Equal parts in raster order, across slots.
    assert split(["1202120", "2222222"]) == ["1202425", "2222222"]


def test_stuff_is_not_split():
    assert split(["2032"]) == ["2032"]


def test_connectivity():
    rows = ["02", "20"]
    assert split(rows) == rows and split(rows, connectivity=1) == ["02", "24"]


def test_small_parts_are_dropped():
    rows = ["0002002021"]
    assert split(rows) == ["0002442521"]
    assert split(rows, min_area=2) == ["0002442.2."]
    assert split(rows, min_area=4) == ["...2..2.2."]


def test_the_smallest_parts_are_dropped_if_numbers_run_out():
    """The largest part of each slot has one always."""
    assert split(["0000200020020", "1222222222222"], max_segments=6) == ["000024442552.", "1222222222222"]
    assert split(["0000200020020", "1222222222222"], max_segments=4) == ["00002...2..2.", "1222222222222"]
