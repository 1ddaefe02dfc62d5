"""Values of images of more than 8 bits to 0..255, by a rule, for microscopes and other cameras.

A rule has a low and a high limit. A value v becomes round((v - low) * 255 / (high - low)), where halves round up, and
0 or 255 beyond the limits. `maxdl_tf.export.image_decoding` does the same inside SavedModels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Union

import numpy as np

from maxdl_tf.errors import UserError

DARK_16_BIT = 2**14  # Without a rule, 8 bits show smaller values almost black.
_LARGEST = 1e15  # Larger values are no measurements, and neighbors of them may be equal in a computer.
_ROWS = 256  # Converted at a time, to save memory.


@dataclass(frozen=True)
class Range:
    """The same limits for all images.

    Attributes:
      low: Value that becomes 0.
      high: Value that becomes 255, more than `low`.
    """

    low: float
    high: float

    def __str__(self) -> str:
        return f"range {{ low: {self.low:g} high: {self.high:g} }}"

    def limits(self, channel: np.ndarray) -> tuple[float, float]:
        """The limits for a channel, [height, width]."""
        del channel
        return self.low, self.high


@dataclass(frozen=True)
class Percentiles:
    """Limits from the values of each channel of each image.

    The limit of a percentile p is the smallest value that at least p % of the values do not exceed.

    Attributes:
      low: Percentile that becomes 0.
      high: Percentile that becomes 255, more than `low`.
    """

    low: float
    high: float

    def __str__(self) -> str:
        return f"percentiles {{ low: {self.low:g} high: {self.high:g} }}"

    def limits(self, channel: np.ndarray) -> tuple[float, float]:
        """The limits for a channel, [height, width]; the high one exceeds the low one by 1 if both are equal."""
        ranks = [max(math.ceil(percentile / 100 * channel.size) - 1, 0) for percentile in (self.low, self.high)]
        ordered = np.partition(channel, ranks, axis=None)
        low, high = (float(ordered[rank]) for rank in ranks)
        return low, high if high > low else low + 1


IntensityRule = Union[Range, Percentiles]


def to_8_bits(values: np.ndarray, rule: IntensityRule) -> np.ndarray:
    """Applies a rule to the finite numbers [height, width] or [height, width, channels]: uint8 of the same shape."""
    channels = values[..., np.newaxis] if values.ndim == 2 else values
    result = np.empty(channels.shape, np.uint8)
    for number in range(channels.shape[-1]):
        channel = channels[..., number]
        low, high = rule.limits(channel)
        for start in range(0, len(channel), _ROWS):
            part = channel[start : start + _ROWS].astype(np.float64)
            result[start : start + _ROWS, :, number] = np.clip((part - low) * 255 / (high - low) + 0.5, 0, 255)
    return result.reshape(values.shape)


class NoIntensityRule(UserError):
    """An image has more than 8 bits, and nothing says which of its values are black and white."""


def in_8_bits(values: np.ndarray, name: str, rule: IntensityRule | None) -> np.ndarray:
    """Numbers in 0..255, uint8 of the same shape. Without a rule, these are the upper 8 of 16 bits.

    Args:
      values: Numbers [height, width] or [height, width, channels]. uint8 stays as it is.
      name: Name of the image in errors.
      rule: The rule of the data set.

    Raises:
      NoIntensityRule: There is no rule, and the upper 8 bits do not show the image.
      UserError: A value is not finite, or beyond 1e15.
    """
    if values.dtype == np.uint8:
        return values
    low, high = value_range(values)
    if not -_LARGEST <= low <= high <= _LARGEST:
        raise UserError(
            f"{name}: has values that are infinite, not a number, or beyond {_LARGEST:g}; replace or scale them"
        )
    if rule:
        return to_8_bits(values, rule)
    if values.dtype.kind == "f":
        raise NoIntensityRule(f"{name}: floating-point values {low:g} to {high:g}; {advice(low, high)}")
    if low < 0 or high >= 2**16:
        raise NoIntensityRule(f"{name}: values {low} to {high}, beyond 0..65535; {advice(low, high)}")
    if high < DARK_16_BIT:
        raise too_dark(name, high)
    return (values >> 8).astype(np.uint8)


def value_range(values: np.ndarray) -> tuple[float, float] | None:
    """The smallest and the largest value; None for 8 bits."""
    return None if values.dtype == np.uint8 else (values.min().item(), values.max().item())


def too_dark(name: str, high: int) -> NoIntensityRule:
    """The error for an image of 16 bits whose values are small, at most `high`."""
    return NoIntensityRule(
        f"{name}: all values are below {DARK_16_BIT:,} of 65,535 (at most {high:,}), so that 8 bits would show it "
        f"almost black; {advice(0, high)}"
    )


def advice(low: float, high: float) -> str:
    """What to do about values without a rule: it names the range of a camera, or of the values themselves."""
    origin = "the values of this image"
    if isinstance(high, int) and 0 <= low <= high < 2**16:
        bits = next(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits)
        low, high, origin = 0, 2**bits - 1, f"{bits} bits"
    high = high if high > low else low + 1  # All values are equal.
    return (
        f"convert the training data with a rule, such as maxdl-convert --intensity 'range {{ low: {low:.9g} high: "
        f"{high:.9g} }}' for {origin}, which the model then keeps; or scale all images alike to 0..255 and 8 bits"
    )
