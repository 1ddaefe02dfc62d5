"""Folders of label PNGs: all codings, the class table of the data, and faulty files."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from PIL import Image

from tests.data_gen.conversion import complaint, read_converted, run_convert, save_image, save_map
from tests.files import png_files


@pytest.fixture
def folders(tmp_path):
    """Flags, and the functions that write an image with its map."""

    class Folders:
        flags = (
            f"--image_dir={tmp_path / 'images'}",
            f"--label_dir={tmp_path / 'labels'}",
            f"--output_dir={tmp_path / 'out'}",
        )
        out = tmp_path / "out"

        def add(self, name, values, dtype=np.uint16, ending=""):
            save_map(tmp_path / "labels" / f"{name}{ending}.png", values, dtype)
            return save_image(tmp_path / "images" / f"{name}.png", *np.shape(values)[:2], seed=len(name))

        def convert(self, *flags):
            return run_convert("label_pngs", *self.flags, *flags)

    return Folders()


def test_background_of_instances_is_a_class_of_stuff(folders, capsys):
    folders.add("a", [[0, 1, 300]])
    assert folders.convert("--coding=instance", "--background=dish") == 0
    assert "2 classes: class_1 (thing), dish (stuff)\n" in capsys.readouterr().out
    converted = read_converted(folders.out)
    assert converted.semantics() == [("class_1", True, 1), ("dish", False, 2)]
    np.testing.assert_array_equal(converted.labels["a"], [[512, 257, 258]])


@pytest.mark.parametrize("coding, values", [("class_instance", [[0, 257]]), ("class", [[0, 1]])])
def test_background_of_classes_is_class_0_in_all_splits(folders, capsys, coding, values):
    folders.add("a", values)
    flags = [f"--coding={coding}", "--background=dish"]
    assert folders.convert(*flags) == folders.convert(*flags, "--split=val") == 0
    converted = read_converted(folders.out, "val")
    assert converted.semantics() == [("dish", False, 0), ("class_1", coding != "class", 1)]
    np.testing.assert_array_equal(converted.labels["a"] // 256, [[1, 2]])
    capsys.readouterr()
    # Pixels of the class would be void, or another class.
    for other, words in (
        ("--void_values=0", "class 0 is 'dish', but 0 is also in --void_values"),
        ("--background=ground", "=ground is not in the"),
    ):
        assert folders.convert(f"--coding={coding}", other, "--split=test") == 2
        assert words in complaint(capsys)


def test_a_later_split_needs_the_background_of_instances(folders, capsys):
    folders.add("a", [[0, 1]])
    assert folders.convert("--coding=instance", "--background=dish") == 0
    capsys.readouterr()
    assert folders.convert("--coding=instance", "--split=val") == 2
    assert "has the background 'dish'; pass --background=dish" in complaint(capsys)


@pytest.mark.parametrize("kind", ["", ": stuff"])
def test_a_named_class_is_not_void(folders, tmp_path, capsys, kind):
    folders.add("a", [[0, 0, 1]])
    (tmp_path / "names.txt").write_text(f"0: soil{kind}\n1: weed{kind}\n")
    flags = ["--coding=class", f"--class_names={tmp_path / 'names.txt'}"]
    assert folders.convert(*flags) == 2
    assert "class 0 is 'soil', but 0 is also in --void_values; pass --void_values= if" in complaint(capsys)
    assert folders.convert(*flags, "--void_values=") == 0
    converted = read_converted(folders.out)
    assert converted.semantics() == [("soil", False, 0), ("weed", False, 1)]
    np.testing.assert_array_equal(converted.labels["a"], [[256, 256, 512]])


def test_class_0_may_have_instances_if_it_has_a_name(folders, tmp_path):
    folders.add("a", [[1, 2, 256]])
    assert folders.convert("--void_values=") == 2
    (tmp_path / "names.txt").write_text("0: apple\n1: sky\n")
    assert folders.convert("--void_values=", f"--class_names={tmp_path / 'names.txt'}") == 0
    converted = read_converted(folders.out)
    assert converted.semantics() == [("apple", True, 0), ("sky", False, 1)]
    np.testing.assert_array_equal(converted.labels["a"], [[257, 258, 512]])


@pytest.mark.parametrize(
    "values, flags, words",
    [
        ([[0, 255]], ["--coding=class"], "class 255 has no name"),
        ([[0, 1, 255]], ["--coding=class", "--void_values="], "--void_values=255, or name class 255"),
        ([[0, 65535]], ["--coding=class"], "class 65535 has no name"),
        ([[0, 26001]], ["--coding=class"], "class numbers reach 26001"),
        ([[0, 255]], ["--coding=instance"], "255 is the only instance"),
        ([[0, 65535]], ["--coding=instance"], "65535 is the only instance"),
        ([[256, 256 + 2000]], ["--label_divisor=4096"], None),
        ([[4096, 4096 + 2000]], ["--label_divisor=4096"], "instance numbers reach 2000"),
        ([[0, 1]], ["--coding=class"], None),
    ],
)
def test_invented_classes_are_warned_of(folders, capsys, values, flags, words):
    folders.add("a", values)
    folders.convert(*flags)
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert (words is None and not warned) or (len(warned) == 1 and words in warned[0])


def test_void_on_most_pixels_is_warned_of(folders, capsys):
    folders.add("a", [[0, 0, 256]])
    folders.add("b", [[256, 256, 0]])
    assert folders.convert() == 0
    assert "warning" not in capsys.readouterr().out  # On half of them.
    folders.add("b", [[256, 0, 0]])
    assert folders.convert("--overwrite") == 0
    assert "warning: 67% of all pixels are void" in capsys.readouterr().out


def test_things_without_any_instance_are_warned_of(folders, tmp_path, capsys):
    """Their pixels are crowds, which become void: a class of things without instances should be stuff."""
    folders.add("a", [[1, 2, 2]])
    for kind, warnings in (("stuff", 0), ("thing", 1)):
        (tmp_path / "names.txt").write_text(f"1: apple: {kind}\n2: sky: stuff\n")
        flags = ["--coding=class", f"--class_names={tmp_path / 'names.txt'}", f"--output_dir={tmp_path / kind}"]
        assert folders.convert(*flags) == 0
        assert capsys.readouterr().out.count("warning: no image has an instance of a thing class") == warnings


@pytest.mark.parametrize("content", ["0 soil\n1 crop\n", "0,soil\n1,crop\n", "0\tsoil\n1\tcrop\n"])
def test_numbers_without_a_colon_are_no_part_of_names(folders, tmp_path, capsys, content):
    """As a list of names, these lines would be the classes 1 and 2."""
    folders.add("a", [[0, 1]])
    (tmp_path / "names.txt").write_text(content)
    assert folders.convert("--coding=class", "--void_values=", f"--class_names={tmp_path / 'names.txt'}") == 2
    assert "expected `number: name`" in complaint(capsys)


@pytest.mark.parametrize("layout", ["one folder", "labels below the images"])
def test_images_and_label_pngs_in_one_folder(tmp_path, layout):
    folder = tmp_path / "data"
    labels = folder / "masks" if layout != "one folder" else folder
    for name in ("a", "b"):
        save_image(folder / f"{name}.png", 1, 2)
        save_map(labels / f"{name}_mask.png", [[1, 2]])
    flags = [f"--image_dir={folder}", f"--label_dir={labels}", "--label_ending=_mask", "--coding=class"]
    assert run_convert("label_pngs", *flags, f"--output_dir={tmp_path / 'out'}") == 0
    assert set(read_converted(tmp_path / "out").labels) == {"a", "b"}


def test_images_of_another_format_are_named(folders, tmp_path, capsys):
    folders.add("a", [[0, 257]])
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "a.bmp")
    assert folders.convert() == 2
    assert (
        "has no JPEG, PNG or TIFF files, only others such as a.bmp; convert images to JPEG or PNG"
        in capsys.readouterr().err
    )


def test_gray_16_bit_maps_and_their_class_table(folders):
    picture = folders.add("a", [[0, 7000, 7000], [24001, 24007, 24007]])
    folders.add("below/b", [[7000, 9000], [24002, 9000]])
    assert folders.convert("--label_divisor=1000") == 0
    converted = read_converted(folders.out)
    assert converted.semantics() == [("class_7", False, 7), ("class_9", False, 9), ("class_24", True, 24)]
    assert (converted.info.label_divisor, converted.info.name) == (1000, "out")
    # Instances are renumbered in each image.
    np.testing.assert_array_equal(converted.labels["a"], [[0, 1000, 1000], [3001, 3002, 3002]])
    np.testing.assert_array_equal(converted.labels["below/b"], [[1000, 2000], [3001, 2000]])
    np.testing.assert_array_equal(converted.images["a"], picture)


@pytest.mark.parametrize("channels", ["RGB", "LA"])
def test_class_and_instance_in_two_channels(folders, channels):
    one = [[(3, 0), (5, 1)], [(5, 200), (0, 0)]]
    values = [[(c, i, 0) if channels == "RGB" else (c, i) for c, i in row] for row in one]
    folders.add("a", values, np.uint8)
    assert folders.convert() == 0
    converted = read_converted(folders.out)
    assert converted.semantics() == [("class_3", False, 3), ("class_5", True, 5)]
    np.testing.assert_array_equal(converted.labels["a"], [[256, 513], [514, 0]])


@pytest.mark.parametrize("flags", [["--coding=class"], ["--coding=class", "--instance_dir={}"], ["--coding=instance"]])
def test_grays_in_an_rgb_png_are_gray_values(folders, tmp_path, flags):
    flags = [flag.format(tmp_path / "labels") for flag in flags]
    folders.add("a", [[0, 1, 2]], np.uint8)
    assert folders.convert(*flags) == 0
    expected = read_converted(folders.out).labels["a"]
    folders.add("a", [[(0, 0, 0), (1, 1, 1), (2, 2, 2)]], np.uint8)
    assert folders.convert(*flags, "--overwrite") == 0
    np.testing.assert_array_equal(read_converted(folders.out).labels["a"], expected)
    folders.add("a", [[(0, 0, 0), (1, 1, 1), (2, 2, 1)]], np.uint8)
    assert folders.convert(*flags, "--overwrite") == 2


def test_blue_is_the_upper_byte_of_an_instance(folders):
    folders.add("a", [[(5, 1, 0), (5, 1, 1), (5, 1, 0)]], np.uint8)
    assert folders.convert() == 0
    np.testing.assert_array_equal(read_converted(folders.out).labels["a"], [[257, 258, 257]])


def test_classes_alone_are_stuff(folders):
    folders.add("a", [[0, 4, 255]], np.uint8)
    assert folders.convert("--coding=class", "--void_values=255,0") == 0
    converted = read_converted(folders.out)
    assert converted.semantics() == [("class_4", False, 4)]
    np.testing.assert_array_equal(converted.labels["a"], [[0, 256, 0]])


def test_instances_alone_are_things_of_one_class(folders):
    folders.add("a", [[0, 300, 5]])
    assert folders.convert("--coding=instance") == 0
    converted = read_converted(folders.out)
    assert converted.semantics() == [("class_1", True, 1)]
    np.testing.assert_array_equal(converted.labels["a"], [[0, 258, 257]])


def test_palette_pngs_count_by_index(folders, tmp_path):
    folders.add("a", [[0, 0]])
    picture = Image.new("P", (2, 1))
    picture.putdata([2, 1])
    picture.putpalette([9, 9, 9] * 256)
    picture.save(tmp_path / "labels" / "a.png")
    assert folders.convert("--coding=class") == 0
    np.testing.assert_array_equal(read_converted(folders.out).labels["a"], [[512, 256]])


@pytest.mark.parametrize(
    "names, expected",
    [
        ("sky\napple\n", [("sky", False, 1), ("apple", True, 2)]),
        ("# fruit\n\n2: apple\n1: the sky\n3: pear\n", [("the sky", False, 1), ("apple", True, 2), ("pear", False, 3)]),
        (
            "1: sky: stuff\n2: apple: thing\n3: pear: thing\n",
            [("sky", False, 1), ("apple", True, 2), ("pear", True, 3)],
        ),
    ],
)
def test_names_come_from_a_file_and_kinds_from_it_or_from_the_data(folders, tmp_path, names, expected):
    folders.add("a", [[256, 513]])
    (tmp_path / "names.txt").write_text(names)
    assert folders.convert(f"--class_names={tmp_path / 'names.txt'}") == 0
    converted = read_converted(folders.out)
    assert converted.semantics() == expected
    np.testing.assert_array_equal(converted.labels["a"], [[256, 513]])


def test_later_splits_use_the_table_of_the_first(folders, tmp_path):
    folders.add("a", [[256, 513, 768]])
    assert folders.convert("--processes=2") == 0
    folders.add("a", [[256, 768, 768]])  # Without things, so the split alone would give another table.
    assert folders.convert("--split=val") == 0
    np.testing.assert_array_equal(read_converted(folders.out, "val").labels["a"], [[256, 768, 768]])
    folders.add("a", [[256, 769, 768]])
    assert folders.convert("--split=test") == 2
    folders.add("a", [[256, 1024, 768]])
    assert folders.convert("--split=test") == 2


def test_things_without_an_instance_are_void_or_a_crowd(folders):
    folders.add("a", [[512, 513]])
    assert folders.convert() == 0
    np.testing.assert_array_equal(read_converted(folders.out).labels["a"], [[0, 257]])
    assert folders.convert("--notreat_crowd_as_ignore", "--overwrite") == 0
    np.testing.assert_array_equal(read_converted(folders.out).labels["a"], [[256, 257]])


def test_label_files_with_an_ending(folders):
    folders.add("a", [[256]], ending="_mask")
    folders.add("b", [[512]], ending="_mask")
    assert folders.convert("--label_ending=_mask") == 0
    assert set(read_converted(folders.out).labels) == {"a", "b"}


FAULTS = {
    "image without a map": (lambda d: (d / "labels/b.png").unlink(), r"b.png: the label map 'b' is missing"),
    "map without an image": (lambda d: (d / "images/b.png").unlink(), r"labels/b.png: the image 'b' is missing"),
    "sizes differ": (lambda d: save_map(d / "labels/b.png", [[256, 256, 256]], np.uint16), r"labels/b.png: 1 x 3 "),
    "broken map": (lambda d: (d / "labels/b.png").write_bytes(b"\x89PNG"), r"labels/b.png: cannot be read as an image"),
    "broken image": (lambda d: (d / "images/b.png").write_bytes(b"text"), r"images/b.png: cannot be read as an image"),
    "class 0": (lambda d: save_map(d / "labels/b.png", [[3, 256]], np.uint16), r"labels/b.png: value 3 is class 0"),
    "four channels": (lambda d: save_map(d / "labels/b.png", [[[1, 2, 3, 4]] * 2]), r"labels/b.png: .* mode RGBA"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_stop_the_conversion_or_are_skipped(folders, tmp_path, capsys, fault):
    folders.add("a", [[256, 513]])
    folders.add("b", [[256, 513]])
    apply, message = FAULTS[fault]
    apply(tmp_path)
    assert folders.convert() == 2
    line = complaint(capsys)
    assert not folders.out.exists()
    assert folders.convert("--on_error=skip") == 0
    said = capsys.readouterr().out
    for text in (line, said):
        assert re.search(message, text), text
    assert set(read_converted(folders.out).labels) == {"a"}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--void_values=a"], "--void_values=a: must be numbers"),
        (["--label_dir=nowhere"], "--label_dir=nowhere is not a folder"),
        (["--label_ending=_x"], "give the files matching names"),
        (["--class_names=nowhere.txt"], "nowhere.txt: there is no such file"),
        (["--void_values=256,513"], "all pixels of all images are void"),
    ],
)
def test_invalid_flags_are_refused(folders, capsys, flags, message):
    folders.add("a", [[256, 513]])
    assert folders.convert(*flags) == 2
    assert message in complaint(capsys)


def test_twenty_images_with_three_classes_need_one_command(folders):
    random = np.random.default_rng(3)
    maps = {}
    for index in range(20):
        values = np.full([24, 32], 1 * 256)
        values[: random.integers(2, 20)] = 2 * 256
        for instance in range(1, 1 + random.integers(1, 4)):
            top, left = random.integers(0, 18, 2)
            values[top : top + 6, left : left + 6] = 3 * 256 + instance
        maps[f"{index:02d}"] = values
        folders.add(f"{index:02d}", values)
    assert folders.convert("--processes=2", "--num_shards=2") == 0
    converted = read_converted(folders.out)
    assert converted.semantics() == [("class_1", False, 1), ("class_2", False, 2), ("class_3", True, 3)]
    for name, values in maps.items():
        visible = np.unique(values[values >= 768])  # Hidden instances leave no gap in the numbering.
        expected = values.copy()
        for number, value in enumerate(visible, start=1):
            expected[values == value] = 768 + number
        np.testing.assert_array_equal(converted.labels[name], expected)


def test_odd_files_neither_hang_nor_end_a_conversion_nor_repeat_images(folders, tmp_path, capsys):
    """Pipes, links in a circle, bombs beside the pixels, and names that are not UTF-8."""
    for name in ("good", "pipe", "bomb", os.fsdecode(b"stra\xdfe")):
        folders.add(name, [[257] * 7] * 5)
    pipe = tmp_path / "images" / "pipe.png"
    pipe.unlink()
    os.mkfifo(pipe)
    (tmp_path / "images" / "bomb.png").write_bytes(png_files.DAMAGED["text bomb"])
    for folder in ("images", "labels"):
        (tmp_path / folder / "circle").symlink_to(".")
    assert folders.convert("--on_error=skip") == 0
    assert set(read_converted(folders.out).labels) == {"good", r"stra\udcdfe"}
    output = capsys.readouterr().out
    assert "2 images skipped:\n" in output
    assert "pipe.png: a pipe, socket or device; expected a regular file\n" in output
    assert "bomb.png: cannot be read as an image: Decompressed data too large" in output
