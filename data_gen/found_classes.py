"""The classes that a first pass finds in label PNGs, and signs that the PNGs have another coding."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from maxdl_tf.data_gen import class_names
from maxdl_tf.data_gen.label_codings import Coding, looks_colored
from maxdl_tf.data_gen.source_files import FilePair
from maxdl_tf.errors import UserError

_SAMPLE = 20
_LARGE_NUMBER = 1000
_LARGEST_VALUES = (255, 65535)  # Of 8 and 16 bits.
# Classes and instances in channels count from 1. If all of them are larger, they are parts of colors.
_LEAST_CLASS_OF_COLORS = 64
_LEAST_INSTANCE_OF_COLORS = 100


@dataclass
class FoundClasses:
    """Classes of label PNGs.

    Attributes:
      is_thing: {class number: whether it has an instance}.
      least_instance: Smallest number of an instance; None if there are no numbers.
      largest_instance: Largest number of an instance; 0 if there are no numbers.
      in_channels: Whether class and instance are channels of a PNG.
    """

    is_thing: dict[int, bool] = field(default_factory=dict)
    least_instance: int | None = None
    largest_instance: int = 0
    in_channels: bool = False

    def warnings(self, coding: Coding, named: Collection[int]) -> Iterator[str]:
        """Yields warnings of classes that look invented; classes with a name are intended."""
        unnamed = self.is_thing.keys() - set(named)
        for largest in _LARGEST_VALUES:
            if largest in unnamed:
                void_values = ",".join(str(value) for value in sorted({*coding.void_values, largest}))
                yield (
                    f"class {largest} has no name; in many tools {largest} is void, and in masks of 0 and {largest} it "
                    f"is the object: pass --void_values={void_values}, or name class {largest} in --class_names"
                )
            if coding.kind == "instance" and self.least_instance == self.largest_instance == largest:
                yield (
                    f"{largest} is the only instance: masks of 0 and {largest} do not tell objects apart; see --coding "
                    "class"
                )
        largest_class = max(unnamed - set(_LARGEST_VALUES), default=0)
        for what, number in ("class", largest_class), ("instance", self.largest_instance):
            if number >= _LARGE_NUMBER and number not in _LARGEST_VALUES:
                yield (
                    f"{what} numbers reach {number}; check --coding, --label_divisor and whether the PNGs are "
                    "color-coded (--colors)"
                )


def find_classes(pairs: Sequence[FilePair], coding: Coding, processes: int, skip_bad_input: bool) -> FoundClasses:
    """Finds the classes in label PNGs.

    Raises:
      UserError: A PNG is faulty and not skipped, or the PNGs are probably color-coded.
    """
    function = functools.partial(classes_in, coding)
    found = _merged(class_names.first_pass(function, pairs, processes, "finding classes", skip_bad_input))
    if found.in_channels and not coding.trusts_channels:
        if found.least_instance is None and min(found.is_thing, default=0) >= _LEAST_CLASS_OF_COLORS:
            raise UserError(looks_colored(f"the PNGs have no instance and the classes {sorted(found.is_thing)}"))
        if (found.least_instance or 0) >= _LEAST_INSTANCE_OF_COLORS:
            raise UserError(looks_colored(f"the instances in the PNGs begin with {found.least_instance}"))
    return found


def find_in_sample(pairs: Sequence[FilePair], coding: Coding) -> FoundClasses:
    """Finds the classes in a few label PNGs; faulty ones are reported by the conversion that follows."""
    found = []
    for pair in pairs[:: max(1, len(pairs) // _SAMPLE)]:
        with contextlib.suppress(UserError):
            found.append(classes_in(coding, pair))
    return _merged(found)


def classes_in(coding: Coding, pair: FilePair) -> FoundClasses:
    """Finds the classes in a label PNG."""
    values, divisor, void, in_channels = coding.read(pair.label, pair.instances)
    found = FoundClasses(in_channels=in_channels)
    instances = []
    for value in np.unique(values).tolist():
        if value not in void:
            number, instance = divmod(value, divisor)
            found.is_thing[number] = found.is_thing.get(number, False) or instance > 0
            instances.append(instance)
    instances = [] if pair.instances else [instance for instance in instances if instance]  # Colors are not numbers.
    found.least_instance, found.largest_instance = min(instances, default=None), max(instances, default=0)
    return found


def _merged(parts: Iterable[FoundClasses]) -> FoundClasses:
    merged = FoundClasses()
    for part in parts:
        for number, thing in part.is_thing.items():
            merged.is_thing[number] = merged.is_thing.get(number, False) or thing
        least = [number for number in (merged.least_instance, part.least_instance) if number is not None]
        merged.least_instance = min(least, default=None)
        merged.largest_instance = max(merged.largest_instance, part.largest_instance)
        merged.in_channels |= part.in_channels
    return merged
