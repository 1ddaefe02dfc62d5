"""ADE20K: the two maps of an image are merged, and the things are found in the data."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data_gen.conversion import complaint, read_converted, run_convert, save_image, save_map

WALL, PERSON, CAR = 1, 13, 21  # Numbers among the 150 classes.
THING_CAR, THING_PERSON = 40, 7  # Numbers among the 100 thing classes, in another order.


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    _add(
        folder,
        "training",
        "ADE_train_00000001",
        [[WALL, WALL, 0, PERSON], [CAR, CAR, PERSON, PERSON], [CAR, 9, CAR, PERSON]],
        # The second car covers pixels of class 9 and of car; the last person pixel belongs to no instance.
        [
            [(0, 0), (0, 0), (0, 0), (THING_PERSON, 2)],
            [(THING_CAR, 4), (THING_CAR, 4), (THING_PERSON, 1), (0, 0)],
            [(THING_CAR, 4), (THING_CAR, 9), (THING_CAR, 9), (0, 0)],
        ],
    )
    _add(folder, "training", "ADE_train_00000002", [[2, 150]], [[(0, 0), (0, 0)]])
    (folder / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n"
        + "".join(f"{number}\t0.1\t10\t1\tname {number}, other\n" for number in range(1, 151))
    )
    return folder


def _add(root, split, name, classes, instances):
    save_map(root / "annotations" / split / f"{name}.png", classes)
    save_map(
        root / "annotations_instance" / split / f"{name}.png", [[(*pixel, 0) for pixel in row] for row in instances]
    )
    save_image(root / "images" / split / f"{name}.png", *np.shape(classes), seed=5)


def _convert(root, *flags):
    return run_convert("ade20k", f"--ade20k_dir={root}", f"--output_dir={root.parent / 'out'}", *flags)


LABELS = [
    [WALL * 1000, WALL * 1000, 0, PERSON * 1000 + 2],
    [CAR * 1000 + 1, CAR * 1000 + 1, PERSON * 1000 + 1, 0],
    [CAR * 1000 + 1, CAR * 1000 + 2, CAR * 1000 + 2, 0],
]


def test_instances_lie_over_classes(root):
    assert _convert(root) == 0
    converted = read_converted(root.parent / "out")
    np.testing.assert_array_equal(converted.labels["ADE_train_00000001"], LABELS)
    np.testing.assert_array_equal(converted.labels["ADE_train_00000002"], [[2000, 150 * 1000]])
    assert converted.info.thing_ids == (PERSON, CAR)
    assert len(converted.info.classes) == 150
    assert converted.semantics()[20] == ("name 21", True, 21)


def test_without_the_table_names_are_numbers(root):
    (root / "objectInfo150.txt").unlink()
    assert _convert(root) == 0
    assert read_converted(root.parent / "out").info.by_id[1].name == "class_1"


def test_val_uses_the_things_of_train(root):
    assert _convert(root) == 0
    _add(root, "validation", "ADE_val_00000001", [[CAR, PERSON]], [[(THING_CAR, 1), (0, 0)]])
    assert _convert(root, "--split=val") == 0
    np.testing.assert_array_equal(
        read_converted(root.parent / "out", "val").labels["ADE_val_00000001"], [[21 * 1000 + 1, 0]]
    )


def test_pixels_without_instance_are_a_crowd_on_request(root):
    assert _convert(root, "--notreat_crowd_as_ignore", "--processes=2") == 0
    expected = np.array(LABELS)
    expected[1:, 3] = PERSON * 1000
    np.testing.assert_array_equal(read_converted(root.parent / "out").labels["ADE_train_00000001"], expected)


@pytest.mark.parametrize(
    "change, flags, message",
    [
        (
            lambda root: save_map(root / "annotations/training/ADE_train_00000002.png", [[1, 151]]),
            [],
            "ADE_train_00000002.png: value 151; ADE20K has classes 1 to 150",
        ),
        (
            lambda root: save_map(root / "annotations_instance/training/ADE_train_00000002.png", [[1, 2]]),
            [],
            "ADE_train_00000002.png: a PNG of mode L; expected RGB",
        ),
        (
            lambda root: (root / "annotations_instance/training/ADE_train_00000002.png").unlink(),
            [],
            "the label map 'ADE_train_00000002' is missing",
        ),
        (lambda root: (root / "annotations_instance").rename(root / "x"), [], "annotations_instance/training is not"),
        (lambda root: (root / "objectInfo150.txt").write_text("a\tb\n1\t2\n"), [], "expected columns Idx and Name"),
        (lambda root: None, ["--split=training"], "--split=training: must be one of train, val"),
        (
            lambda root: _add(root, "training", "ADE_train_00000002", [[0, 5]], [[(99, 1), (0, 0)]]),
            [],
            "ADE_train_00000002.png: value 25345: red 99: no instance of it has a class",
        ),
    ],
)
def test_faults_are_named(root, capsys, change, flags, message):
    change(root)
    assert _convert(root, *flags) == 2
    assert message in complaint(capsys)
    assert not (root.parent / "out").exists()


def test_bad_images_are_skipped_on_request(root, capsys):
    (root / "annotations/training/ADE_train_00000002.png").unlink()
    assert _convert(root, "--on_error=skip") == 0
    assert "1 images skipped" in capsys.readouterr().out
    np.testing.assert_array_equal(read_converted(root.parent / "out").labels["ADE_train_00000001"], LABELS)
