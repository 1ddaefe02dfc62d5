"""Requests that TensorFlow Serving sends to a model before it serves it, so that no user waits for the first ones."""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from maxdl_tf.data.examples import encode_image_example
from maxdl_tf.protos import serving_log_pb2

WARM_UP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")


def write_warm_up_requests(saved_model: str, image_size: tuple[int, int]) -> None:
    """Adds one request for each signature to a SavedModel: a TFRecord file of serialized PredictionLogs.

    Args:
      saved_model: Its folder.
      image_size: (height, width) of the image that is sent.
    """
    height, width = image_size
    ramps = np.indices([height, width]) * 255 // np.reshape([height, width], [2, 1, 1])
    image = np.stack([*ramps, ramps.sum(axis=0) // 2], axis=-1).astype(np.uint8)
    encoded = tf.io.encode_jpeg(image).numpy()
    requests = (
        ("serving_default", "image_bytes", [encoded]),
        ("image_tensor", "image", image[np.newaxis]),
        ("tf_example", "examples", [encode_image_example(encoded)]),
    )
    path = os.path.join(saved_model, WARM_UP_FILE)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:
        for signature, argument, batch in requests:
            log = serving_log_pb2.PredictionLog()
            log.predict_log.request.model_spec.signature_name = signature
            log.predict_log.request.inputs[argument] = tf.make_tensor_proto(batch).SerializeToString()
            writer.write(log.SerializeToString())
