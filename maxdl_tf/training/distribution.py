"""Devices of a run: one `tf.distribute.Strategy` for each way of splitting a batch."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator

import tensorflow as tf

from maxdl_tf.errors import UserError

# TensorFlow has no error class for a lost worker: the same classes stand for a remote file system that fails.
_OF_ANOTHER_WORKER = re.compile(r"Collective ops|/job:(worker|chief)|[Hh]eartbeat|CoordinationService")
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


class WorkerLostError(Exception):
    """Another worker of this training ended or cannot be reached."""


def create_strategy(name: str = "auto", tpu: str | None = None) -> tf.distribute.Strategy:
    """Creates a strategy. Call it before anything else uses a device.

    Args:
      name: "one_device", "mirrored" (all GPUs of this machine, or its logical CPUs if it has none), "multi_worker" (the
        hosts in the environment variable TF_CONFIG), "tpu", or "auto". "auto" is tpu if `tpu` is given, multi_worker if
        TF_CONFIG names several workers, mirrored if there are several GPUs, else one_device.
      tpu: Name or grpc address of the TPU; "local" on a TPU host itself.

    Raises:
      UserError: The name is unknown, or what the strategy needs is missing.
    """
    if name not in STRATEGIES:
        raise UserError(f"--strategy {name!r} is not one of {', '.join(STRATEGIES)}; choose one of these")
    if tpu and name not in ("auto", "tpu"):
        raise UserError(f"--tpu {tpu} does not go with --strategy {name}; drop one of them")
    if name == "auto":
        name = _automatic(tpu)
    if name == "tpu":
        return _tpu_strategy(tpu)
    if name == "multi_worker":
        if _worker_count() < 2:
            raise UserError("--strategy multi_worker needs the environment variable TF_CONFIG with two workers or more")
        return tf.distribute.MultiWorkerMirroredStrategy()
    devices = _local_devices()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.OneDeviceStrategy(devices[0])


def set_intra_op_threads(threads: int) -> None:
    """Sets the number of CPU threads that one operation uses; 0 keeps TensorFlow's default, one for each core.

    TensorFlow reads the number once, when a process first uses a device. A later call has no effect.
    """
    if threads:
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(threads)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the checkpoints and metrics, which all workers share."""
    resolver = strategy.cluster_resolver
    if resolver is None or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (not has_chief and resolver.task_id == 0)


def worker_suffix(strategy: tf.distribute.Strategy) -> str:
    """Suffix of file names that differ by worker: "" for the chief, else "-worker1" and so on."""
    return "" if is_chief(strategy) else f"-{strategy.cluster_resolver.task_type}{strategy.cluster_resolver.task_id}"


@contextlib.contextmanager
def noticing_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns TensorFlow's errors about a lost worker into `WorkerLostError`.

    MultiWorkerMirroredStrategy notices a lost worker by a reset connection or by missing heartbeats, and aborts the
    operations that wait for it. It cannot add a new worker: all workers must be started again.
    """
    try:
        yield
    except tf.errors.OpError as error:
        is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        if not (is_multi_worker and _OF_ANOTHER_WORKER.search(error.message)):
            raise
        raise WorkerLostError(
            f"another worker is gone ({error.message.strip().splitlines()[0]}); its output says why; start all workers "
            "again with the same commands to resume from the last checkpoint"
        ) from error


def describe(strategy: tf.distribute.Strategy) -> str:
    """Human-readable description, such as "OneDeviceStrategy on 1 CPU"."""
    kind = (
        "TPU"
        if isinstance(strategy, tf.distribute.TPUStrategy)
        else tf.DeviceSpec.from_string(_local_devices()[0]).device_type
    )
    count = strategy.num_replicas_in_sync
    return f"{type(strategy).__name__} on {count} {kind}{'s' if count > 1 else ''}"


def devices_of(strategy: tf.distribute.Strategy) -> list[str]:
    """Names of the devices of this process that have a replica."""
    try:
        return list(strategy.extended.worker_devices)
    except RuntimeError:  # TensorFlow's default strategy has no devices.
        return _local_devices()[:1]


def _automatic(tpu: str | None) -> str:
    if tpu:
        return "tpu"
    if _worker_count() > 1:
        return "multi_worker"
    return "mirrored" if len(tf.config.list_logical_devices("GPU")) > 1 else "one_device"


def _worker_count() -> int:
    """Number of training processes in TF_CONFIG."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        cluster = json.loads(text).get("cluster", {}) if text else {}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"the environment variable TF_CONFIG is not a JSON object: {text!r}; unset it or fix it"
        ) from error
    return len(cluster.get("worker", [])) + len(cluster.get("chief", []))


def _local_devices() -> list[str]:
    """Names of this machine's GPUs, or of its logical CPUs if it has none."""
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in devices]


def _tpu_strategy(tpu: str | None) -> tf.distribute.Strategy:
    if not tpu:
        raise UserError("--strategy tpu needs --tpu: the TPU's name, its grpc:// address, or local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--tpu {tpu}: {reason}; check the name and that the TPU is up") from error
    return tf.distribute.TPUStrategy(resolver)
