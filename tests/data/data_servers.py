"""A dispatcher of tf.data service and its workers, in this process."""

from __future__ import annotations

import tensorflow as tf


def data_servers(num_workers: int) -> tuple:
    """Returns (dispatcher, workers), which serve as long as they are referenced."""
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=0))
    address = dispatcher.target.split("://")[1]
    config = service.WorkerConfig(dispatcher_address=address, port=0)
    return dispatcher, [service.WorkerServer(config) for _ in range(num_workers)]
