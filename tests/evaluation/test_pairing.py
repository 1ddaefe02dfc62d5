"""Predictions belong to images by id and by file name. If the two disagree, names decide or the files are refused."""

from __future__ import annotations

import pytest

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data.coco_files import ImageAnnotation, ImageEntry, Results
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation import pairing


def pair(truth, predictions):
    """{image id: image id of its prediction} and the warning, from {image id: file name} of both."""
    entries = [
        ImageEntry(name, 1, 1, f"{number}.png", [], image_id) for number, (image_id, name) in enumerate(truth.items())
    ]
    annotations = {image_id: ImageAnnotation(name, []) for image_id, name in predictions.items()}
    return pairing.prediction_of(entries, Results(annotations, predictions, []), "panoptic.json")


def files(names, first):
    return {number: name for number, name in enumerate(names, start=first)}


NAMES = [f"{number:04d}.jpg" for number in range(5)]
PNGS = [f"{number:04d}.png" for number in range(5)]
DISAGREEMENT = (
    "panoptic.json: image ids and file names disagree for 5 images; 0000.jpg is image 1 in the annotations and "
)


@pytest.mark.parametrize(
    "predictions",
    [
        files(PNGS, 1),
        files([f"out/{name}" for name in PNGS], 1),
        files(["e.png", "f.png", "g.png", "h.png", "i.png"], 1),  # Names that say nothing.
        files([f"{number}.png" for number in range(7, 12)], 1),
    ],
)
def test_equal_ids(predictions):
    assert pair(files(NAMES, 1), predictions) == ({number: number for number in range(1, 6)}, None)


def test_predictions_that_are_named_by_their_files():
    predicted = {f"a{number}": f"a{number}.png" for number in range(3)}
    truth = {number: f"x/a{number}.jpg" for number in range(3)}
    assert pair(truth, predicted) == ({0: "a0", 1: "a1", 2: "a2"}, None)


@pytest.mark.parametrize("padding", [1, 4, 12])
@pytest.mark.parametrize("others", [0, 1])
def test_names_decide_if_ids_disagree(padding, others):
    """The truth counts from 1, the predictions from 0, as maxdl-predict does with these names."""
    predicted = files([f"{number:0{padding}d}.png" for number in range(5 + others)], 0)
    pairs, warning = pair(files(NAMES, 1), predicted)
    assert pairs == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}
    assert warning == DISAGREEMENT + "image 0 in the predictions; the file names decide"


def test_ids_that_agree_in_another_order():
    order = (3, 1, 5, 2, 4)
    truth = files([f"{number:04d}.jpg" for number in order], 1)
    predicted = {number: f"{number:04d}.png" for number in order}
    pairs, warning = pair(truth, predicted)
    assert pairs == dict(zip(range(1, 6), order)) and "the file names decide" in warning


def test_ids_and_names_that_disagree_are_refused_if_a_name_is_missing():
    with pytest.raises(
        UserError, match=r"disagree for 4 images; 0001.jpg is image 1 .*no prediction .* of 0005.jpg; name"
    ):
        pair(files([*NAMES[1:], "0005.jpg"], 1), files([*PNGS[1:], "x.png"], 0))


def test_names_that_occur_twice_decide_nothing():
    truth = {1: "a/0001.jpg", 2: "b/0001.jpg"}
    assert pair(truth, {1: "b.png", 2: "0001.png"}) == ({1: 1, 2: 2}, None)


OTHER_NAMES = "x: categories have other names than in the annotations:"
INFO = DatasetInfo("two", (SegmentClass(1, "ground", False, (0, 0, 0), 1), SegmentClass(2, "box", True, (0, 0, 0), 2)))


@pytest.mark.parametrize(
    "names, warning",
    [
        ({}, None),
        ({1: "ground", 2: "box", 3: "tree"}, None),
        ({1: "floor", 2: "box"}, f"{OTHER_NAMES} 1 is 'floor', in the annotations 'ground'; the ids decide"),
    ],
)
def test_names_of_categories(names, warning):
    assert pairing.other_names([{"id": i, "name": name} for i, name in names.items()], INFO, "x") == warning


def test_categories_with_exchanged_ids_are_refused():
    with pytest.raises(UserError, match=r"x: .*1 is 'box', in the annotations 'ground'; 2 .*give .* the category ids"):
        pairing.other_names([{"id": 1, "name": "box"}, {"id": 2, "name": "ground"}], INFO, "x")
