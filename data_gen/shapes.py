"""Draws a panoptic data set: disks, squares and triangles in front of sky, ground and water.

Things overlap; they vary in color, shading, texture, size and rotation. Stuff differs by texture and has irregular
borders. An image depends only on the seed, the split and its number.

Example:
  maxdl-convert shapes --split train --count 4000 --output_dir shapes_tfrecords
  maxdl-convert shapes --split val --count 100 --output_dir shapes_tfrecords
"""

from __future__ import annotations

import colorsys
import functools
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from maxdl_tf import class_table, command_line, panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data_gen import converter_flags, shard_writer
from maxdl_tf.data_gen.annotated_images import AnnotatedImage
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

DATASET_INFO_FILE = Path(__file__).resolve().parent.parent / "configs" / "datasets" / "shapes.textproto"

FLAGS = flags.FlagValues()
_COUNT = flags.DEFINE_integer("count", 1000, "Number of images.", lower_bound=1, flag_values=FLAGS)
_HEIGHT = flags.DEFINE_integer("height", 129, "Height of the images in pixels.", lower_bound=32, flag_values=FLAGS)
_WIDTH = flags.DEFINE_integer("width", 129, "Width of the images in pixels.", lower_bound=32, flag_values=FLAGS)
_MAX_THINGS = flags.DEFINE_integer(
    "max_things", 5, "Largest number of things in an image.", lower_bound=1, flag_values=FLAGS
)
_MIN_SIZE = flags.DEFINE_float(
    "min_size",
    0.15,
    "Size of the smallest things as a fraction of the image's shorter side; the largest reach 0.5.",
    lower_bound=0.1,
    upper_bound=0.5,
    flag_values=FLAGS,
)
_IMAGE_DIR = flags.DEFINE_string("image_dir", None, "Folder for copies of the images as JPEG files.", flag_values=FLAGS)
_CLASS_FOLDERS = flags.DEFINE_string(
    "class_folders",
    None,
    "Folder for copies of the images as CLASS/NAME.jpg, by the class of the largest thing.",
    flag_values=FLAGS,
)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed; equal seeds give equal images.", lower_bound=0, flag_values=FLAGS)
converter_flags.define_output(FLAGS)

_JPEG_QUALITY = 95
_MAX_SIZE = 0.5  # Size of the largest things as a fraction of the shorter side.
_SMALLEST_VISIBLE_SHARE = 0.4  # A thing that would hide more of another one is drawn elsewhere or not at all.
_SMALLEST_STUFF_SHARE = 0.02  # Stuff with a smaller share of the image goes to the stuff around it.
_TRIES_PER_THING = 8


def main(argv: list[str]) -> int:
    del argv
    output = converter_flags.read_output(FLAGS)
    info = dataset_info()
    if _MAX_THINGS.value >= info.label_divisor:
        raise UserError(
            f"--max_things={_MAX_THINGS.value}: a label map holds at most {info.label_divisor - 1} instances"
        )
    folders = [Path(_IMAGE_DIR.value)] if _IMAGE_DIR.value else []
    if _CLASS_FOLDERS.value:
        folders += [Path(_CLASS_FOLDERS.value, info.by_id[class_id].name) for class_id in info.thing_ids]
    with command_line.user_errors(OSError):
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    painter = Painter(
        _HEIGHT.value,
        _WIDTH.value,
        _MAX_THINGS.value,
        _SEED.value,
        output.split,
        min_size=_MIN_SIZE.value,
        image_dir=_IMAGE_DIR.value,
        class_folders=_CLASS_FOLDERS.value,
    )
    print(shard_writer.write_shards(range(_COUNT.value), painter.annotate, info, output))
    return 0


@functools.cache
def dataset_info() -> DatasetInfo:
    """Returns the class table of the drawn images."""
    return class_table.load(str(DATASET_INFO_FILE))


