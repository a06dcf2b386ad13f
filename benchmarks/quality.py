"""Quality: restored clips against Lanczos up-scaling of the same degraded input, measured on ground truth.

    ./run.sh bench quality
    ./run.sh bench quality --clips DIR --scales 2 --kinds degraded --frames 8 --restore color_fix=none --save

Each clip is cut to sides that fit, degraded into a file (``degrade.py``), restored by the whole product from that file
to another file, and compared with Pillow's LANCZOS of the same decoded frames. The results are encoded at CRF 1, so
that the model is measured and not the encoder; ``--restore encode.quality=16`` measures the default file.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from benchmarks.clips import GROUND_TRUTH, crop_to_multiple, find_clips, read_clip, resize
from benchmarks.degrade import Kind, write_degraded
from benchmarks.metrics import Scores, mean_scores, score
from benchmarks.report import add_save_option, publish, table
from inference.engine import Engine
from inference.settings import RestoreSettings, Settings, load_settings

DEFAULTS = ("restore.encode.quality=1", "restore.encode.preset=veryfast")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One clip, degraded in one way: both results against the ground truth."""

    clip: str
    scale: int
    kind: Kind
    lanczos: Scores
    restored: Scores

    @property
    def delta(self) -> Scores:
        return self.restored.minus(self.lanczos)

    @property
    def is_better(self) -> bool:
        """Better in PSNR-Y, SSIM and GMSD, and flicker no worse, to the digits that the table shows."""
        delta = self.delta
        return delta.psnr_y > 0 and delta.ssim > 0 and delta.gmsd < 0 and round(delta.flicker, 3) <= 0


def compare(
    engine: Engine, clip: Path, num_frames: int, scale: int, kind: Kind, restore: RestoreSettings
) -> Comparison:
    """Degrade, restore and score one clip. ``restore`` must ask for the factor ``scale``. Raises RestoreError."""
    truth, fps = read_clip(clip, num_frames)
    truth = crop_to_multiple(truth, 2 * scale)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.mkv", Path(folder) / "restored.mp4"
        write_degraded(source, truth, fps, scale, kind)
        engine.restore(source, target, restore)
        small, _ = read_clip(source)
        restored, _ = read_clip(target)
    _, height, width, _ = truth.shape
    lanczos = score(resize(small, width, height, Image.Resampling.LANCZOS), truth)
    return Comparison(clip=clip.stem, scale=scale, kind=kind, lanczos=lanczos, restored=score(restored, truth))


def settings_for(arguments: argparse.Namespace, scale: int) -> Settings:
    """The settings of one run: those of the command line over the defaults of this benchmark."""
    engine = {"engine.model": arguments.model, "engine.weights": arguments.weights, "engine.device": arguments.device}
    return load_settings(list(DEFAULTS), engine, list(arguments.restore), {"restore.factor": scale})


def summary_table(comparisons: Sequence[Comparison]) -> str:
    """One row a comparison, then a mean for each scale and kind; each cell is Lanczos -> restored (change)."""
    header = ["clip", "scale", "kind", "PSNR-Y dB", "SSIM", "GMSD", "flicker", "better"]
    rows = [_row(c.clip, c, "yes" if c.is_better else "NO") for c in comparisons]
    for scale, kind in sorted({(c.scale, c.kind) for c in comparisons}):
        rows.append(_row("**mean**", mean_of([c for c in comparisons if (c.scale, c.kind) == (scale, kind)]), ""))
    if len({(c.scale, c.kind) for c in comparisons}) > 1:
        overall = mean_of(list(comparisons))
        rows.append(["**mean of all**", "", "", *_cells(overall), ""])
    return table(header, rows)


def mean_of(comparisons: Sequence[Comparison]) -> Comparison:
    """The mean of comparisons, named after the first one's scale and kind."""
    return Comparison(
        clip="mean",
        scale=comparisons[0].scale,
        kind=comparisons[0].kind,
        lanczos=mean_scores([c.lanczos for c in comparisons]),
        restored=mean_scores([c.restored for c in comparisons]),
    )


def _row(name: str, comparison: Comparison, better: str) -> list[str]:
    return [name, f"x{comparison.scale}", comparison.kind.value, *_cells(comparison), better]


def _cells(comparison: Comparison) -> list[str]:
    before, after, delta = comparison.lanczos, comparison.restored, comparison.delta
    return [
        f"{getattr(before, name):.{digits}f} -> {getattr(after, name):.{digits}f} ({getattr(delta, name):+.{digits}f})"
        for name, digits in (("psnr_y", 2), ("ssim", 4), ("gmsd", 4), ("flicker", 3))
    ]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 0 when it ran, whatever it measured. Raises RestoreError."""
    parser = argparse.ArgumentParser(prog="seedvr bench quality", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--clips", type=Path, default=GROUND_TRUTH, help="folder of ground-truth clips (default: %(default)s)"
    )
    parser.add_argument("--frames", type=int, default=0, metavar="N", help="only the first N frames of each clip")
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 4], choices=[2, 3, 4, 8])
    parser.add_argument("--kinds", type=Kind, nargs="+", default=list(Kind), choices=list(Kind))
    parser.add_argument("--model", default="nano", help="model of the catalogue (default: %(default)s)")
    parser.add_argument("--weights", default="", help="folder with model files")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--restore", action="append", default=[], metavar="KEY=VALUE", help="a setting; may be repeated"
    )
    add_save_option(parser)
    arguments = parser.parse_args(list(argv))

    clips = find_clips(arguments.clips)
    comparisons = []
    with Engine(settings_for(arguments, 2).engine) as engine:
        for clip in clips:
            for scale in arguments.scales:
                for kind in arguments.kinds:
                    restore = settings_for(arguments, scale).restore
                    comparisons.append(compare(engine, clip, arguments.frames, scale, kind, restore))
                    print(f"{clip.stem} x{scale} {kind}: {comparisons[-1].delta.psnr_y:+.2f} dB", flush=True)
        model, device = engine.entry.name, str(engine.device)
    overall = mean_of(comparisons)
    body = (
        f"Model {model} on {device}; Lanczos -> {model} (change). PSNR-Y and SSIM: higher is better; GMSD and flicker:"
        f" lower is better.\nSettings: {', '.join([*DEFAULTS, *arguments.restore])}\n\n{summary_table(comparisons)}"
    )
    result = {
        "model": model,
        "device": device,
        "settings": [*DEFAULTS, *arguments.restore],
        "frames": arguments.frames,
        "clips": [asdict(c) | {"delta": asdict(c.delta), "better": c.is_better} for c in comparisons],
        "mean_delta": asdict(overall.delta),
        "all_better": all(c.is_better for c in comparisons),
    }
    publish(
        "quality", f"Quality of {model} against Lanczos", body, result, arguments.results if arguments.save else None
    )
    return 0
