"""Runs an export on images without this package: `python -I THIS EXPORT INPUT OUTPUT`.

This package and Keras cannot be imported here, because they may be missing where the export is used. Nor can
TensorFlow, unless the export is a SavedModel. For each image, INPUT has NAME.image, a file, and NAME.npy, its pixels,
uint8 [h, w, 3]. A SavedModel gets the file. For other formats, decoding is not part of the export, so that its own
numpy_pipeline.py gets the pixels. OUTPUT/NAME.npz receives the panoptic map and the network's outputs. The first file
also goes through the signature `panoptic_png` of a SavedModel, and its .npz receives the pixels of the PNG.

The process ends with its parent, which holds the other end of stdin.
"""

import os
import sys
import threading
from collections.abc import Callable


def _end_with_parent() -> None:
    os.read(0, 1)  # Not sys.stdin, whose lock would disturb the end of Python.
    os._exit(1)


threading.Thread(target=_end_with_parent, daemon=True).start()

for _name in ("maxdl_tf", "keras", "tf_keras", "official", "tensorflow_addons"):
    sys.modules[_name] = None  # Importing it fails.

import numpy as np  # noqa: E402


def main(export: str, images: str, output: str) -> None:
    # A SavedModel has this file in a folder, and may be on a path that only TensorFlow reads.
    other_format = os.path.exists(os.path.join(export, "export_info.json"))
    arrays_of = _without_tensorflow(export) if other_format else _saved_model(export)
    for file in sorted(os.listdir(images)):
        name, suffix = os.path.splitext(file)
        if suffix == ".npy":
            arrays = arrays_of(os.path.join(images, name))
            np.savez(os.path.join(output, f"{name}.npz"), **{key: np.asarray(value) for key, value in arrays.items()})


def _saved_model(export: str) -> Callable[[str], dict]:
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    loaded = tf.saved_model.load(export)
    segment = loaded.signatures["serving_default"]
    once = [loaded.signatures[name] for name in ("panoptic_png",) if name in loaded.signatures]

    def arrays_of(image: str) -> dict:
        with open(f"{image}.image", "rb") as file:
            encoded = file.read()
        arrays = {"panoptic_map": segment(image_bytes=tf.constant([encoded]))["panoptic_map"][0]}
        if once:
            png = once.pop()(image_bytes=tf.constant([encoded]))["panoptic_png_bytes"][0]
            arrays["panoptic_png"] = tf.io.decode_png(png)
        return {**arrays, **loaded.network_outputs(np.load(f"{image}.npy"))}

    return arrays_of


def _without_tensorflow(export: str) -> Callable[[str], dict]:
    sys.modules["tensorflow"] = None
    sys.dont_write_bytecode = True  # The export gets no __pycache__.
    inference = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "inference")
    sys.path[:0] = [export]
    sys.path.append(inference)  # For `runtimes`, which imports nothing of this package.
    from numpy_pipeline import Pipeline
    from runtimes import OUTPUTS, open_network

    pipeline = Pipeline.of_folder(export)
    network = open_network(os.path.join(export, pipeline.info["file"]), pipeline.info["format"])

    def arrays_of(image: str) -> dict:
        pixels = np.load(f"{image}.npy")
        outputs = network(pipeline.network_input(pixels))
        label_map, _ = pipeline.postprocess(*(array[0] for array in outputs), pixels.shape[:2])
        return {"panoptic_map": label_map, **dict(zip(OUTPUTS, outputs))}

    return arrays_of


if __name__ == "__main__":
    main(*sys.argv[1:])
