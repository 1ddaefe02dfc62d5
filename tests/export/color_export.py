"""The color network as a SavedModel, written in seconds: not compared, as maxdl-export does."""

from __future__ import annotations

import json
from pathlib import Path

import tensorflow as tf

from maxdl_tf import class_table
from maxdl_tf.export.serving_model import ServingModel, ServingOptions, write_warm_up_requests
from maxdl_tf.inference.segmenter import ImageSegmenter
from tests.inference.color_network import CROP_SIZE, INFO, ColorNetwork, postprocessor


def save_color_model(path: Path, network: ColorNetwork | None = None, **options) -> Path:
    """Writes it, or a changed one, to a folder, with these `ServingOptions`; returns the folder."""
    assets = path.parent / f"assets_of_{path.name}"
    assets.mkdir(parents=True)
    dataset_info, export_info = assets / class_table.FILE_NAME, assets / "export_info.json"
    dataset_info.write_text(class_table.to_text(INFO))
    export_info.write_text(json.dumps({"crop_size": CROP_SIZE, "postprocess": postprocessor().arguments}))
    score_map = options.get("score_maps", False)
    segmenter = ImageSegmenter(network or ColorNetwork(), postprocessor(), CROP_SIZE, score_map=score_map)
    paths = {"dataset_info": str(dataset_info), "export_info": str(export_info)}
    model = ServingModel(segmenter, INFO, ServingOptions(**options), paths)
    signatures = model.signatures()
    tf.saved_model.save(model, str(path), signatures=signatures)
    write_warm_up_requests(str(path), signatures, CROP_SIZE)
    return path
