"""Exports a model as a SavedModel for TF Serving and `Predictor`: written, run elsewhere, compared, renamed."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

import maxdl_tf
from maxdl_tf import class_table
from maxdl_tf.checkpoints.source import check_no_pattern
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError
from maxdl_tf.export.serving_model import ServingModel, ServingOptions, png_holds_labels, write_warm_up_requests
from maxdl_tf.export.verification import Agreement, Reference, verify
from maxdl_tf.files.new_folder import appears_when_complete, check_new_folder
from maxdl_tf.inference.portable_backend import EXPORT_INFO_FILE
from maxdl_tf.inference.segmenter import ImageSegmenter
from maxdl_tf.models.network import PanopticNetwork
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.panoptic_ids import MAX_SEGMENT_ID

_DEFAULT_OPTIONS = ServingOptions()


class ExportReport(NamedTuple):
    """Facts about an export.

    Attributes:
      path: Path of the folder.
      megabytes: Size of all its files in units of 2^20 bytes.
      num_weights: Number of scalars in the network's variables.
      num_images: Number of images on which it was compared.
      agreement: Agreement with the model on these images.
      seconds: Time for writing and comparing.
    """

    path: str
    megabytes: float
    num_weights: int
    num_images: int
    agreement: Agreement
    seconds: float


def export_saved_model(
    model: PanopticNetwork,
    postprocessor: Postprocessor,
    *,
    crop_size: tuple[int, int],
    dataset_info: DatasetInfo,
    export_dir: str,
    origin: dict[str, str | int],
    inference_model: PanopticNetwork | None = None,
    tiles: tuple[int, int] = (0, 0),
    options: ServingOptions = _DEFAULT_OPTIONS,
    images: Mapping[str, bytes] | None = None,
    min_agreement: float = 1.0,
    log: Callable[[str], None] = lambda text: None,
) -> ExportReport:
    """Writes a SavedModel and verifies that it predicts what the model predicts.

    `serving_model` documents its signatures. The folder appears under its name only after another process loaded the
    SavedModel and it gave the labels of the model (`verification`). After a failure, no folder remains.

    Args:
      model: Model with its final weights; the export is compared with it.
      postprocessor: Makes the panoptic map from the outputs.
      crop_size: (height, width) of the network's input.
      dataset_info: Class table, stored with the model.
      export_dir: Path of the folder to create; an empty folder may exist there.
      origin: Origin of the weights, stored with the model for human readers.
      inference_model: Model to export, such as `fold_batch_norms(model)`. Default: `model`.
      tiles: `Predictor.tile` and `.tile_overlap`, stored with the model. The signatures see each image as a whole.
      options: Limits and optional outputs of the signatures.
      images: Contents of upright JPEG or PNG files by name, to compare on. Default: `comparison_images`.
      min_agreement: Least share of each image's pixels that must have the model's label.
      log: Called with a line at the beginning of each part.

    Raises:
      UserError: `export_dir` is taken or cannot be written.
      RuntimeError: The SavedModel does not predict what the model predicts.
    """
    started = time.monotonic()
    check_export_dir(export_dir)
    if not png_holds_labels(dataset_info):
        log(
            f"no signature panoptic_png: labels of {dataset_info.name!r} do not fit into PNGs, whose limit is "
            f"{MAX_SEGMENT_ID}; it needs a smaller label_divisor than {dataset_info.label_divisor}"
        )
    images = comparison_images(crop_size) if images is None else images
    with appears_when_complete(export_dir) as temporary, tempfile.TemporaryDirectory() as assets:
        info = {
            **export_info(postprocessor, crop_size, tiles),
            "network_batch": options.network_batch,
            **origin,
        }
        segmenter = ImageSegmenter(inference_model or model, postprocessor, crop_size, score_map=options.score_maps)
        exported = ServingModel(
            segmenter,
            dataset_info,
            options,
            {
                "dataset_info": _write(assets, class_table.FILE_NAME, class_table.to_text(dataset_info)),
                "dataset_info_json": _write(assets, class_table.JSON_FILE_NAME, class_table.to_json(dataset_info)),
                "export_info": _write(assets, EXPORT_INFO_FILE, json.dumps(info, indent=2) + "\n"),
            },
        )
        log(f"writing {export_dir}")
        try:
            signatures = exported.signatures()
            tf.saved_model.save(exported, temporary, signatures=signatures)
            write_warm_up_requests(temporary, signatures, crop_size)
        except (OSError, tf.errors.OpError) as error:
            reason = re.sub(r"\{\{.*?\}\} ", "", str(error))  # Names of TensorFlow's nodes.
            raise UserError(f"cannot write {export_dir}: {reason}; is the disk full or read-only?") from error
        log(f"comparing it with the checkpoint's model on {len(images)} images")
        agreement = verify(Reference(model, postprocessor, crop_size), temporary, images, min_agreement)
        megabytes = megabytes_of(temporary)
    return ExportReport(
        path=export_dir,
        megabytes=megabytes,
        num_weights=sum(int(np.prod(variable.shape)) for variable in exported.weights),
        num_images=len(images),
        agreement=agreement,
        seconds=time.monotonic() - started,
    )


def export_info(postprocessor: Postprocessor, crop_size: tuple[int, int], tiles: tuple[int, int]) -> dict:
    """What `export_info.json` has in all formats; see `export_saved_model` for the arguments."""
    return {
        "name": "maxdl_tf",
        "version": maxdl_tf.__version__,
        "tensorflow": tf.__version__,
        "crop_size": list(crop_size),
        "postprocess": postprocessor.arguments,
        "tile": tiles[0],
        "tile_overlap": tiles[1],
    }


def check_export_dir(export_dir: str) -> None:
    """Raises UserError if a SavedModel cannot be written to this path."""
    check_no_pattern(export_dir)
    check_new_folder(export_dir, "export_dir", hint=" (for TF Serving: the next number in the model's folder)")


def comparison_images(crop_size: tuple[int, int]) -> dict[str, bytes]:
    """PNG files by name, the same ones for each crop size: soft blobs of color, in four shapes including the crop."""
    shapes = {"wide": (0.75, 1.25), "tall": (1.4, 0.6), "small": (0.3, 0.4), "crop": (1.0, 1.0)}
    images = {}
    for seed, (name, factors) in enumerate(shapes.items()):
        height, width = (max(2, round(side * factor)) for side, factor in zip(crop_size, factors))
        generator = np.random.default_rng(seed)
        blobs = generator.uniform(-60.0, 315.0, [1, 9, 12, 3]).astype(np.float32)
        blobs = tf.image.resize(blobs, [height, width], "bicubic")[0].numpy()
        pixels = np.clip(blobs + generator.normal(0.0, 8.0, [height, width, 3]), 0, 255).astype(np.uint8)
        images[f"drawn_{name}"] = tf.io.encode_png(pixels).numpy()
    return images


def _write(folder: str, name: str, text: str) -> str:
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def megabytes_of(folder: str) -> float:
    """Size of all files in a folder in units of 2^20 bytes."""
    sizes = [
        tf.io.gfile.stat(os.path.join(parent, name)).length
        for parent, _, names in tf.io.gfile.walk(folder)
        for name in names
    ]
    return sum(sizes) / 2**20
