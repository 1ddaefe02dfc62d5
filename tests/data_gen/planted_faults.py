"""Faults to plant in a copy of coco_sample, with the findings expected from maxdl-check-data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from maxdl_tf import panoptic_ids


class Copy:
    """A copy of coco_sample to plant faults in; `planted` has the kind, file and segment of each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.images, self.pngs = folder / "val2017", folder / "annotations" / "panoptic_val2017"
        self.json_path = folder / "annotations" / "panoptic_val2017.json"
        self.content = json.loads(self.json_path.read_text())
        self.annotation_of = {entry["image_id"]: entry for entry in self.content["annotations"]}
        self.is_thing = {entry["id"]: entry["isthing"] for entry in self.content["categories"]}
        self.unused = list(self.content["images"])
        self.planted: set[tuple[str, str, int | None]] = set()

    def take(self, suits=lambda image, segments: True) -> tuple[dict, dict]:
        """An image without a fault, and its annotation."""
        for image in self.unused:
            annotation = self.annotation_of[image["id"]]
            if suits(image, annotation["segments_info"]):
                self.unused.remove(image)
                return image, annotation
        raise AssertionError("no image is left that suits")

    def plant(self, kind: str, file: str, segment: int | None = None) -> None:
        self.planted.add((kind, file, segment))

    def ids(self, annotation: dict) -> np.ndarray:
        with Image.open(self.pngs / annotation["file_name"]) as png:
            return panoptic_ids.color_to_id(np.asarray(png))

    def draw(self, annotation: dict, ids: np.ndarray) -> None:
        Image.fromarray(panoptic_ids.id_to_color(ids)).save(self.pngs / annotation["file_name"])

    def recompute(self, annotation: dict, ids: np.ndarray) -> None:
        """Draws the ids and corrects areas and boxes."""
        self.draw(annotation, ids)
        for segment in annotation["segments_info"]:
            rows, columns = np.nonzero(ids == segment["id"])
            segment["area"] = len(rows)
            left, top = int(columns.min()), int(rows.min())
            segment["bbox"] = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]

    def image(self, entry: dict) -> Image.Image:
        with Image.open(self.images / entry["file_name"]) as image:
            image.load()
            return image.copy()


def image_file(kind, change):
    """A fault of an image's file, made by `change(copy, image entry, path)`."""

    def plant(copy):
        entry, _ = copy.take()
        change(copy, entry, copy.images / entry["file_name"])
        copy.plant(kind, entry["file_name"])

    return plant


def png_file(kind, change):
    """A fault of a PNG, made by `change(copy, annotation, path)`."""

    def plant(copy):
        _, annotation = copy.take()
        change(copy, annotation, copy.pngs / annotation["file_name"])
        copy.plant(kind, annotation["file_name"])

    return plant


def segment(kind, change, suits=lambda segment, is_thing: True):
    """A fault of the first suitable segment, made by `change(copy, annotation, segment)`."""

    def plant(copy):
        def has_one(image, segments):
            known_void = sum(s["area"] for s in segments) < image["height"] * image["width"] - 10
            return known_void and any(suits(s, copy.is_thing[s["category_id"]]) for s in segments)

        _, annotation = copy.take(has_one)
        chosen = next(s for s in annotation["segments_info"] if suits(s, copy.is_thing[s["category_id"]]))
        segment_id = change(copy, annotation, chosen)
        copy.plant(kind, annotation["file_name"], chosen["id"] if segment_id is None else segment_id)

    return plant


