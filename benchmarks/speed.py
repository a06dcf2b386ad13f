"""Speed of a whole job, file to file, 320x180 to 640x360, in a fresh process each time: start and load included.

./run.sh bench speed
./run.sh bench speed --frames 96 --runs 5 --set engine.threads=2 --save
"""

import argparse
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from benchmarks.clips import moving_texture, write_h264
from benchmarks.jobs import JobCost, run_job
from benchmarks.report import add_save_option, publish, table

SOURCE_SIZE = (320, 180)
TARGET = "restore.resolution=360"


def median_of(costs: Sequence[JobCost]) -> JobCost:
    """The run in the middle by time (the slower one of two middle ones)."""
    return sorted(costs, key=lambda cost: cost.seconds)[len(costs) // 2]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 0 when it ran. Raises RestoreError."""
    parser = argparse.ArgumentParser(prog="seedvr bench speed", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, default=60, metavar="N", help="length of the clip (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=3, metavar="N", help="the median of N is reported (default: %(default)s)"
    )
    parser.add_argument(
        "--size", default="x".join(map(str, SOURCE_SIZE)), help="size of the source (default: %(default)s)"
    )
    parser.add_argument(
        "--target", default=TARGET, metavar="KEY=VALUE", help="size of the result (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="a further setting"
    )
    add_save_option(parser)
    arguments = parser.parse_args(list(argv))

    width, height = map(int, arguments.size.split("x"))
    settings = [f"engine.device={arguments.device}", arguments.target, *arguments.settings]
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.mp4"
        write_h264(source, moving_texture(width, height, arguments.frames), Fraction(24), 18)
        for run in range(arguments.runs):
            costs.append(run_job(source, Path(folder) / f"result{run}.mp4", settings))
            print(f"run {run + 1}: {costs[-1].seconds:.1f} s, {costs[-1].frames_per_second:.2f} frames/s", flush=True)
    cost = median_of(costs)
    summary = cost.summary
    stages = {name: seconds for name, seconds in summary["seconds"].items() if name != "total"}
    rows = [
        [
            f"{width}x{height} -> {summary['width']}x{summary['height']}",
            str(summary["frames"]),
            f"{cost.seconds:.1f}",
            f"{cost.frames_per_second:.2f}",
            f"{summary['frames_per_second']:.2f}",
            f"{cost.peak_bytes / 1e6:.0f}",
        ]
    ]
    header = ["job", "frames", "seconds", "frames/s, whole process", "frames/s, job", "peak MB"]
    body = (
        f"Model {summary['model']} on {summary['device']}, median of {arguments.runs}.\n\n{table(header, rows)}\n\n"
        + table(["stage", "seconds"], [[name, f"{seconds:.2f}"] for name, seconds in stages.items()])
    )
    result = {
        "model": summary["model"],
        "device": summary["device"],
        "settings": settings,
        "frames": summary["frames"],
        "seconds": [round(c.seconds, 3) for c in costs],
        "frames_per_second": round(cost.frames_per_second, 3),
        "stages": stages,
        "peak_bytes": cost.peak_bytes,
    }
    publish("speed", "Speed of a whole job", body, result, arguments.results if arguments.save else None)
    return 0
