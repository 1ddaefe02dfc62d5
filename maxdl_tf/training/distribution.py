"""Which devices a run uses: one `tf.distribute.Strategy` for each way of spreading a batch."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator

import tensorflow as tf

from maxdl_tf.errors import UserError

_OF_ANOTHER_WORKER = re.compile(r"Collective ops|/job:(worker|chief)|[Hh]eartbeat|CoordinationService")
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


class WorkerLostError(Exception):
    """Another worker of this training has ended or cannot be reached."""


def create_strategy(name: str = "auto", tpu: str | None = None) -> tf.distribute.Strategy:
    """The strategy called `name`. Call it before anything else touches a device.

    Args:
      name: "one_device", "mirrored" (all GPUs of this machine; its logical CPUs if it has none), "multi_worker" (the
        hosts of the environment variable TF_CONFIG), "tpu", or "auto": tpu where `tpu` is given, multi_worker where
        TF_CONFIG names several workers, mirrored where there are several GPUs, else one_device.
      tpu: Name or grpc address of the TPU; "local" on a TPU host itself.

    Raises:
      UserError: An unknown name, or what it needs is not here.
    """
    if name not in STRATEGIES:
        raise UserError(f"--strategy {name!r} is not one of {', '.join(STRATEGIES)}; name one of these")
    if tpu and name not in ("auto", "tpu"):
        raise UserError(f"--tpu {tpu} does not go with --strategy {name}; leave one of them out")
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


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the checkpoints and metrics that all workers share."""
    resolver = strategy.cluster_resolver
    if resolver is None or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (not has_chief and resolver.task_id == 0)


def worker_suffix(strategy: tf.distribute.Strategy) -> str:
    """Tells apart the files of workers that write to one directory: "" for the chief, else "-worker1" and so on."""
    return "" if is_chief(strategy) else f"-{strategy.cluster_resolver.task_type}{strategy.cluster_resolver.task_id}"


@contextlib.contextmanager
def noticing_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns what TensorFlow says when another worker is gone into `WorkerLostError`.

    MultiWorkerMirroredStrategy notices by a reset connection, or else by missing heartbeats, and then aborts what the
    others wait for. It cannot take a new worker in: all have to be started again.
    """
    try:
        yield
    except tf.errors.OpError as error:
        is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        # Other services, such as a remote file system, may be unavailable, too.
        if not (is_multi_worker and _OF_ANOTHER_WORKER.search(error.message)):
            raise
        raise WorkerLostError(
            f"another worker is gone ({error.message.strip().splitlines()[0]}); its output says why; start all workers "
            "again with the same commands, and they go on from the last checkpoint"
        ) from error


def describe(strategy: tf.distribute.Strategy) -> str:
    """For people: "OneDeviceStrategy on 1 CPU"."""
    kind = (
        "TPU"
        if isinstance(strategy, tf.distribute.TPUStrategy)
        else tf.DeviceSpec.from_string(_local_devices()[0]).device_type
    )
    count = strategy.num_replicas_in_sync
    return f"{type(strategy).__name__} on {count} {kind}{'s' if count > 1 else ''}"


def devices_of(strategy: tf.distribute.Strategy) -> list[str]:
    """Names of this process's devices that have a replica each."""
    try:
        return list(strategy.extended.worker_devices)
    except RuntimeError:  # TensorFlow's default strategy, which knows of none.
        return _local_devices()[:1]


def _automatic(tpu: str | None) -> str:
    if tpu:
        return "tpu"
    if _worker_count() > 1:
        return "multi_worker"
    return "mirrored" if len(tf.config.list_logical_devices("GPU")) > 1 else "one_device"


def _worker_count() -> int:
    """Processes that train, by TF_CONFIG."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        cluster = json.loads(text).get("cluster", {}) if text else {}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"the environment variable TF_CONFIG is not a JSON object: {text!r}; unset it or mend it"
        ) from error
    return len(cluster.get("worker", [])) + len(cluster.get("chief", []))


def _local_devices() -> list[str]:
    """Names of this machine's GPUs, else of its logical CPUs."""
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
