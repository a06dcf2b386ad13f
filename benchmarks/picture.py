"""Makes docs/before-after.png: one frame of a restored clip beside the same frame of its source.

    python -m benchmarks.picture
    python -m benchmarks.picture --source CLIP --frame 20 --restore color_fix=lab

Left half: the source, enlarged with Lanczos. Right half: the restored file. Below: the same at a close-up.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.clips import Frames, read_clip, resize
from inference.engine import Engine
from inference.errors import RestoreError
from inference.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "samples" / "sintel_320x136.mp4"
TARGET = ROOT / "docs" / "before-after.png"
GAP = 6
LABEL_HEIGHT = 26


def beside(before: Image.Image, after: Image.Image) -> Image.Image:
    """Both pictures, which are of one size, side by side with a white gap."""
    sheet = Image.new("RGB", (2 * before.width + GAP, before.height), "white")
    sheet.paste(before, (0, 0))
    sheet.paste(after, (before.width + GAP, 0))
    return sheet


def close_up(picture: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    """The part ``box`` of the picture, enlarged to ``size`` with hard pixels, so that nothing is smoothed away."""
    return picture.crop(box).resize(size, Image.Resampling.NEAREST)


def make_sheet(before: Frames, after: Frames, box: tuple[int, int, int, int]) -> Image.Image:
    """The whole figure from two frames (1, H, W, 3)."""
    left, right = Image.fromarray(before[0]), Image.fromarray(after[0])
    whole = beside(left, right)
    detail = beside(*(close_up(p, box, (left.width, left.height)) for p in (left, right)))
    sheet = Image.new("RGB", (whole.width, LABEL_HEIGHT + whole.height + GAP + detail.height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    draw.text((4, 4), "before (enlarged with Lanczos)", "black", font)
    draw.text((left.width + GAP + 4, 4), "after", "black", font)
    sheet.paste(whole, (0, LABEL_HEIGHT))
    sheet.paste(detail, (0, LABEL_HEIGHT + whole.height + GAP))
    return sheet


def most_detailed(after: Frames, zoom: int) -> tuple[int, int, int, int]:
    """Box of the strongest edges in the frame (1, H, W, 3), 1/``zoom`` of each side: left, upper, right, lower."""
    gray = after[0].astype(np.float32).mean(axis=-1)
    edges = np.abs(np.diff(gray, axis=0))[:, 1:] + np.abs(np.diff(gray, axis=1))[1:]
    height, width = gray.shape[0] // zoom, gray.shape[1] // zoom
    sums = np.pad(edges.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    upper, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(left), int(upper), int(left) + width, int(upper) + height


def main(argv: Sequence[str]) -> int:
    """Restore the clip and write the picture. Raises RestoreError."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.picture", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--source", type=Path, default=SOURCE, help="clip to restore (default: the sample)")
    parser.add_argument("--target", type=Path, default=TARGET, help="picture to write (default: docs/before-after.png)")
    parser.add_argument("--frame", type=int, default=20, metavar="N", help="which frame (default: %(default)s)")
    parser.add_argument("--zoom", type=int, default=4, help="of the close-up (default: %(default)s)")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--weights", default="", help="folder with model files")
    parser.add_argument(
        "--restore", action="append", default=[], metavar="KEY=VALUE", help="a setting; may be repeated"
    )
    arguments = parser.parse_args(list(argv))

    engine_layer = {"engine.model": arguments.model, "engine.weights": arguments.weights}
    settings = load_settings(engine_layer, list(arguments.restore))
    with tempfile.TemporaryDirectory() as folder, Engine(settings.engine) as engine:
        restored = Path(folder) / "restored.mp4"
        engine.restore(arguments.source, restored, settings.restore)
        after, _ = read_clip(restored, arguments.frame + 1)
    source, _ = read_clip(arguments.source, arguments.frame + 1)
    if len(source) <= arguments.frame:
        raise RestoreError(f"The clip has only {len(source)} frames; choose a smaller --frame.")
    _, height, width, _ = after.shape
    before = resize(source[-1:], width, height, Image.Resampling.LANCZOS)
    sheet = make_sheet(before, after[-1:], most_detailed(after[-1:], arguments.zoom))
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.target, optimize=True)
    print(f"{arguments.target}: {sheet.width}x{sheet.height}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RestoreError as error:
        sys.exit(str(error))