def _truncate(copy, entry, path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _rotate_exif(copy, entry, path):
    image, exif = copy.image(entry).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # Rotated back, the image fits its annotation.
    image.save(path, "JPEG", exif=exif, quality=95)


def _widen_png(copy, annotation, path):
    copy.draw(annotation, np.pad(copy.ids(annotation), [[0, 1], [0, 0]]))


def _erase(copy, annotation, chosen):
    ids = copy.ids(annotation)
    ids[ids == chosen["id"]] = 0
    copy.draw(annotation, ids)


def _split_in_two(copy, annotation, chosen):
    ids, new_id = copy.ids(annotation), 4242
    middle = int(np.median(np.nonzero(ids == chosen["id"])[1]))
    right = (ids == chosen["id"]) & (np.arange(ids.shape[1]) > middle)
    ids[right] = new_id
    annotation["segments_info"].append({**chosen, "id": new_id})
    copy.recompute(annotation, ids)
    return new_id


def _interior(ids: np.ndarray, segment_id: int) -> tuple[int, int]:
    """A pixel inside a segment: its neighbors belong to the segment, too."""
    mask = ids == segment_id
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return tuple(np.argwhere(inner)[0] + 1)


def _hole(copy, annotation, chosen):
    ids = copy.ids(annotation)
    ids[_interior(ids, chosen["id"])] = 0
    copy.recompute(annotation, ids)


def _speck(copy, annotation, chosen):
    ids = copy.ids(annotation)
    ids[_interior(ids, chosen["id"])] = 4243
    annotation["segments_info"].append({**chosen, "id": 4243})
    copy.recompute(annotation, ids)
    return 4243


def _add(**changes):
    """Lists a segment twice, the second time with changes."""

    def change(copy, annotation, chosen):
        annotation["segments_info"].append({**chosen, **changes})
        return changes.get("id")

    return change


def _set(**changes):
    return lambda copy, annotation, chosen: chosen.update(changes)


def _all_void(copy, annotation, path):
    annotation["segments_info"].clear()
    copy.draw(annotation, np.zeros_like(copy.ids(annotation)))


def _overlap(copy):
    image, annotation = copy.take()
    for chosen in annotation["segments_info"][:2]:
        chosen["area"] = image["height"] * image["width"] - 1
        copy.plant("area", annotation["file_name"], chosen["id"])
    copy.plant("overlap", annotation["file_name"])


def _leak(copy):
    sizes = {}
    for name in sorted((copy.folder / "train2017").iterdir()):
        with Image.open(name) as image:
            sizes.setdefault((image.height, image.width), name)
    entry, _ = copy.take(lambda image, segments: (image["height"], image["width"]) in sizes)
    with Image.open(sizes[entry["height"], entry["width"]]) as image:
        image.save(copy.images / entry["file_name"], "PNG")  # Other bytes, same pixels.
    copy.plant("leak", entry["file_name"])


def _repeated_image(copy):
    def size(image):
        return image["height"], image["width"]

    sizes = [size(image) for image in copy.unused]
    entry, _ = copy.take(lambda image, segments: sizes.count(size(image)) > 1)
    other, _ = copy.take(lambda image, segments: size(image) == size(entry))
    shutil.copy(copy.images / entry["file_name"], copy.images / other["file_name"])
    copy.plant("image-repeated", other["file_name"])


def _not_annotated(copy):
    entry, annotation = copy.take()
    copy.content["annotations"].remove(annotation)
    copy.plant("image-not-annotated", entry["file_name"])
    copy.plant("png-not-listed", annotation["file_name"])


def _without_image(copy):
    entry, annotation = copy.take()
    copy.content["images"].remove(entry)
    copy.plant("annotation-without-image", annotation["file_name"])
    copy.plant("image-not-listed", entry["file_name"])


def _annotated_twice(copy):
    _, annotation = copy.take()
    copy.content["annotations"].append(annotation)
    copy.plant("annotation-repeated", annotation["file_name"])


def _listed_twice(copy):
    entry, _ = copy.take()
    copy.content["images"].append({**entry, "id": 987654321})
    copy.plant("image-listed-twice", entry["file_name"])
    copy.plant("image-not-annotated", entry["file_name"])
    copy.plant("image-repeated", entry["file_name"])


def _id_repeated(copy):
    entry, _ = copy.take()
    copy.content["images"].append({**entry, "file_name": "other.jpg"})
    copy.plant("image-id-repeated", "other.jpg")


def _categories(copy):
    table = copy.content["categories"]
    table.append({**table[3], "name": "again"})
    table[0] = {**table[0], "name": table[1]["name"]}
    copy.plant("category-repeated", copy.json_path.name)
    copy.plant("category-name-repeated", copy.json_path.name)
    copy.plant("categories-differ", copy.json_path.name)


FAULTS = {
    "image is missing": image_file("image-missing", lambda copy, entry, path: path.unlink()),
    "image is truncated": image_file("image-undecodable", _truncate),
    "image is a GIF": image_file("image-format", lambda copy, entry, path: copy.image(entry).save(path, "GIF")),
    "image is rotated by EXIF": image_file("image-rotated", _rotate_exif),
    "image is CMYK": image_file("image-cmyk", lambda c, entry, path: c.image(entry).convert("CMYK").save(path, "JPEG")),
    "image is gray": image_file("image-gray", lambda c, entry, path: c.image(entry).convert("L").save(path, "JPEG")),
    "image has another size": image_file(
        "image-size", lambda copy, entry, path: copy.image(entry).crop((0, 0, 90, 80)).save(path, "JPEG")
    ),
    "PNG is missing": png_file("png-missing", lambda copy, annotation, path: path.unlink()),
    "PNG is truncated": png_file("png-undecodable", _truncate),
    "PNG is gray": png_file(
        "png-mode", lambda c, annotation, path: Image.fromarray(c.ids(annotation).astype(np.uint8)).save(path)
    ),
    "PNG has another size": png_file("png-size", _widen_png),
    "all is void": png_file("all-void", _all_void),
    "segment is not listed": segment("segment-not-listed", lambda c, a, chosen: a["segments_info"].remove(chosen)),
    "segment is not drawn": segment("segment-not-drawn", _erase),
    "segment is listed twice": segment("segment-repeated", _add()),
    "segment has id 0": segment("segment-id", _add(id=0)),
    "category is unknown": segment("category-unknown", _set(category_id=999)),
    "area is off by one": segment("area", lambda c, a, chosen: chosen.update(area=chosen["area"] + 1)),
    "box is off": segment("box", lambda c, a, chosen: chosen["bbox"].__setitem__(2, chosen["bbox"][2] + 1)),
    "stuff is split": segment("stuff-split", _split_in_two, lambda s, is_thing: not is_thing and s["area"] > 500),
    "crowd of stuff": segment("crowd-of-stuff", _set(iscrowd=1), lambda s, is_thing: not is_thing),
    "crowd value": segment("crowd-value", _set(iscrowd=2), lambda s, is_thing: is_thing and not s["iscrowd"]),
    "hole": segment("hole", _hole, lambda s, is_thing: s["area"] > 2000),
    "speck": segment("segment-tiny", _speck, lambda s, is_thing: is_thing and s["area"] > 2000),
    "areas overlap": _overlap,
    "leak": _leak,
    "image is repeated": _repeated_image,
    "image is not annotated": _not_annotated,
    "annotation has no image": _without_image,
    "image is annotated twice": _annotated_twice,
    "image is listed twice": _listed_twice,
    "id of two images": _id_repeated,
    "categories": _categories,
    "image is no image": image_file("image-undecodable", lambda copy, entry, path: path.write_text("text")),
    "segment has too large an id": segment("segment-id", _add(id=2**24)),
}
