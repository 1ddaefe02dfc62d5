r"""Lists what is wrong in TFRecord shards: damaged records, images and label maps that do not fit, missing shards.

Of several splits, give --file_pattern once for each; images of one split that are in another, too, are found by their
pixels. Nothing is changed.

Exit status: 0 if there is no error (there may be warnings and notes), 1 if there is one, 2 if it could not check.

Example:
  maxdl-check-data tfrecords --file_pattern 'data/train-*.tfrecord' --file_pattern 'data/val-*.tfrecord'
"""

from __future__ import annotations

import glob
import os
import re
from typing import Any

import numpy as np
from absl import flags

from maxdl_tf import class_table, command_line
from maxdl_tf.data import examples, records
from maxdl_tf.data_gen.checks import flags as check_flags
from maxdl_tf.data_gen.checks import pictures as check_pictures
from maxdl_tf.data_gen.checks import records as check_records
from maxdl_tf.data_gen.checks.findings import Split
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

FLAGS = flags.FlagValues()
_FILE_PATTERN = flags.DEFINE_multi_string(
    "file_pattern", None, "Glob of the shards of a split.", required=True, flag_values=FLAGS
)
_DATASET_INFO = flags.DEFINE_string(
    "dataset_info",
    None,
    "Class table; if not given, dataset_info.textproto in the folder of the first --file_pattern.",
    flag_values=FLAGS,
)
check_flags.define(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    options = check_flags.read(FLAGS)
    patterns = _FILE_PATTERN.value
    files = [_matching(pattern) for pattern in patterns]
    folder = os.path.dirname(patterns[0])
    info = class_table.load(_DATASET_INFO.value or os.path.join(folder, class_table.FILE_NAME))
    names = [_split_name(pattern) for pattern in patterns]
    if len(set(names)) < len(names):
        names = list(patterns)
    splits = []
    for name, paths in zip(names, files):
        split = Split(name, {row.id: (row.name, row.is_thing) for row in info.classes})
        splits.append(split)
        split.findings.extend(check_records.check_shard_names(name, paths))
        checker = check_records.RecordChecker(name, info, options.num_slots)
        split.images.extend(check_flags.check_all(f"checking {name}", checker, paths, "files", options.processes))
        split.findings.extend(check_records.repeated_ids(split))

    def load(split: Split, source: tuple[str, int]) -> tuple[np.ndarray | None, np.ndarray | None]:
        del split
        return load_record(*source, void=info.void)

    return check_flags.report(f"Check of {', '.join(names)}", splits, load, options)


def _matching(pattern: str) -> list[str]:
    if storage.is_remote(pattern):
        with command_line.quiet_imports():
            import tensorflow as tf
        paths = tf.io.gfile.glob(pattern)
    else:
        paths = [path for path in glob.glob(pattern) if os.path.isfile(path)]
    if not paths:
        raise UserError(f"--file_pattern {pattern!r} matches no file; correct the path, or convert the data first")
    return sorted(paths)


def _split_name(pattern: str) -> str:
    """ "train" of "data/train-*.tfrecord"."""
    return re.match(r"[\w.]*", os.path.basename(pattern)).group() or pattern


def load_record(path: str, number: int, void: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Image, uint8 [h, w, 3], and label map, int [h, w], void 0; None for what cannot be read."""
    record: Any = next(entry for entry in records.read_records(path) if entry.number == number)
    pixels = label = None
    try:
        features = check_records.read_example(record.data)
        pixels = check_pictures.inspect_image(features[examples.IMAGE_ENCODED]).pixels
        label = check_records.decode_label_map(features)
        label = np.where(label == void, 0, label)
    except Exception:  # What is wrong with it has been found before.
        pass
    return pixels, label