def largest_thing(label: np.ndarray) -> str:
    """Returns the class name of the thing with the most pixels in a label map, int [height, width]."""
    info = dataset_info()
    values, areas = np.unique(label[label % info.label_divisor > 0], return_counts=True)
    return info.by_id[values[areas.argmax()] // info.label_divisor].name


class Drawing(NamedTuple):
    """An image, uint8 [height, width, 3], and its label map, int32 [height, width]."""

    image: np.ndarray
    label: np.ndarray


class _Shape(NamedTuple):
    """A disk, square or triangle; `distance`, float [height, width], is signed, in pixels, and negative inside."""

    kind: str
    distance: np.ndarray
    size: float


@dataclass(frozen=True)
class Painter:
    """Draws the images of one split.

    Attributes:
      height: Height in pixels.
      width: Width in pixels.
      max_things: Largest number of things in an image; the smallest is 1.
      seed: Random seed.
      split: Name of the split; images of different splits differ.
      min_size: Size of the smallest things as a fraction of the image's shorter side.
      image_dir: Folder for copies of the images as files.
      class_folders: Folder for copies in subfolders, by the class of the largest thing.
    """

    height: int
    width: int
    max_things: int
    seed: int
    split: str
    min_size: float = 0.15
    image_dir: str | None = None
    class_folders: str | None = None

    def annotate(self, index: int) -> AnnotatedImage:
        """Draws image number `index` and compresses it."""
        drawing = self.draw(index)
        file = io.BytesIO()
        Image.fromarray(drawing.image).save(file, format="JPEG", quality=_JPEG_QUALITY)
        image_id = f"shapes_{self.split}_{index:06d}"
        if self.image_dir:
            storage.write_file(os.path.join(self.image_dir, f"{image_id}.jpg"), file.getvalue())
        if self.class_folders:
            name = largest_thing(drawing.label)
            storage.write_file(os.path.join(self.class_folders, name, f"{image_id}.jpg"), file.getvalue())
        return AnnotatedImage(file.getvalue(), "jpeg", drawing.label, image_id)

    def draw(self, index: int) -> Drawing:
        """Draws image number `index`."""
        random = np.random.default_rng([self.seed, zlib.crc32(self.split.encode()), index])
        info = dataset_info()
        class_id = {entry.name: entry.id for entry in info.classes}
        shapes = self._place_things(random)
        stuff = self._lay_out_stuff(random, np.any([shape.distance < 0 for shape in shapes], axis=0))

        image = np.zeros([self.height, self.width, 3])
        label = np.zeros([self.height, self.width], np.int32)
        for number, (name, paint) in enumerate((("sky", self._sky), ("ground", self._ground), ("water", self._water))):
            region = stuff == number
            if region.any():
                image[region] = paint(random)[region]
                label[region] = panoptic_ids.encode_label(class_id[name], 0, info.label_divisor)
        instances = dict.fromkeys(class_id, 0)
        for shape in shapes:
            instances[shape.kind] += 1
            touched = np.nonzero(shape.distance < 0.5)  # Borders are blended over one pixel.
            behind = image[touched]
            opacity = np.minimum(0.5 - shape.distance[touched], 1)[:, np.newaxis]
            color = _color_unlike(random, behind.mean(axis=0))
            image[touched] = behind + opacity * (_surface(random, color, shape.size, *touched) - behind)
            label[shape.distance < 0] = panoptic_ids.encode_label(
                class_id[shape.kind], instances[shape.kind], info.label_divisor
            )
        image += random.normal(0, 4, image.shape)
        return Drawing(np.clip(np.round(image), 0, 255).astype(np.uint8), label)

    # --- layout ---

    def _place_things(self, random: np.random.Generator) -> list[_Shape]:
        """Places shapes from back to front; each remains sufficiently visible."""
        shapes: list[_Shape] = []
        for _ in range(random.integers(1, self.max_things + 1)):
            for _ in range(_TRIES_PER_THING):
                shape = self._random_shape(random)
                if all(_visible_shares([*shapes, shape]) >= _SMALLEST_VISIBLE_SHARE):
                    shapes.append(shape)
                    break
        return shapes

    def _random_shape(self, random: np.random.Generator) -> _Shape:
        kind = random.choice(["disk", "square", "triangle"])
        size = random.uniform(self.min_size, _MAX_SIZE) * min(self.height, self.width)
        # Centers stay inside, so that most of every shape is visible.
        center = random.uniform(0.3 * size, np.array([self.height, self.width]) - 0.3 * size)
        y, x = np.mgrid[: self.height, : self.width] - (center - 0.5)[:, np.newaxis, np.newaxis]
        angle = random.uniform(0, 2 * np.pi)
        if kind == "disk":
            distance = np.hypot(x, y) - size / 2
        elif kind == "square":
            u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            distance = np.maximum(abs(u), abs(v)) - 0.42 * size
        else:
            normals = angle + np.array([0, 2, 4]) * np.pi / 3
            distance = np.max([x * np.cos(normal) + y * np.sin(normal) for normal in normals], axis=0) - 0.3 * size
        return _Shape(str(kind), distance, size)

    def _lay_out_stuff(self, random: np.random.Generator, covered: np.ndarray) -> np.ndarray:
        """int [height, width]: 0, sky, above an irregular horizon; 1, ground, below it; sometimes 2, a lake in it."""
        y, x = np.mgrid[: self.height, : self.width] / np.array([self.height, self.width]).reshape(2, 1, 1)
        horizon = random.uniform(0.3, 0.7) + random.uniform(-0.25, 0.25) * (x - 0.5)
        horizon += 0.25 * (self._noise(random, 4)[:1] - 0.5) + 0.06 * (self._noise(random, 16)[:1] - 0.5)
        stuff = np.where(y < horizon, 0, 1)
        lake_y, lake_x = random.uniform([0.55, 0.1], [1.0, 0.9])
        radius = np.hypot((y - lake_y) * random.uniform(1.3, 2.2), x - lake_x) + 0.35 * (self._noise(random, 6) - 0.5)
        if random.random() < 0.6:
            stuff[(radius < random.uniform(0.25, 0.5)) & (y > horizon + 0.03)] = 2
        shares = np.bincount(stuff[~covered], minlength=3) / stuff.size
        return np.where(shares < _SMALLEST_STUFF_SHARE, np.argmax(shares), np.arange(3))[stuff]

    # --- appearance of stuff: float [height, width, 3], 0..255 ---

    def _sky(self, random: np.random.Generator) -> np.ndarray:
        """A smooth gradient with soft clouds."""
        hue = random.uniform(0.52, 0.64) if random.random() < 0.7 else random.uniform(0.95, 1.08)
        top, bottom = (_rgb(hue % 1, random.uniform(0.25, 0.6), random.uniform(0.7, 0.95)) for _ in range(2))
        slope = np.linspace(0, 1, self.height)[:, np.newaxis, np.newaxis]
        clouds = np.clip(2 * self._noise(random, 5)[..., np.newaxis] - 0.9, 0, 1) * random.uniform(0.3, 1)
        sky = top + (bottom - top) * slope
        return sky + 0.8 * clouds * (245 - sky)

    def _ground(self, random: np.random.Generator) -> np.ndarray:
        """Coarse grain on brown or green."""
        color = _rgb(random.uniform(0.07, 0.33), random.uniform(0.35, 0.7), random.uniform(0.35, 0.65))
        patches = 0.6 * (self._noise(random, 10) - 0.5)
        grain = random.uniform(-0.45, 0.45, [self.height, self.width])
        return color * (1 + patches + grain)[..., np.newaxis]

    def _water(self, random: np.random.Generator) -> np.ndarray:
        """Waves across blue or teal."""
        color = _rgb(random.uniform(0.48, 0.66), random.uniform(0.5, 0.9), random.uniform(0.35, 0.7))
        wavelength = random.uniform(5, 9)
        phase = np.arange(self.height)[:, np.newaxis] / wavelength + 1.5 * self._noise(random, 8)
        return color * (1 + 0.3 * np.sin(2 * np.pi * phase))[..., np.newaxis]

    def _noise(self, random: np.random.Generator, cells: int) -> np.ndarray:
        """Smooth noise 0..1, float [height, width], with about `cells` bumps across the longer side."""
        grid = Image.fromarray(random.random([cells + 1, cells + 1], dtype=np.float32))
        return np.clip(np.asarray(grid.resize((self.width, self.height), Image.Resampling.BICUBIC)), 0, 1)


def _visible_shares(shapes: list[_Shape]) -> np.ndarray:
    """Visible fraction of each shape, from back to front."""
    owner = np.full(shapes[0].distance.shape, -1)
    for number, shape in enumerate(shapes):
        owner[shape.distance < 0] = number
    visible = np.bincount(owner[owner >= 0], minlength=len(shapes))
    return visible / [np.sum(shape.distance < 0) for shape in shapes]


def _surface(random: np.random.Generator, color: np.ndarray, size: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Colors of a thing at points y, x [points]: plain, striped or dotted, brighter towards one side; [points, 3]."""
    light, stripe = random.uniform(0, 2 * np.pi, 2)
    shade = 1 + random.uniform(0, 0.5) * np.cos((x * np.cos(light) + y * np.sin(light)) / size)
    frequency = 2 * np.pi / (size * random.uniform(0.15, 0.35))
    strength = random.uniform(0.08, 0.25)
    kind = random.choice(["plain", "stripes", "dots"])
    if kind != "plain":
        texture = np.sin(frequency * (x * np.cos(stripe) + y * np.sin(stripe)))
        if kind == "dots":
            texture = texture * np.sin(frequency * (y * np.cos(stripe) - x * np.sin(stripe))) - 0.3
        shade *= 1 + strength * np.sign(texture)
    return color * shade[:, np.newaxis]


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _color_unlike(random: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """A strong color that differs clearly from `other`."""
    for _ in range(20):
        color = _rgb(random.random(), random.uniform(0.4, 1), random.uniform(0.35, 1))
        if np.linalg.norm(color - other) > 80:
            break
    return color
