"""Owns still and animated images: reading to upright 8-bit sRGB, writing PNG, JPEG and WebP. Pillow only."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from inference.durable import part_path, publish
from inference.errors import MediaError
from inference.media.boundary import check_source, reading, writing
from inference.media.color import flatten
from inference.media.info import ColorTags, Kind, MediaInfo
from inference.media.limits import check_dimensions

IMAGE_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF", "GIF")
_ANIMATED = ("PNG", "WEBP", "AVIF", "GIF")
_SHORTEST_MS = 20  # browsers show frames that ask for 10 ms or less for 100 ms
_DEFAULT_MS = 100
_MAX_ANIMATION_FRAMES = 20_000


@dataclass(frozen=True, slots=True)
class ImagePixels:
    """`pixels` (h, w, 3) uint8 sRGB, upright; `alpha` (h, w) uint8 or None when the image has no transparency."""

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None


def is_image_file(path: Path) -> bool:
    """True when the first bytes are those of an image format that is read here (also animated ones)."""
    with path.open("rb") as file:
        head = file.read(32)
    return (
        head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"))
    )


def probe_image(path: Path) -> MediaInfo:
    """MediaInfo of an image; animated ones have kind VIDEO. Raises MediaError for damaged and absurdly large files."""
    with _opened(path) as image:
        animated = image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        width, height = (image.height, image.width) if turned else image.size
        notes = []
        if image.mode.startswith(("I", "F")):
            notes.append("The image has more than 8 bits a channel; the result has 8.")
        if not animated and image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            notes.append("Only the first page of the file is used.")
        durations = _durations(image) if animated else []
        total = Fraction(sum(durations), 1000)
        return MediaInfo(
            path=path,
            kind=Kind.VIDEO if animated else Kind.IMAGE,
            container=str(image.format).lower(),
            codec=str(image.format).lower(),
            width=width,
            height=height,
            stored_width=image.width,
            stored_height=image.height,
            fps=(len(durations) / total).limit_denominator(1001) if animated else Fraction(25),
            num_frames=len(durations) if animated else 1,
            duration=total,
            constant_rate=len(set(durations)) <= 1 and not animated,
            color=ColorTags(matrix=0, full_range=True),
            bit_depth=16 if image.mode.startswith("I") else 32 if image.mode == "F" else 8,
            has_alpha=_has_alpha(image),
            is_animated_image=animated,
            warnings=(*notes, *(["Transparency is filled with black."] if animated and _has_alpha(image) else [])),
        )


def read_image(path: Path) -> ImagePixels:
    """Decode a still image: EXIF orientation applied, embedded colour profile converted to sRGB, 8 bits.

    Raises MediaError when the file is missing, damaged, cut short, or absurdly large.
    """
    with _opened(path) as image, _quiet_pillow():
        image.load()
        upright = ImageOps.exif_transpose(image)
        profile = upright.info.get("icc_profile")
        alpha = np.array(upright.convert("RGBA").getchannel("A")) if _has_alpha(upright) else None
        pixels = np.array(_to_srgb(_to_eight_bits(upright), profile))
    return ImagePixels(pixels, alpha)


def animation_frames(path: Path) -> Iterator[tuple[NDArray[np.uint8], Fraction, Fraction]]:
    """Frames of an animated image, composed, on black: (pixels (h, w, 3) uint8, start and duration in seconds)."""
    with _opened(path) as image:
        start = Fraction(0)
        for index in range(getattr(image, "n_frames", 1)):
            with reading(path), _quiet_pillow():
                image.seek(index)
                rgba = np.array(image.convert("RGBA"))
                duration = Fraction(_shown_ms(image), 1000)
            yield flatten(rgba), start, duration
            start += duration


def write_image(
    path: Path, pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None = None, quality: int = 95
) -> None:
    """Write (h, w, 3) sRGB pixels by the suffix of `path`; complete or not at all.

    PNG and WebP keep `alpha` (h, w); JPEG has none, so it is filled with white. `quality` is for JPEG and WebP.
    Raises MediaError for another suffix or when writing fails.
    """
    image_format = IMAGE_SUFFIXES.get(path.suffix.lower())
    if image_format is None:
        raise MediaError(f"An image cannot be written as '{path.suffix}'; name the result .png, .jpg or .webp.")
    if alpha is not None:
        rgba = np.dstack([pixels, alpha])
        pixels = flatten(rgba, background=255) if image_format == "JPEG" else rgba
    options: dict[str, object] = {"quality": quality} if image_format != "PNG" else {}
    if image_format == "JPEG":
        options["subsampling"] = 0
    part = part_path(path)
    with writing(path):
        try:
            Image.fromarray(np.ascontiguousarray(pixels)).save(part, image_format, **options)
            publish(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    check_source(path)
    try:
        with _quiet_pillow():
            image = Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise MediaError(f"'{path.name}' claims an absurd number of pixels; reduce its size first.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise MediaError(_damaged(path)) from error
    with image:
        check_dimensions(path, *image.size)
        try:
            yield image
        except MediaError:
            raise
        except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
            raise MediaError(_damaged(path)) from error


def _damaged(path: Path) -> str:
    return f"'{path.name}' is a damaged or incomplete image; copy, upload or export it again."


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow warns about odd metadata and size; the size is checked here, and odd metadata does not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _has_alpha(image: Image.Image) -> bool:
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit and float gray scaled to 8 bits (Pillow's own conversion clips them); other modes unchanged."""
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        scale = 255.0 if values.max(initial=0) <= 1 else 1.0
        return Image.fromarray(np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8))
    return image


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode not in ("RGB", "L", "CMYK", "LAB"):
        image = image.convert("RGBA" if "A" in image.getbands() else "RGB").convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except ImageCms.PyCMSError:
            converted = None  # a profile that does not fit the pixels says nothing about them
        if converted is not None:
            return converted
    return image.convert("RGB")


def _durations(image: Image.Image) -> list[int]:
    """Milliseconds that each frame of an animated image is shown."""
    durations = []
    with _quiet_pillow():
        for index in range(min(image.n_frames, _MAX_ANIMATION_FRAMES)):  # type: ignore[attr-defined]
            image.seek(index)
            image.load()  # WebP and AVIF tell a frame's duration only after decoding it
            durations.append(_shown_ms(image))
        image.seek(0)
    return durations


def _shown_ms(image: Image.Image) -> int:
    duration = round(image.info.get("duration") or 0)
    return duration if duration >= _SHORTEST_MS else _DEFAULT_MS
