"""A part of a set of shards never passes for the whole, and a path that exists is not a pattern."""

from __future__ import annotations

import pytest
import tensorflow as tf

from maxdl_tf.data.shards import find_shards, shard_name
from maxdl_tf.errors import UserError


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    """A folder with 3 shards of train, 2 of train-small and a file of another name; file:// stands for other stores."""
    names = [shard_name("train", number, 3) for number in range(3)]
    names += [shard_name("train-small", number, 2) for number in range(2)]
    for name in [*names, "dataset_info.textproto"]:
        (tmp_path / name).write_bytes(b"")
    return str(tmp_path) if request.param == "local" else f"file://{tmp_path}"


def _names(found) -> list[str]:
    return [path.rpartition("/")[2] for path in found]


def test_whole_sets_are_found_once_and_in_order(folder):
    assert _names(find_shards([f"{folder}/train-0*", f"{folder}/train-0*", f"{folder}/train-small-*"])) == [
        *(shard_name("train", number, 3) for number in range(3)),
        *(shard_name("train-small", number, 2) for number in range(2)),
    ]


def test_missing_shards_are_counted_and_named(folder):
    tf.io.gfile.remove(f"{folder}/{shard_name('train', 1, 3)}")
    with pytest.raises(
        UserError, match=r"train-\?{5}-of-00003\.tfrecord: 1 of 3 shards .*train-00001-of-00003\.tfrecord;"
    ):
        find_shards(f"{folder}/train-0*")
    assert _names(find_shards(f"{folder}/train-small-*")) == [
        shard_name("train-small", number, 2) for number in range(2)
    ]


def test_a_part_may_be_read_if_the_whole_is_there_or_if_its_files_are_named(folder):
    assert _names(find_shards(f"{folder}/train-0000[01]-of-00003.tfrecord")) == [
        "train-00000-of-00003.tfrecord",
        "train-00001-of-00003.tfrecord",
    ]
    tf.io.gfile.remove(f"{folder}/{shard_name('train', 1, 3)}")
    assert _names(find_shards(f"{folder}/{shard_name('train', 2, 3)}")) == [shard_name("train", 2, 3)]
    with pytest.raises(UserError, match="1 of 3 shards are missing"):
        find_shards(f"{folder}/train-00002*")


def test_two_conversions_do_not_mix(folder):
    with tf.io.gfile.GFile(f"{folder}/{shard_name('train', 0, 1)}", "w") as file:
        file.write("x")
    with pytest.raises(
        UserError, match=r"two conversions, .*train-\?{5}-of-00001\.tfrecord and .*train-\?{5}-of-00003"
    ):
        find_shards(f"{folder}/train-?????-of-*")
    assert len(find_shards(f"{folder}/train-?????-of-00003.tfrecord")) == 3


@pytest.mark.parametrize("pattern", ["train-*", "*.tfrecord"])
def test_a_glob_does_not_mix_a_split_with_one_whose_name_continues(folder, pattern):
    with pytest.raises(UserError, match=r"matches the shards of train and of train-small; .*'train-\?{5}-of-\*'"):
        find_shards(f"{folder}/{pattern}")
    assert len(find_shards([f"{folder}/train-?????-of-*", f"{folder}/train-small-?????-of-*"])) == 5


def test_patterns_without_files(folder):
    with pytest.raises(UserError, match=r"eval_dataset\.file_pattern '.*/val-\*' matches no file"):
        find_shards([f"{folder}/train-0*", f"{folder}/val-*"], "eval_dataset.file_pattern")
    with pytest.raises(UserError, match="file_pattern is empty"):
        find_shards([])


def test_names_with_the_characters_of_globs(tmp_path):
    folder = tmp_path / "data [v2]"
    folder.mkdir()
    for name in (shard_name("train", 0, 1), "a[1].tfrecord"):
        (folder / name).write_bytes(b"")
    assert find_shards(str(folder / "train-*")) == [str(folder / shard_name("train", 0, 1))]
    assert find_shards(str(folder / "a[1].tfrecord")) == [str(folder / "a[1].tfrecord")]
