"""Makes the compact goldens of this folder from the reference material: python -m tests.golden.compact ../shared.

README.md beside it lists what each golden holds and what was left out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
# Number of significant bits of packed weights, of float32's 24. A network amplifies what is cut off: the largest errors
# of S's outputs, relative to the largest value, are 2e-3 with 16 bits and 3e-2 with 12.
WEIGHT_BITS = 19
# Rows of a table of relative positions that a 65 x 65 image reads: its feature at stride 16 is 5 x 5.
POSITIONS = slice(254 - 4, 254 + 5)
IS_POSITIONS = "_rpe/embeddings"
# Weights of L up to the end of the pretrained hourglass, with memory and transformers.
PART_OF_L = re.compile(r"encoder/(memory_feature|_stem/|_stage[1-5]/|_decoder_stage[1-4](_resized_fuse)?/)")
ENDPOINTS_OF_L = ("stage1", "stage2", "stage3", "stage4", "stage5", "backbone_output")
OUTPUTS = (
    "pixel_space_normalized_feature",
    "pixel_space_mask_logits",
    "transformer_class_logits",
    "semantic_logits",
)


def pack(weights: dict[str, np.ndarray]) -> np.ndarray:
    """The weights in the order of their names as the bytes of float32, highest first: uint8 [4, values]."""
    values = np.concatenate([_read_part(key, weights[key]).ravel() for key in sorted(weights)])
    cut = 24 - WEIGHT_BITS
    rounded = (values.view(np.uint32).astype(np.uint64) + (1 << cut >> 1)) >> cut << cut
    return np.stack([(rounded >> shift & 255).astype(np.uint8) for shift in (24, 16, 8, 0)])


def unpack(packed: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The packed weights by name. Rows of positions that no image of the golden reads are 0."""
    values = np.ascontiguousarray(packed[::-1].T).view("<f4").ravel()
    weights, start = {}, 0
    for key in sorted(shapes):
        weights[key] = np.zeros(shapes[key], np.float32)
        part = _read_part(key, weights[key])
        part[...] = values[start : start + part.size].reshape(part.shape)
        start += part.size
    assert start == len(values), f"the golden holds {len(values)} weights; the model reads {start}"
    return weights


def _read_part(key: str, weight: np.ndarray) -> np.ndarray:
    return weight[POSITIONS] if IS_POSITIONS in key else weight


def _whole_model(source) -> dict[str, np.ndarray]:
    evaluation = source("b_tiny_s_eval")
    outputs = {f"out/{name}": evaluation[f"out/{name}"] for name in OUTPUTS}
    return {"weights": pack(source("b_tiny_s_weights")), "in/image": evaluation["in/image"], **outputs}


def _part_of_l(source) -> dict[str, np.ndarray]:
    weights, evaluation = source("b_tiny_l_weights"), source("b_tiny_l_eval")
    endpoints = {f"out/endpoint/{name}": evaluation[f"out/endpoint/{name}"] for name in ENDPOINTS_OF_L}
    weights = {key: value for key, value in weights.items() if PART_OF_L.match(key)}
    return {"weights": pack(weights), "in/image": evaluation["in/image"], **endpoints}


def _first_image(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch's first image. Gradients of the mean over the batch become those of the image's own loss."""
    images = len(next(value for key, value in golden.items() if key.startswith(("in/", "pred/"))))
    first = {key: value[:1] if value.ndim else value for key, value in golden.items()}
    return {key: value * np.float32(images) if "/grad/" in key else value for key, value in first.items()}


def _whole_kmax(source) -> dict[str, np.ndarray]:
    """Its weights have 8 significant bits already."""
    evaluation = source("k_tiny_r50_eval")
    kept = [f"{kind}/{name}" for kind in ("out", "sens") for name in OUTPUTS]
    weights = {f"w/{key}": value for key, value in source("k_tiny_r50_weights").items() if key != "info"}
    return {**weights, **{key: evaluation[key] for key in ("in/image", *kept)}}


def main(shared: str) -> None:
    def source(name: str) -> dict[str, np.ndarray]:
        with np.load(Path(shared, "reference", "golden", f"{name}.npz")) as archive:
            return dict(archive)

    goldens = {
        "b_whole_s": _whole_model(source),
        "b_part_of_l": _part_of_l(source),
        "k_whole_r50": _whole_kmax(source),
        **{name: source(name) for name in ("k_block_os32", "k_convnext_33x41")},
        "c_loss_one_image": _first_image(source("c_loss_typical")),
        "e_post_one_image": _first_image(source("e_post_s_rect_97x161")),
    }
    for name, golden in goldens.items():
        np.savez_compressed(FOLDER / f"{name}.npz", **golden)
        print(f"{name}: {(FOLDER / f'{name}.npz').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
