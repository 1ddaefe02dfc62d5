"""Exports a network for ONNX Runtime, OpenVINO or LiteRT: written, run without TensorFlow, compared, renamed.

The folder has all that makes label maps of images, with NumPy, SciPy and the runtime:

    model.onnx, model.xml and model.bin (OpenVINO), or model.tflite (LiteRT)
    export_info.json       format, file, inputs and outputs, post-processing, versions, origin of the weights
    dataset_info.json      the class table; also as dataset_info.textproto, for this package
    numpy_pipeline.py      the steps before and after the network

The network takes `image`, float32 [1, height, width, 3], RGB in 0..255, resized and padded to the crop. It returns
`mask_logits` and `class_logits`. Its input is not uint8, because resizing gives fractions and the padding is 127.5.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError
from maxdl_tf.export.saved_model import ExportReport, comparison_images, export_info, megabytes_of
from maxdl_tf.export.verification import Reference, decode, verify
from maxdl_tf.files import storage
from maxdl_tf.files.new_folder import appears_when_complete, check_new_folder
from maxdl_tf.inference import numpy_pipeline
from maxdl_tf.inference.portable_backend import EXPORT_INFO_FILE, missing_extra
from maxdl_tf.inference.runtimes import INPUT, OUTPUTS
from maxdl_tf.models.network import PanopticNetwork
from maxdl_tf.models.postprocess import Postprocessor

_OPSET = 17  # Of ONNX.


class PortableNetwork(tf.Module):
    """The network of an export, without the steps around it.

    Args:
      model: The network, such as `fold_batch_norms(model)`.
      crop_size: (height, width) of its input.

    Attributes:
      run: Function from float32 [1, height, width, 3] to mask logits and class logits by name.
      weights: Variables that it reads.
    """

    def __init__(self, model: PanopticNetwork, crop_size: tuple[int, int]):
        super().__init__(name="maxdl_tf")
        signature = [tf.TensorSpec([1, *crop_size, 3], tf.float32, name=INPUT)]

        @tf.function(input_signature=signature, autograph=False)
        def run(image):
            outputs = model(image, training=False)
            return {name: getattr(outputs, name) for name in OUTPUTS}

        self.run = run
        self.weights = list(run.get_concrete_function().graph.variables)

    def save(self, folder: str) -> None:
        """Writes a SavedModel with the signature `serving_default`."""
        tf.saved_model.save(self, folder, signatures=self.run.get_concrete_function())


def _write_onnx(network: PortableNetwork, path: str, weights: str, inputs: Iterable[np.ndarray]) -> None:
    import onnx
    import tf2onnx

    model, _ = tf2onnx.convert.from_function(network.run, network.run.input_signature, opset=_OPSET)
    # Runtimes multiply sizes by these scales and round down, but 5 times float32 9/5 is less than 9. With aligned
    # corners, as everywhere here, the scales decide nothing else.
    scales = {node.input[2] for node in model.graph.node if node.op_type == "Resize"}
    for constant in model.graph.initializer:
        if constant.name in scales:
            values = onnx.numpy_helper.to_array(constant)
            values = np.where(values == 1, values, values * np.float32(1 + 1e-6))
            constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
    onnx.save(model, path)
    if weights == "int8":
        _quantize_onnx(path, inputs)


def _quantize_onnx(path: str, inputs: Iterable[np.ndarray]) -> None:
    """Makes convolutions and matrix products of a file compute in int8, with the ranges of values on some inputs."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    feeds = ({INPUT: image} for image in inputs)

    class Inputs(quantization.CalibrationDataReader):
        def get_next(self):
            return next(feeds, None)

    quant_pre_process(path, path, skip_symbolic_shape=True)
    quantization.quantize_static(
        path,
        path,
        Inputs(),
        op_types_to_quantize=["Conv", "MatMul"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def _write_openvino(network: PortableNetwork, path: str, weights: str, inputs: Iterable[np.ndarray]) -> None:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        network.save(folder)
        # Not openvino.convert_model, which does the same and reports the use of OpenVINO.
        openvino.save_model(openvino.Core().read_model(folder), path, compress_to_fp16=False)


def _write_litert(network: PortableNetwork, path: str, weights: str, inputs: Iterable[np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        network.save(folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if weights == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]  # Dynamic range: activations are quantized on the fly.
        content = converter.convert()
    storage.write_file(path, content)


class Format(NamedTuple):
    """How a format is written.

    Attributes:
      file: Name of the model file.
      write: Writes it; takes the network, the path, the type of the stored weights, and inputs of the network that
        show the ranges of its values.
      packages: Modules of the format's extra.
    """

    file: str
    write: Callable[[PortableNetwork, str, str, Iterable[np.ndarray]], None]
    packages: tuple[str, ...]


FORMATS = {
    "onnx": Format("model.onnx", _write_onnx, ("tf2onnx", "onnxruntime")),
    "openvino": Format("model.xml", _write_openvino, ("openvino",)),
    "litert": Format("model.tflite", _write_litert, ("ai_edge_litert.interpreter",)),
}


def check_format(file_format: str, export_dir: str) -> None:
    """Raises UserError if the packages of a format are missing, or the folder cannot be written."""
    for package in FORMATS[file_format].packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise missing_extra(file_format, error) from error
    if storage.is_remote(export_dir):
        raise UserError(f"--export_dir {export_dir}: --format {file_format} writes to this machine only")
    check_new_folder(export_dir, "export_dir")


def export_portable_model(
    model: PanopticNetwork,
    postprocessor: Postprocessor,
    *,
    file_format: str,
    crop_size: tuple[int, int],
    dataset_info: DatasetInfo,
    export_dir: str,
    origin: dict[str, str | int],
    inference_model: PanopticNetwork | None = None,
    tiles: tuple[int, int] = (0, 0),
    weights: str = "float32",
    calibration_images: Mapping[str, bytes] | None = None,
    images: Mapping[str, bytes] | None = None,
    min_agreement: float = 1.0,
    log: Callable[[str], None] = lambda text: None,
) -> ExportReport:
    """Writes a network in another format than SavedModel and verifies that it predicts what the model predicts.

    The folder appears under its name only after a process without TensorFlow and this package made the labels of the
    model with its files. After a failure, no folder remains.

    Args:
      model, postprocessor, crop_size, dataset_info, export_dir, origin, inference_model, tiles, images, min_agreement,
        log: As for `export_saved_model`. `export_dir` is local.
      file_format: One of `FORMATS`.
      weights: Type of the stored weights, "float32"; for "onnx" and "litert" also "int8".
      calibration_images: Contents of upright JPEG or PNG files, by name: for "onnx" in "int8", which takes the ranges
        of all values from them.

    Raises:
      UserError: A package of the format is missing, or `export_dir` is taken or cannot be written.
      RuntimeError: The network cannot be converted, or does not predict what the model predicts.
    """
    started = time.monotonic()
    check_format(file_format, export_dir)
    images = comparison_images(crop_size) if images is None else images
    chosen = FORMATS[file_format]
    with appears_when_complete(export_dir) as temporary:
        network = PortableNetwork(inference_model or model, crop_size)
        info = {
            **export_info(postprocessor, crop_size, tiles),
            "format": file_format,
            "file": chosen.file,
            **_inputs_and_outputs(network),
            **origin,
        }
        log(f"writing {export_dir}")
        try:
            for name, text in (
                (EXPORT_INFO_FILE, json.dumps(info, indent=2) + "\n"),
                (class_table.FILE_NAME, class_table.to_text(dataset_info)),
                (class_table.JSON_FILE_NAME, class_table.to_json(dataset_info)),
            ):
                storage.write_file(os.path.join(temporary, name), text.encode())
            shutil.copy(numpy_pipeline.__file__, temporary)
            pipeline = numpy_pipeline.Pipeline.of_folder(temporary)
            inputs = (pipeline.network_input(decode(image).numpy()) for image in (calibration_images or {}).values())
            chosen.write(network, os.path.join(temporary, chosen.file), weights, inputs)
        except OSError as error:
            raise UserError(f"cannot write {export_dir}: {error}; is the disk full or read-only?") from error
        except Exception as error:  # Each converter has its own errors.
            raise RuntimeError(f"the network cannot be converted to {file_format} ({error})") from error
        log(f"comparing it with the checkpoint's model on {len(images)} images")

        def read_off(mask_logits: np.ndarray, class_logits: np.ndarray, image_size: np.ndarray) -> np.ndarray:
            return pipeline.postprocess(mask_logits[0], class_logits[0], image_size)[0]

        agreement = verify(Reference(model, postprocessor, crop_size, read_off), temporary, images, min_agreement)
        megabytes = megabytes_of(temporary)
    return ExportReport(
        path=export_dir,
        megabytes=megabytes,
        num_weights=sum(int(np.prod(variable.shape)) for variable in network.weights),
        num_images=len(images),
        agreement=agreement,
        seconds=time.monotonic() - started,
    )


def _inputs_and_outputs(network: PortableNetwork) -> dict[str, dict[str, dict]]:
    """Types and shapes by name, for `export_info.json`."""
    inputs = {INPUT: network.run.input_signature[0]}
    outputs = network.run.get_concrete_function().structured_outputs
    return {
        kind: {name: {"type": spec.dtype.name, "shape": spec.shape.as_list()} for name, spec in specs.items()}
        for kind, specs in (("inputs", inputs), ("outputs", {name: outputs[name] for name in OUTPUTS}))
    }
