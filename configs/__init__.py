"""Experiments and class tables as textprotos, installed as package data."""

from __future__ import annotations

import os

from maxdl_tf.files import storage

_SUFFIX = ".textproto"
_CLASS_TABLES = "datasets/"


def experiments() -> dict[str, str]:
    """The paths of the packaged experiments by name, such as `shapes/max_deeplab_tiny_81`."""
    root = os.path.dirname(__file__)
    return {
        name.removesuffix(_SUFFIX): os.path.join(root, name)
        for name in storage.find_files(root, (_SUFFIX,))
        if not name.startswith(_CLASS_TABLES)
    }
