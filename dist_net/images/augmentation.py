"""Random variants of images: training sees each image slightly different in every epoch.

All arithmetic uses integers, and all random numbers are raw output of a bit generator, which NumPy
guarantees (NEP 19): the same seed, epoch and sample produce the same bytes on every host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import SettingError
from dist_net.images.decoding import Pixels

ONE = 256  # the unit of factors and positions, which are fixed-point numbers
LUMA = (77, 150, 29)  # the weights of red, green and blue in units of 1/ONE: ITU-R BT.601
STREAM = 0x617567  # separates these random numbers from others of a run's seed

AlongAxis = NDArray[np.integer]


@dataclass(frozen=True)
class Augmentation:
    """The strength of each random change to an image.

    ``smallest_crop``: the minimum fraction of each side that is kept and stretched to full size;
    both sides are drawn independently. ``flip``: mirror half of the images left to right.
    ``brightness``, ``contrast``, ``saturation``: 0.2 means a factor from 0.8 to 1.2. Raises
    SettingError for values out of range.
    """

    smallest_crop: float = 0.8
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        if not 0.1 <= self.smallest_crop <= 1:
            raise SettingError(f"smallest_crop={self.smallest_crop}: expected from 0.1 to 1")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise SettingError(f"{name}={value}: expected from 0 to 1")

    def apply(
        self, images: NDArray[np.uint8], seed: int, epoch: int, samples: Iterable[int]
    ) -> None:
        """Augment a minibatch in place, (N, H, W, C) uint8 with C = 1 or 3.

        ``samples`` are the images' indices in the dataset, (N,). An image's variant depends only on
        the seed, the epoch and its index, not on the minibatch.
        """
        for image, draws in zip(images, _draws(seed, epoch, samples), strict=True):
            self._crop_and_flip(image, draws)
            self._recolour(image, draws)

    def _crop_and_flip(self, image: Pixels, draws: list[int]) -> None:
        height, width, channels = image.shape
        least = round(self.smallest_crop * ONE)
        above, below, along_y = _window(height, least, draws[0], draws[1])
        left, right, along_x = _window(width, least, draws[2], draws[3])
        if self.flip and draws[4] & 1:
            left, right, along_x = left[::-1], right[::-1], along_x[::-1]
        rows = _between(image.take(above, 0), image.take(below, 0), along_y[:, None, None])
        # Rows stay flat: with an axis of three channels, the inner loops take four times as long.
        flat = height, width * channels
        mixed = _between(
            rows.take(left, 1).reshape(flat, copy=False),
            rows.take(right, 1).reshape(flat, copy=False),
            along_x.repeat(channels),
        )
        image[:] = mixed.reshape(image.shape, copy=False)

    def _recolour(self, image: Pixels, draws: list[int]) -> None:
        if self.brightness:
            values = np.arange(256) * _factor(self.brightness, draws[5]) // ONE
            image[:] = _bytes(values).take(image)
        if self.contrast:
            mean = int(_luma(image).sum(dtype=np.int64)) * image.shape[2] // image.size
            values = mean + (np.arange(256) - mean) * _factor(self.contrast, draws[6]) // ONE
            image[:] = _bytes(values).take(image)
        if self.saturation and image.shape[2] == 3:
            luma = _luma(image)[:, :, None].astype(np.int32)
            image[:] = _bytes(luma + (image - luma) * _factor(self.saturation, draws[7]) // ONE)


def _draws(seed: int, epoch: int, samples: Iterable[int]) -> Iterator[list[int]]:
    """Yield eight 32-bit numbers for each sample.

    The generator is counter-based (Salmon et al. 2011), so that jumping to a sample is cheap.
    """
    bits = np.random.Philox(np.random.SeedSequence((seed, STREAM)))
    state = bits.state
    for sample in samples:
        state["state"]["counter"][:] = 0, 0, sample, epoch
        bits.state = state
        yield (bits.random_raw(8) >> np.uint64(32)).tolist()


def _window(size: int, least: int, drawn_side: int, drawn_place: int) -> tuple[AlongAxis, ...]:
    """Return the two source pixels of each new pixel along an axis, and its offset from the first.

    The source is a random part of the axis, at least ``least``; offsets are in units of 1/ONE.
    """
    side = least + (drawn_side * (ONE - least + 1) >> 32)
    place = drawn_place * ((ONE - side) * size + 1) >> 32
    centres = place + (2 * np.arange(size) + 1) * side // 2 - ONE // 2
    centres.clip(0, (size - 1) * ONE, out=centres)
    first = centres // ONE
    return first, np.minimum(first + 1, size - 1), (centres % ONE).astype(np.uint16)


def _between(
    first: NDArray[np.uint8], second: NDArray[np.uint8], along: AlongAxis
) -> NDArray[np.uint8]:
    """Interpolate linearly; no sum exceeds 16 bits."""
    mixed = first * (ONE - along)
    mixed += second * along
    mixed += np.uint16(ONE // 2)
    mixed >>= 8
    return mixed.astype(np.uint8)


def _factor(most: float, drawn: int) -> int:
    """Return a factor from 1 - ``most`` to 1 + ``most``, in units of 1/ONE."""
    span = round(most * ONE)
    return ONE - span + (drawn * (2 * span + 1) >> 32)


def _luma(image: Pixels) -> NDArray[np.uint16]:
    """Return the brightness of each pixel, (H, W); no sum exceeds 16 bits."""
    if image.shape[2] == 1:
        return image[:, :, 0].astype(np.uint16)
    weighted = [image[:, :, channel] * np.uint16(weight) for channel, weight in enumerate(LUMA)]
    return sum(weighted[1:], weighted[0]) >> np.uint16(8)


def _bytes(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    return values.clip(0, 255).astype(np.uint8)
