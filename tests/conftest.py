"""Holds for all tests: TensorFlow starts quietly, shares the GPU, and draws the same numbers every time."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests start commands as processes of their own, which need memory on the same GPU.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


@pytest.fixture(autouse=True)
def same_random_numbers_every_time():
    random.seed(0)
    np.random.seed(0)
    # Not imported here: many tests do without, and it takes seconds.
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(0)


@pytest.fixture(autouse=True, scope="module")
def free_keras_memory():
    yield
    if "maxdl_tf.keras_api" in sys.modules:
        sys.modules["maxdl_tf.keras_api"].keras.backend.clear_session()


@pytest.fixture(scope="session")
def color_export(tmp_path_factory):
    """Folder of the color network as a SavedModel, version 1 of "colors"; tests only read it."""
    from tests.export.color_export import save_color_model

    return save_color_model(tmp_path_factory.mktemp("exports") / "colors" / "1")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with 200 KB; skips where this user may not mount one."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(directory)], capture_output=True)
    if mount.returncode:
        pytest.skip("may not mount a tmpfs")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)
