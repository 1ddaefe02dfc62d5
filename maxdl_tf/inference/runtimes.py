"""Runs networks that maxdl-export wrote for runtimes other than TensorFlow.

Imports NumPy and the runtime, nothing else: neither TensorFlow nor this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

INPUT, OUTPUTS = "image", ("mask_logits", "class_logits")
# From float32 [1, h, w, 3], RGB in 0..255, to mask logits [1, h / stride, w / stride, slots] and class logits
# [1, slots, classes + 1].
Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def open_network(path: str, file_format: str, compute: str = "float32") -> Network:
    """Opens the network of a model file.

    Args:
      path: Path of the file.
      file_format: One of `RUNTIMES`.
      compute: Type in which the network computes: "float32"; for "openvino" also "bfloat16".

    Raises:
      ImportError: The runtime is not installed.
    """
    return RUNTIMES[file_format](path, compute)


def _openvino(path: str, compute: str) -> Network:
    import openvino

    hint = {"float32": "f32", "bfloat16": "bf16"}[compute]
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})

    def network(image):
        results = model({INPUT: image})
        return tuple(results[name] for name in OUTPUTS)

    return network


def _onnx(path: str, compute: str) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: tuple(session.run(list(OUTPUTS), {INPUT: image}))


def _litert(path: str, compute: str) -> Network:
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(path, num_threads=os.cpu_count()).get_signature_runner()

    def network(image):
        results = run(**{INPUT: image})
        return tuple(results[name] for name in OUTPUTS)

    return network


RUNTIMES = {"onnx": _onnx, "openvino": _openvino, "litert": _litert}
