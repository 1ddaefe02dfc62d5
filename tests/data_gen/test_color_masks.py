"""Color-coded masks: tables of colors, pairs of class mask and instance mask, and refusal without a table."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maxdl_tf.data_gen.class_names import ClassName, read_color_table
from maxdl_tf.errors import UserError
from tests.data_gen.conversion import complaint, read_converted, run_convert, save_image, save_map

_COLORS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]  # As PASCAL VOC and labelme number them.
_CVAT = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:128,0,0:wheel,door:\nroad:0,128,0::\nsky:128,128,0::\n"
)


@pytest.fixture
def masks(tmp_path):
    """Class masks and instance masks of one image, [[0, 1, 1, 1], [2, 2, 3, 3]] and two cars."""

    class Masks:
        classes = np.array([[0, 1, 1, 1], [2, 2, 3, 3]])
        instances = np.array([[0, 1, 2, 2], [3, 3, 3, 4]])  # The tools number stuff as well.
        flags = (f"--image_dir={tmp_path / 'images'}", f"--label_dir={tmp_path / 'SegmentationClass'}")
        pair = (f"--instance_dir={tmp_path / 'SegmentationObject'}",)
        out = tmp_path / "out"

        def save(self, form):
            save_image(tmp_path / "images" / "a.png", 2, 4)
            for folder, numbers in (("SegmentationClass", self.classes), ("SegmentationObject", self.instances)):
                path = tmp_path / folder / "a.png"
                palette = np.array(_COLORS if folder == "SegmentationClass" else [*_COLORS, (0, 0, 128)], np.uint8)
                if form == "palette":
                    path.parent.mkdir(exist_ok=True)
                    picture = Image.fromarray(numbers.astype(np.uint8), "P")
                    picture.putpalette(palette.ravel().tolist())
                    picture.save(path)
                else:
                    colors = palette[numbers]
                    save_map(path, np.dstack([colors, np.full((2, 4), 255)]) if form == "RGBA" else colors)

        def table(self, text):
            (tmp_path / "colors.txt").write_text(text)
            return f"--colors={tmp_path / 'colors.txt'}"

        def convert(self, *flags):
            return run_convert("label_pngs", *self.flags, f"--output_dir={self.out}", *flags)

    return Masks()


@pytest.mark.parametrize("form", ["RGB", "RGBA", "palette"])
def test_colors_are_classes(masks, form):
    masks.save(form)
    assert masks.convert(masks.table("128,0,0: car\n0, 128, 0: road: stuff\n128,128,0: void\n")) == 0
    converted = read_converted(masks.out)
    assert converted.semantics() == [("car", False, 1), ("road", False, 2)]
    assert [row.color for row in converted.info.classes] == [(128, 0, 0), (0, 128, 0)]
    np.testing.assert_array_equal(converted.labels["a"], [[0, 256, 256, 256], [512, 512, 0, 0]])


@pytest.mark.parametrize(
    "table, flags", [(_CVAT, []), (_CVAT.replace("background:0,0,0::\n", ""), ["--background=background"])]
)
def test_black_is_a_class_if_it_is_listed_or_named(masks, table, flags):
    masks.save("RGB")
    assert masks.convert(masks.table(table), *flags) == masks.convert(masks.table(table), *flags, "--split=val") == 0
    converted = read_converted(masks.out, "val")
    assert [row[0] for row in converted.semantics()] == ["background", "car", "road", "sky"]
    np.testing.assert_array_equal(converted.labels["a"] // 256, masks.classes + 1)


@pytest.mark.parametrize("form", ["RGB", "palette"])
def test_a_mask_of_instances_tells_objects_apart(masks, form):
    masks.save(form)
    table = masks.table("128,0,0: car\n0,128,0: road: stuff\n128,128,0: sky: stuff\n")
    assert masks.convert(table, *masks.pair) == 0
    converted = read_converted(masks.out)
    assert converted.semantics() == [("car", True, 1), ("road", False, 2), ("sky", False, 3)]
    np.testing.assert_array_equal(converted.labels["a"], [[0, 257, 258, 258], [512, 512, 768, 768]])


def test_a_class_without_a_stated_kind_is_a_thing_if_it_has_instances(masks):
    masks.save("RGB")
    assert masks.convert(masks.table(_CVAT), *masks.pair) == 0
    kinds = {name: is_thing for name, is_thing, _ in read_converted(masks.out).semantics()}
    assert kinds == {"background": False, "car": True, "road": True, "sky": True}


def test_numbers_in_a_palette_with_a_mask_of_instances(masks):
    masks.save("palette")
    assert masks.convert("--coding=class", "--void_values=0,3", *masks.pair) == 0
    np.testing.assert_array_equal(read_converted(masks.out).labels["a"], [[0, 257, 258, 258], [513, 513, 0, 0]])


def test_a_missing_mask_of_instances_stops_the_conversion_or_is_skipped(masks, tmp_path, capsys):
    masks.save("RGB")
    save_image(tmp_path / "images" / "b.png", 1, 1)
    save_map(tmp_path / "SegmentationClass" / "b.png", [[(128, 0, 0)]])
    assert masks.convert(masks.table(_CVAT), *masks.pair) == 2
    assert "b.png: the label map 'b' is missing" in complaint(capsys)
    assert masks.convert(masks.table(_CVAT), *masks.pair, "--on_error=skip") == 0
    assert "SegmentationObject/b.png" in capsys.readouterr().out
    assert set(read_converted(masks.out).labels) == {"a"}


@pytest.mark.parametrize("coding", [[], ["--coding=class"], ["--coding=instance"]])
@pytest.mark.parametrize("numbers", [[[0, 1, 1, 1], [2, 2, 3, 3]], [[0, 1, 1, 1], [1, 1, 3, 3]], [[0, 1, 1, 1]] * 2])
def test_color_masks_without_a_table_are_refused(masks, capsys, coding, numbers):
    masks.classes = np.array(numbers)  # Of many classes; without green; of a single class.
    masks.save("RGB")
    assert masks.convert(*coding) == 2
    assert "pass --colors with the table of its colors" in complaint(capsys)


def test_channels_are_trusted_if_the_user_says_so(masks, capsys):
    masks.classes = np.array([[1, 1, 3, 3]])
    masks.save("RGB")
    save_image(masks.out.parent / "images" / "a.png", 1, 4)
    assert masks.convert("--coding=class_instance") == 0
    assert read_converted(masks.out).semantics() == [("class_128", True, 128)]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--coding=instance"], "--coding instance does not work with --colors"),
        (["--void_values=0"], "--void_values does not work with --colors"),
        (["--class_names=names.txt"], "--colors and --class_names both name the classes"),
        (["--background=ground"], "class 0 is 'background' in "),
    ],
)
def test_flags_that_contradict_the_colors_are_refused(masks, capsys, flags, words):
    masks.save("RGB")
    assert masks.convert(masks.table(_CVAT), *flags) == 2
    assert words in complaint(capsys)


def test_colors_that_the_table_lacks_are_named(masks, capsys):
    masks.save("RGB")
    assert masks.convert(masks.table("128,0,0: car\n")) == 2
    assert "--colors lacks the color 0,128,0; 128,128,0; add a line for it" in complaint(capsys)


def test_a_later_split_with_another_table_is_refused(masks, capsys):
    masks.save("RGB")
    assert masks.convert(masks.table(_CVAT)) == 0
    capsys.readouterr()
    assert masks.convert(masks.table(_CVAT.replace("road:", "lane:")), "--split=val") == 2
    assert "class 2 is 'lane', in the class table of an earlier split (out) it is 'road'" in complaint(capsys)


def test_a_table_of_colors(tmp_path):
    path = tmp_path / "table.txt"
    path.write_text("sky:1,2,3::fly\n\n# more\n 4 , 5,6 : the sea : stuff\n0,0,0: ground\n7,8,9: Void\n")
    table = read_color_table(str(path))
    assert table.number_of == {(1, 2, 3): 1, (4, 5, 6): 2, (0, 0, 0): 0, (7, 8, 9): None}
    assert table.names == {
        1: ClassName("sky", None, (1, 2, 3)),
        2: ClassName("the sea", False, (4, 5, 6)),
        0: ClassName("ground", None, None),
    }


@pytest.mark.parametrize(
    "text, words",
    [
        ("sky", "line 1: 'sky'; expected `red,green,blue: name`"),
        ("sky:::", "line 1: 'sky:::'; expected"),
        ("1,2,256: sky", "each color 0 to 255"),
        ("1,2,3: sky\n1,2,3: sea", "line 2: the color '1,2,3: sea' occurs twice"),
        ("1,2,3: sky\n1,2,4: sky", "line 2: 'sky' has two colors"),
        ("# nothing\n1,2,3: void", "has no class"),
    ],
)
def test_faulty_tables_of_colors(tmp_path, text, words):
    (tmp_path / "table.txt").write_text(text)
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        read_color_table(str(tmp_path / "table.txt"))
