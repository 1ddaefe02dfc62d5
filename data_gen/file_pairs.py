"""Images and label maps that belong together by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from maxdl_tf.data.coco_files import some
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class FilePair(NamedTuple):
    """An image and its label map.

    Attributes:
      name: What both are called, below their folders and without suffix.
      image: Its path; None if there is no image of the name.
      label: Its path; None if there is no label map of the name.
    """

    name: str
    image: str | None
    label: str | None

    def fault(self) -> str | None:
        """What is wrong with it, if anything."""
        if self.image is None:
            return f"{self.label}: there is no image called {self.name!r} to it"
        if self.label is None:
            return f"{self.image}: there is no label map called {self.name!r} to it"
        return None

    def check(self) -> None:
        """UserError if one of the two is missing."""
        if self.fault():
            raise UserError(f"{self.fault()}; add it, or leave such files out with --on_error skip")


def find_pairs(
    image_dir: str,
    label_dir: str,
    *,
    image_ending: str = "",
    label_ending: str = "",
    image_suffixes: Sequence[str] = IMAGE_SUFFIXES,
) -> list[FilePair]:
    """Pairs the images in a folder with the PNGs in another one, folders below them included, sorted by name.

    Args:
      image_dir: Folder of the images.
      label_dir: Folder of the label maps.
      image_ending: What an image's name ends with, before its suffix; files without it are left out.
      label_ending: The same of a label map.
      image_suffixes: Of images.

    Raises:
      UserError: If there is no pair at all, or two files have one name.
    """
    images = _by_name(image_dir, image_ending, tuple(image_suffixes))
    labels = _by_name(label_dir, label_ending, (".png",))
    if not images.keys() & labels.keys():
        raise UserError(
            f"no image in {image_dir} ({_examples(images)}) has a label map of its name in {label_dir} "
            f"({_examples(labels)}); name the files alike"
        )
    names = sorted({*images, *labels})
    return [FilePair(name, images.get(name), labels.get(name)) for name in names]


def check_pairs(pairs: Sequence[FilePair]) -> None:
    """UserError if a file has no partner: before a long conversion begins rather than in its midst."""
    faults = [pair.fault() for pair in pairs if pair.fault()]
    if faults:
        raise UserError(f"{some(faults)}; add them, or leave such files out with --on_error skip")


def _by_name(folder: str, ending: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in storage.find_files(folder, suffixes):
        stem = path.rpartition(".")[0]
        if not stem.endswith(ending):
            continue
        name = stem[: len(stem) - len(ending)]
        if name in found:
            raise UserError(f"{folder}/{path} and {found[name]} have the same name without suffix; rename one")
        found[name] = f"{folder}/{path}"
    return found


def _examples(files: dict[str, str]) -> str:
    return f"{len(files)} files, such as {min(files.values())}" if files else "no files"
