"""The one place that knows where the Keras 2 API comes from.

TensorFlow up to 2.15 carries Keras 2 as `tf.keras`; from 2.16 on it lives in the package tf-keras.
Every other module writes `from maxdl_tf.keras_api import keras`.
"""

import tensorflow as tf

if tuple(int(part) for part in tf.__version__.split(".")[:2]) >= (2, 16):
    import tf_keras as keras
else:
    keras = tf.keras

__all__ = ["keras"]
