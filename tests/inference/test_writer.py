import pytest

from maxdl_tf.errors import UserError
from maxdl_tf.inference import writer


def test_two_images_of_one_name_are_refused():
    with pytest.raises(UserError, match=r"a/1\.jpg and b/1\.png would both be written to 1\.png"):
        writer.output_names(["a/1.jpg", "a/2.jpg", "b/1.png"])


def test_image_ids_are_numbers_only_if_all_names_are_different_numbers():
    assert writer.image_ids(["000139", "7"]) == [139, 7]
    assert writer.image_ids(["007", "7"]) == ["007", "7"]
    assert writer.image_ids(["1", "one"]) == ["1", "one"]


@pytest.mark.parametrize("name", ["x" * 255, "x" * 250 + ".jpeg", "\udcff" * 255, "é" * 127])
def test_outputs_of_the_longest_file_names_can_be_written(tmp_path, name):
    (written,) = writer.output_names([f"photos/{name}"])
    (tmp_path / f"{written}.png").touch()
    assert name.startswith(written[:125])
