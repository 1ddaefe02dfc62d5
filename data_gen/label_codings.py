"""The codings of label PNGs: what a gray value, channels or a color mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from maxdl_tf.data_gen import source_files
from maxdl_tf.errors import UserError, some
from maxdl_tf.panoptic_ids import color_to_id

CODINGS = ("class_instance", "class", "instance")
_CHANNEL_DIVISOR = 2**16  # In PNGs with channels, instance = green + 256 blue.
_WIDE_DIVISOR = 2**24  # More than any gray value, and than any color as a number.
_VOID = -1
_MOST_COLORS_OF_A_TABLE = 20  # More unknown colors are not missing lines: the mask was scaled or compressed.


class Values(NamedTuple):
    """A label map before its classes get their ids.

    Attributes:
      values: int [height, width], class * divisor + instance, or a value of `void`.
      divisor: Divisor of the values.
      void: Values that mean void.
      in_channels: Whether class and instance are channels of the PNG.
    """

    values: np.ndarray
    divisor: int
    void: frozenset[int]
    in_channels: bool = False


@dataclass(frozen=True)
class Coding:
    """Meaning of the pixels of label PNGs.

    Attributes:
      kind: Meaning of gray values, one of CODINGS.
      label_divisor: Divisor of gray values of kind "class_instance".
      void_values: Gray values that mean void, or void classes in PNGs with channels.
      has_background: Whether value 0 of kind "instance" is class 2, a class of stuff.
      names_class_0: Whether class 0 has a name, so that it may have instances.
      colors: {color as a number: class number, or None for void} of color-coded masks; None for other masks.
      trusts_channels: Whether PNGs with channels hold class and instance even if they look color-coded.
    """

    kind: str = "class_instance"
    label_divisor: int = 256
    void_values: frozenset[int] = frozenset({0})
    has_background: bool = False
    names_class_0: bool = False
    colors: Mapping[int, int | None] | None = None
    trusts_channels: bool = False

    def read(self, path: str, instance_path: str | None = None) -> Values:
        """Reads a label PNG, and the mask of its instances if there is one.

        Raises:
          UserError: A file cannot be read or decoded, or does not have this coding.
        """
        if instance_path is not None:
            number = self._class_numbers(path)
            instance = _instance_numbers(instance_path)
            source_files.check_size(instance_path, instance.shape, number.shape, path)
            return _joined(number, instance)
        if self.colors is not None:
            return _joined(self._class_numbers(path), np.int64(0))
        pixels, mode = _read_numbers(path)
        if mode in ("RGB", "LA") and self.kind == "class_instance":
            return self._read_channels(pixels, mode, path)
        self._check_one_channel(pixels, mode, path)
        if self.kind == "class":
            return Values(pixels, 1, self.void_values)
        if self.kind == "class_instance":
            self._check_class_0(pixels, path)
            return Values(pixels, self.label_divisor, self.void_values)
        values = np.where(np.isin(pixels, list(self.void_values)), 0, pixels + _WIDE_DIVISOR)
        if self.has_background:
            values = np.where(pixels == 0, 2 * _WIDE_DIVISOR, values)
        return Values(values, _WIDE_DIVISOR, frozenset({0}))

    def _check_class_0(self, pixels: np.ndarray, path: str) -> None:
        """Raises UserError for instances of class 0 if this class has no name: the coding is probably another one."""
        values = set(np.unique(pixels[pixels < self.label_divisor]).tolist()) - {0, *self.void_values}
        if values and not self.names_class_0:
            raise UserError(
                f"{path}: value {min(values)} is class 0 with --coding {self.kind} --label_divisor "
                f"{self.label_divisor}; pass --coding class if the values are classes alone, --coding instance if they "
                "are instances alone, or name class 0 in --class_names"
            )

    def _check_one_channel(self, pixels: np.ndarray, mode: str, path: str) -> None:
        if pixels.ndim == 2:
            return
        if self.kind == "class_instance":
            raise UserError(
                f"{path}: a label map of mode {mode}; expected gray, or RGB with class = red and instance = green + "
                "256 blue"
            )
        raise UserError(
            f"{path}: a label map of mode {mode} with --coding {self.kind}, which needs one channel; pass --colors "
            "with the table of its colors, or drop --coding if the channels are class and instance"
        )

    def _read_channels(self, pixels: np.ndarray, mode: str, path: str) -> Values:
        wide = pixels.astype(np.int64)
        number, instance = wide[..., 0], wide[..., 1] + (256 * wide[..., 2] if mode == "RGB" else 0)
        if 0 in self.void_values and not self.trusts_channels:
            colored = pixels[(number == 0) & (instance > 0)]
            if len(colored):
                color = ",".join(str(part) for part in colored[0])
                raise UserError(looks_colored(f"{path}: the color {color} is an instance of void"))
        values = number * _CHANNEL_DIVISOR + instance
        void = {value for value in np.unique(values).tolist() if value // _CHANNEL_DIVISOR in self.void_values}
        return Values(values.astype(np.int32), _CHANNEL_DIVISOR, frozenset(void), in_channels=True)

    def _class_numbers(self, path: str) -> np.ndarray:
        """int64 [height, width], class numbers, or _VOID."""
        if self.colors is None:
            pixels, mode = _read_numbers(path)
            self._check_one_channel(pixels, mode, path)
            return np.where(np.isin(pixels, list(self.void_values)), _VOID, pixels).astype(np.int64)
        colors = color_to_id(source_files.read_label_colors(path))
        found, position = np.unique(colors, return_inverse=True)
        unknown = [color for color in found.tolist() if color not in self.colors]
        if unknown:
            names = some([f"{color & 255},{color >> 8 & 255},{color >> 16}" for color in unknown])
            advice = "add a line for it, with the name `void` if it is void"
            if len(unknown) > _MOST_COLORS_OF_A_TABLE:
                advice = "was the mask scaled, or stored with a lossy format?"
            raise UserError(f"{path}: --colors lacks the color {names}; {advice}")
        numbers = [self.colors[color] for color in found.tolist()]
        numbers = np.array([_VOID if number is None else number for number in numbers], np.int64)
        return numbers[position].reshape(colors.shape)


def looks_colored(reason: str) -> str:
    """The message for PNGs with channels that are probably color-coded."""
    return (
        f"{reason}, as in a color-coded mask; pass --colors with the table of its colors, such as CVAT's labelmap.txt, "
        "or --coding class_instance if red is the class and green + 256 blue the instance"
    )


def _joined(number: np.ndarray, instance: np.ndarray) -> Values:
    values = np.where(number == _VOID, _VOID, number * _WIDE_DIVISOR + instance)
    return Values(values, _WIDE_DIVISOR, frozenset({_VOID}))


def _read_numbers(path: str) -> tuple[np.ndarray, str]:
    """As `source_files.read_labels`, but an RGB PNG of grays, which some tools write, has one channel."""
    pixels, mode = source_files.read_labels(path)
    if mode == "RGB" and (pixels == pixels[..., :1]).all():
        return pixels[..., 0].astype(np.int32), "L"
    return pixels, mode


def _instance_numbers(path: str) -> np.ndarray:
    """int64 [height, width], a number for each gray value or color; 0 (black) is no instance."""
    pixels, mode = source_files.read_labels(path)
    if mode == "RGB":
        return color_to_id(pixels).astype(np.int64)
    if pixels.ndim != 2:
        raise UserError(
            f"{path}: a label map of mode {mode}; expected RGB, gray or a palette, with a value for each instance"
        )
    return pixels.astype(np.int64)
