"""Random variants of images: training sees each image slightly different in every epoch.

All arithmetic on pixels uses integers, and all random numbers are raw output of a bit generator,
which NumPy guarantees (NEP 19): a seed, epoch and sample produce the same bytes on every host.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import SettingError
from dist_net.images.decoding import Pixels

ONE = 256  # the unit of factors and positions, which are fixed-point numbers
TURN = 1 << 16  # the unit of sines and cosines, which are fixed-point numbers too
LUMA = (77, 150, 29)  # the weights of red, green and blue in units of 1/ONE: ITU-R BT.601
STREAM = 0x617567  # separates these random numbers from others of a run's seed

HALVES, LOW_BYTES = np.uint64(0x0080_0080_0080_0080), np.uint64(0x00FF_00FF_00FF_00FF)

AlongAxis = NDArray[np.integer]
Packed = NDArray[np.uint64]


@dataclass(frozen=True)
class Augmentation:
    """The strength of each random change to an image.

    ``smallest_crop``: the minimum fraction of each side that is kept and stretched to full size;
    both sides are drawn independently. ``flip``: mirror half of the images left to right.
    ``rotation``: turn by up to as many degrees in either direction; the edge fills the corners.
    ``brightness``, ``contrast``, ``saturation``: 0.2 means a factor from 0.8 to 1.2. Raises
    SettingError for values out of range.
    """

    smallest_crop: float = 0.8
    flip: bool = True
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        bounds = {"smallest_crop": (0.1, 1), "rotation": (0, 180)}
        for name, value in vars(self).items():
            least, most = bounds.get(name, (0, 1))
            if not least <= value <= most:
                raise SettingError(f"{name}={value}: expected from {least} to {most}")

    def apply(
        self, images: NDArray[np.uint8], seed: int, epoch: int, samples: Iterable[int]
    ) -> None:
        """Augment (N, H, W, 1 or 3) uint8 in place, by seed, epoch and index in ``samples``."""
        for image, draws in zip(images, _draws(seed, epoch, samples), strict=True):
            self._move(image, draws)
            self._recolour(image, draws)

    def _move(self, image: Pixels, draws: list[int]) -> None:
        height, width, channels = image.shape
        least = round(self.smallest_crop * ONE)
        along_y, middle_y = _window(height, least, draws[0], draws[1])
        along_x, middle_x = _window(width, least, draws[2], draws[3])
        if self.flip and draws[4] & 1:
            along_x = along_x[::-1]
        angle = math.radians(self.rotation) * (draws[8] / (1 << 31) - 1)
        cosine, sine = round(TURN * math.cos(angle)), round(TURN * math.sin(angle))
        along_y = along_y[:, None]
        rows = (cosine * along_y + sine * along_x >> 17) + middle_y
        columns = (cosine * along_x - sine * along_y >> 17) + middle_x
        # The channels of a pixel share one integer, so that each operation mixes them together. A
        # row and a column of zeros follow the image, with a share of 0.
        lanes = np.zeros((height + 1, width + 1, 4), np.uint16)
        lanes[:-1, :-1, :channels] = image
        pixels = lanes.view(np.uint64).ravel()
        rows, columns = rows.clip(0, (height - 1) * ONE), columns.clip(0, (width - 1) * ONE)
        first = (rows >> 8) * (width + 1) + (columns >> 8)
        share_y, share_x = ((each & 255).view(np.uint64) for each in (rows, columns))
        upper, lower = (
            _between(pixels[row:].take(first), pixels[row + 1 :].take(first), share_x)
            for row in (0, width + 1)
        )
        mixed = _between(upper, lower, share_y).view(np.uint16)
        image[:] = mixed.reshape(height, width, 4, copy=False)[:, :, :channels]

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
    """Yield nine 32-bit numbers a sample: jumps of a counter are cheap (Salmon et al. 2011)."""
    bits = np.random.Philox(np.random.SeedSequence((seed, STREAM)))
    state = bits.state
    for sample in samples:
        state["state"]["counter"][:] = 0, 0, sample, epoch
        bits.state = state
        yield (bits.random_raw(9) >> np.uint64(32)).tolist()


def _window(size: int, least: int, drawn_side: int, drawn_place: int) -> tuple[AlongAxis, int]:
    """Return the source of each new pixel along an axis, from the middle of the source, and that.

    The source is a random part of the axis, at least ``least``. Offsets from the middle are in
    units of 1 / (2 ONE), the middle in units of 1/ONE.
    """
    side = least + (drawn_side * (ONE - least + 1) >> 32)
    place = drawn_place * ((ONE - side) * size + 1) >> 32
    return (2 * np.arange(size) + 1 - size) * side, place + (side * size - ONE) // 2


def _between(first: Packed, second: Packed, share: Packed) -> Packed:
    """Interpolate linearly in each of four lanes of 16 bits, which no sum exceeds."""
    mixed = first * (np.uint64(ONE) - share)
    mixed += second * share
    mixed += HALVES
    mixed >>= np.uint64(8)
    mixed &= LOW_BYTES
    return mixed


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
