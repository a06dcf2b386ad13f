"""Still images: every kind that people bring, upright and in 8-bit sRGB; writing PNG, JPEG and WebP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from inference.errors import MediaError
from inference.media import read_image, write_image

STILLS = [
    ("cmyk.jpg", (252, 320)),
    ("exif_orientation6.jpg", (756, 960)),
    ("gray16.png", (252, 320)),
    ("gray8.png", (252, 320)),
    ("odd_161x127.bmp", (127, 161)),
    ("one_pixel.png", (1, 1)),
    ("palette.png", (252, 320)),
    ("photo.avif", (378, 480)),
    ("photo.jpg", (756, 960)),
    ("photo.tiff", (252, 320)),
    ("photo.webp", (756, 960)),
    ("progressive.jpg", (756, 960)),
    ("rgba.png", (252, 320)),
]


def resized(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((80, 63), Image.Resampling.BOX)).astype(int)


@pytest.mark.parametrize(("name", "shape"), STILLS, ids=[row[0] for row in STILLS])
def test_an_image_is_read_upright_as_rgb(media: Path, name: str, shape: tuple[int, int]) -> None:
    image = read_image(media / "img" / name)
    assert image.pixels.shape == (*shape, 3)
    assert image.pixels.dtype == np.uint8
    assert (image.alpha is not None) == (name == "rgba.png")


@pytest.mark.parametrize("name", ["exif_orientation6.jpg", "photo.webp", "photo.avif", "photo.tiff", "cmyk.jpg"])
def test_other_formats_show_the_same_photo(media: Path, name: str) -> None:
    photo = resized(read_image(media / "img" / "photo.jpg").pixels)
    assert np.abs(resized(read_image(media / "img" / name).pixels) - photo).mean() < 5


def test_sixteen_bit_gray_is_scaled_not_clipped(media: Path) -> None:
    deep = read_image(media / "img" / "gray16.png").pixels.astype(int)
    assert np.abs(deep - read_image(media / "img" / "gray8.png").pixels).mean() < 3


@pytest.mark.parametrize("name", ["truncated.jpg", "zero_bytes.png"])
def test_a_broken_image_gets_a_sentence_with_the_next_step(media: Path, name: str) -> None:
    with pytest.raises(MediaError, match=r"(damaged|empty).* again"):
        read_image(media / "img" / name)


def test_a_text_file_named_png_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "note.png"
    path.write_text("hello")
    with pytest.raises(MediaError, match="damaged or incomplete image"):
        read_image(path)


def test_an_embedded_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    path = tmp_path / "lab.tiff"
    colors = Image.new("RGB", (8, 8), (200, 60, 90))
    lab = ImageCms.profileToProfile(
        colors, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(path, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())
    assert np.abs(read_image(path).pixels[4, 4].astype(int) - [200, 60, 90]).max() <= 3


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_transparency_is_written_and_read_back(tmp_path: Path, media: Path, suffix: str) -> None:
    image = read_image(media / "img" / "rgba.png")
    assert image.alpha is not None
    write_image(tmp_path / f"out{suffix}", image.pixels, image.alpha)
    again = read_image(tmp_path / f"out{suffix}")
    assert again.alpha is not None
    assert np.array_equal(again.alpha, image.alpha)
    assert np.abs(again.pixels.astype(int) - image.pixels)[image.alpha > 0].mean() < 6


def test_png_is_lossless(tmp_path: Path, media: Path) -> None:
    pixels = read_image(media / "img" / "photo.png").pixels
    write_image(tmp_path / "out.png", pixels)
    assert np.array_equal(read_image(tmp_path / "out.png").pixels, pixels)


def test_jpeg_fills_transparency_with_white(tmp_path: Path) -> None:
    write_image(tmp_path / "out.jpg", np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8))
    assert read_image(tmp_path / "out.jpg").pixels.min() >= 250


def test_another_suffix_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"\.png, \.jpg or \.webp"):
        write_image(tmp_path / "out.tga", np.zeros((4, 4, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="could not be written"):
        write_image(tmp_path / "none" / "out.png", np.zeros((4, 4, 3), np.uint8))
    write_image(tmp_path / "out.png", np.zeros((4, 4, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
