"""Owns picture geometry: how large a restored picture becomes, and how far it is padded for the networks. No torch.

The product part is `target_size` and `padded_size`: the aspect ratio is kept, the picture is never cropped, and only
padding is cut off again. The second part holds the geometry of the original script and of the ComfyUI port (spec
pipeline A1, A2, D1), which the parity command compares with stored numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.errors import SettingsError

if TYPE_CHECKING:
    from inference.settings import RestoreSettings

PAD_MULTIPLE = 16
MIN_SIDE = 8
"""Of the longer side, unless the source is smaller."""
MAX_SIDE = 8192
MAX_PIXELS = 64_000_000
DEFAULT_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Size:
    """A picture size in pixels."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a picture needs at least one pixel, got {self.width}x{self.height}")

    @property
    def short(self) -> int:
        return min(self.width, self.height)

    @property
    def long(self) -> int:
        return max(self.width, self.height)

    @property
    def pixels(self) -> int:
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle inside a picture: its top-left corner and its size."""

    top: int
    left: int
    size: Size


def target_size(source: Size, restore: RestoreSettings, *, is_image: bool = False) -> Size:
    """Size of the restored picture: short side, factor or box of the settings; factor 2 when none is set.

    The aspect ratio is kept up to rounding. Video sizes are even, as 4:2:0 video needs; images may be odd. A box is
    never exceeded. Raises SettingsError when the result is beyond 8192 pixels a side or 64 megapixels, or when it
    is smaller than the source and has less than 8 pixels on its longer side.
    """
    step = 1 if is_image else 2
    box = restore.box_size()
    if box is not None:
        size = _fit(source, Size(*box), step)
    else:
        scale = restore.resolution / source.short if restore.resolution else restore.factor or DEFAULT_FACTOR
        size = Size(_nearest(source.width * scale, step), _nearest(source.height * scale, step))
    _check_limits(source, size)
    return size


def padded_size(size: Size) -> Size:
    """The size that the networks work on: each side rounded up to a multiple of 16."""
    return Size(_up(size.width), _up(size.height))


def _check_limits(source: Size, size: Size) -> None:
    if size.long < min(MIN_SIDE, source.long - 1):  # a side of the source may lose a pixel to become even
        raise SettingsError(f"A {source} source would become {size}, too small to show anything; choose a larger size.")
    if size.long > MAX_SIDE:
        raise SettingsError(
            f"A {source} source would become {size}, more than {MAX_SIDE} pixels on a side; choose a smaller size."
        )
    if size.pixels > MAX_PIXELS:
        raise SettingsError(
            f"A {source} source would become {size}, more than {MAX_PIXELS // 1_000_000} megapixels; "
            "choose a smaller size."
        )


def _fit(source: Size, box: Size, step: int) -> Size:
    if box.short < step:
        raise SettingsError(f"The box {box} is too small for video; make it at least {step}x{step}.")
    scale = min(box.width / source.width, box.height / source.height)
    return Size(
        min(_nearest(source.width * scale, step), box.width - box.width % step),
        min(_nearest(source.height * scale, step), box.height - box.height % step),
    )


def _nearest(length: float, step: int) -> int:
    return max(step, round(length / step) * step)


def _up(length: int) -> int:
    return -(-length // PAD_MULTIPLE) * PAD_MULTIPLE


# Reference geometry, for parity only. The order of the operations matters: an ulp can flip a rounding.


def area_size(source: Size, requested: Size) -> Size:
    """Spec A1: the size of equal aspect ratio whose area is that of `requested`."""
    area = ((requested.height * requested.width) ** 0.5) ** 2
    scale = (area / (source.height * source.width)) ** 0.5
    return Size(round(source.width * scale), round(source.height * scale))


def centre_crop(size: Size) -> Crop:
    """Spec A2: the central part whose sides are multiples of 16, offsets rounded half to even."""
    inner = Size(size.width - size.width % PAD_MULTIPLE, size.height - size.height % PAD_MULTIPLE)
    return Crop(round((size.height - inner.height) / 2), round((size.width - inner.width) / 2), inner)


def shortest_edge_sizes(source: Size, shortest: int, max_edge: int = 0) -> tuple[Size, ...]:
    """Spec D1: the one or two sizes that the port resizes to, in order; the last is the resized size."""
    longest = int(shortest * source.long / source.short)
    first = Size(shortest, longest) if source.width <= source.height else Size(longest, shortest)
    if max_edge <= 0 or first.long <= max_edge:
        return (first,)
    scale = max_edge / first.long
    return (first, Size(round(first.width * scale), round(first.height * scale)))


def even_size(size: Size) -> Size:
    """Spec D1: the port's output size, each side rounded down to even."""
    return Size(size.width - size.width % 2, size.height - size.height % 2)
