"""Runs a SavedModel on image files with only TensorFlow and NumPy: `python -I THIS SAVED_MODEL INPUT OUTPUT`.

This package and Keras cannot be imported here, because they may be missing where the SavedModel is served. Each file in
the folder INPUT goes through `serving_default`. OUTPUT/NAME.npz receives the panoptic map and the network's outputs.
The first file also goes through `panoptic_png`, and its .npz receives the pixels of the PNG. The process ends with its
parent, which holds the other end of stdin.
"""

import os
import sys
import threading


def _end_with_parent() -> None:
    os.read(0, 1)  # Not sys.stdin, whose lock would disturb the end of Python.
    os._exit(1)


threading.Thread(target=_end_with_parent, daemon=True).start()

for _name in ("maxdl_tf", "keras", "tf_keras", "official", "tensorflow_addons"):
    sys.modules[_name] = None  # Importing it fails.

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402


def main(saved_model: str, images: str, output: str) -> None:
    tf.config.set_visible_devices([], "GPU")
    loaded = tf.saved_model.load(saved_model)
    segment, as_png = (loaded.signatures.get(name) for name in ("serving_default", "panoptic_png"))
    for number, name in enumerate(sorted(os.listdir(images))):
        with open(os.path.join(images, name), "rb") as file:
            encoded = file.read()
        panoptic_map = segment(image_bytes=tf.constant([encoded]))["panoptic_map"][0]
        outputs = loaded.network_outputs(tf.io.decode_image(encoded, 3, expand_animations=False))
        arrays = {"panoptic_map": panoptic_map, **outputs}
        if as_png and number == 0:
            png = as_png(image_bytes=tf.constant([encoded]))["panoptic_png_bytes"][0]
            arrays["panoptic_png"] = tf.io.decode_png(png)
        np.savez(os.path.join(output, name + ".npz"), **{key: np.asarray(value) for key, value in arrays.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
