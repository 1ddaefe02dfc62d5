"""Flags and environment to strategies."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tensorflow as tf

from maxdl_tf.errors import UserError
from maxdl_tf.training import distribution


def test_one_device_by_default():
    strategy = distribution.create_strategy()
    if len(tf.config.list_logical_devices("GPU")) < 2:
        assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
        assert "OneDeviceStrategy on 1 " in distribution.describe(strategy)
    assert distribution.is_chief(strategy)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("two_devices",), "is not one of auto, one_device"),
        (("mirrored", "my-tpu"), "does not go with --strategy mirrored"),
        (("tpu",), "needs --tpu"),
        (("multi_worker",), "TF_CONFIG with two workers"),
    ],
)
def test_what_cannot_be(arguments, complaint, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match=complaint):
        distribution.create_strategy(*arguments)


def test_threads_of_an_operation():
    program = """
import tensorflow as tf
from maxdl_tf.training import distribution
threads = tf.config.threading.get_intra_op_parallelism_threads
distribution.set_intra_op_threads(0)
before = threads()
distribution.set_intra_op_threads(1)
distribution.create_strategy()
distribution.set_intra_op_threads(2)  # TensorFlow has started.
print(before, threads())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["0", "1"]


def test_automatic_follows_flags_and_environment(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"index": 0}}))
    assert distribution._automatic(None) == "multi_worker"
    assert distribution._automatic("my-tpu") == "tpu"
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1"]}}))
    assert distribution._automatic(None) in ("one_device", "mirrored")
    monkeypatch.setenv("TF_CONFIG", "{not json")
    with pytest.raises(UserError, match="TF_CONFIG is not a JSON object"):
        distribution._automatic(None)
