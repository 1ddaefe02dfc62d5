"""Cityscapes: label ids and instances become labels of the 19 classes of the benchmark."""

from __future__ import annotations

import numpy as np
import pytest

from maxdl_tf import class_table
from maxdl_tf.data_gen import cityscapes
from tests.data_gen.conversion import complaint, read_converted, run_convert, save_image, save_map

ROAD, CAR, PERSON = 1, 14, 12  # Class ids are train ids + 1.
# Sky alone, an unlabeled border, two cars with instances 0 and 3, a group of persons, a caravan with an instance.
INSTANCE_IDS = [[7, 7, 0, 26000], [26003, 24, 29000, 24001], [11, 33, 33002, 26000]]
LABELS = [[1000, 1000, 0, 14001], [14002, 0, 0, 12001], [3000, 0, 19001, 14001]]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "cityscapes"
    _add(folder, "train", "aachen", 1, INSTANCE_IDS)
    return folder


def _add(root, split, city, number, values):
    name = f"{city}_{number:06d}_000019"
    save_map(root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", values, np.uint16)
    save_map(
        root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", np.zeros_like(values)
    )  # The converter does not read it.
    return save_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", *np.shape(values), seed=number)


def test_maps_have_train_classes_and_instances_from_1(root, tmp_path):
    picture = _add(root, "train", "bremen", 2, [[8, 25007]])
    assert run_convert("cityscapes", f"--cityscapes_dir={root}", f"--output_dir={tmp_path / 'out'}") == 0
    converted = read_converted(tmp_path / "out")
    assert set(converted.labels) == {"aachen_000001_000019", "bremen_000002_000019"}
    np.testing.assert_array_equal(converted.labels["aachen_000001_000019"], LABELS)
    np.testing.assert_array_equal(converted.labels["bremen_000002_000019"], [[2000, 13001]])
    np.testing.assert_array_equal(converted.images["bremen_000002_000019"], picture)


def test_groups_are_crowds_on_request(root, tmp_path):
    flags = [f"--cityscapes_dir={root}", f"--output_dir={tmp_path / 'out'}", "--notreat_crowd_as_ignore"]
    assert run_convert("cityscapes", *flags) == 0
    expected = np.array(LABELS)
    expected[1, 1], expected[2, 1] = 12000, 19000
    np.testing.assert_array_equal(read_converted(tmp_path / "out").labels["aachen_000001_000019"], expected)


def test_the_table_has_the_19_classes_in_the_order_of_train_ids():
    info = class_table.load(str(cityscapes.DATASET_INFO_FILE))
    label_ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert [row.source_id for row in info.classes] == label_ids
    assert info.thing_ids == tuple(range(12, 20))
    assert (info.by_id[ROAD].name, info.by_id[CAR].name, info.by_id[PERSON].name) == ("road", "car", "person")


@pytest.mark.parametrize(
    "change, flags, message",
    [
        (lambda root: _add(root, "train", "aachen", 1, [[34, 7]]), [], "value 34: Cityscapes has no label id 34"),
        (lambda root: (root / "gtFine/train").rename(root / "gtFine/x"), [], "gtFine/train is not a folder"),
        (lambda root: None, ["--split=test"], "leftImg8bit/test is not a folder"),
        (
            lambda root: save_image(root / "leftImg8bit/train/bonn/bonn_000000_000019_leftImg8bit.png", 2, 2),
            [],
            "the label map 'bonn/bonn_000000_000019' is missing",
        ),
    ],
)
def test_faults_are_named(root, tmp_path, capsys, change, flags, message):
    change(root)
    assert run_convert("cityscapes", f"--cityscapes_dir={root}", f"--output_dir={tmp_path / 'out'}", *flags) == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "out").exists()
