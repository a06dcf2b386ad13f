"""What a crash in the middle of a long shot costs, and that the job then comes to the same bytes.

    ./run.sh bench resume                                  # the embedded model, on a CPU or a card
    ./run.sh bench resume --model seedvr2-3b --size 1280x720   # random weights at full width; needs a CUDA card

One shot of a real clip, forth and back, is restored twice without a disturbance, each time in a process of its own, and
a third time by a process that gets SIGKILL once so many units are finished, and one that goes on. Ends with 1 when the
files differ. The last line is one JSON object.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.clips import GROUND_TRUTH, crop_to_multiple, find_clips, read_clip, repeat_to, resize, write_h264
from benchmarks.gpu import TEXT_TOKENS, limit_memory, randomize
from benchmarks.report import add_save_option, publish, table
from benchmarks.whole_job import SAMPLES, quiet
from inference import shot_state
from inference.allocator import grow_segments
from inference.catalogue import find_model
from inference.checkpoint import CONFIGS, Models, load_models
from inference.meter import Meter
from inference.pipeline import prepare, run
from inference.settings import RestoreSettings
from inference.tracker import Tracker
from inference.units import finished_units
from models.dit import DiT
from models.video_vae import VideoVAE

FRAMES_PER_UNIT = 48
POLL_S = 0.02
LIMIT_S = 900


def restore(order: dict[str, Any]) -> None:
    """What the processes do; ends with one JSON line: seconds of the job, and of its parts."""
    grow_segments()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if order["memory"]:
        limit_memory(device, int(order["memory"] * 2**30))
    if order["cold"]:
        shot_state.LARGE_HISTORIES_BYTES = 0
    models = _models(order["model"], device)
    width, height = order["size"]
    settings = RestoreSettings(resolution=min(width, height), detect_shots=False)
    job = prepare(Path(order["source"]), Path(order["target"]), settings)
    meter, started = Meter(device), time.perf_counter()
    with quiet(models.vae, is_quiet=order["model"] != "nano"):
        result = run(job, models, Tracker(meter), Path(order["work"]), FRAMES_PER_UNIT)
    total = time.perf_counter() - started
    print(json.dumps({"total": total, "frames": result.frames, "shots": result.shots, **meter.seconds()}), flush=True)


def _models(name: str, device: torch.device) -> Models:
    if name == "nano":
        return load_models(name, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    dit_config, vae_config = CONFIGS[name]
    with torch.device("meta"):
        dit, vae = DiT(dit_config), VideoVAE(vae_config)
    for network in (dit, vae):
        randomize(network, device, torch.bfloat16)
    vae.prepare_for_inference()
    text = torch.full((TEXT_TOKENS, dit_config.text_width), 0.5, device=device, dtype=torch.bfloat16)
    entry = find_model(name)
    return Models(dit, vae, text, entry.latent_scale, entry)


def start(order: dict[str, Any]) -> subprocess.Popen[str]:
    """A process that does the job."""
    code = "import json, sys; from benchmarks.resume import restore; restore(json.loads(sys.argv[1]))"
    return subprocess.Popen([sys.executable, "-c", code, json.dumps(order)], stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for the job; its seconds. Raises RuntimeError if it failed."""
    output, _ = process.communicate(timeout=LIMIT_S)
    if process.returncode != 0:
        raise RuntimeError(f"A job ended with code {process.returncode}.")
    return dict(json.loads(output.splitlines()[-1]))


def kill_after(process: subprocess.Popen[str], work: Path, num_units: int) -> None:
    """SIGKILL as soon as `num_units` are finished."""
    try:
        while len(finished_units(work)) < num_units:
            if process.poll() is not None:
                raise RuntimeError(
                    f"The job ended, with code {process.returncode}, before {num_units} units were there."
                )
            time.sleep(POLL_S)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 1 when the bytes differ."""
    parser = argparse.ArgumentParser(prog="seedvr bench resume", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="nano", choices=list(CONFIGS))
    parser.add_argument("--size", default="320x180", help="size of the result (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=384, metavar="N", help="of the shot (default: %(default)s)")
    parser.add_argument("--units", type=int, default=6, metavar="N", help="finished before the kill (%(default)s)")
    parser.add_argument("--cold", action="store_true", help="leave histories out of the states, however small they are")
    parser.add_argument("--memory", type=float, metavar="GIB", help="plan as for a card with so much to use")
    add_save_option(parser)
    arguments = parser.parse_args(list(argv))
    if arguments.memory and not torch.cuda.is_available():
        print("--memory plans for a CUDA card, and none can be used here; leave it out.", file=sys.stderr)
        return 2
    width, height = (int(side) for side in arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "in.mp4"
        _write_shot(source, arguments.frames, width // 2, height // 2)
        order = {
            "model": arguments.model, "size": [width, height], "source": str(source), "cold": arguments.cold,
            "memory": arguments.memory,
        }  # fmt: skip
        orders = [
            {**order, "target": str(folder / f"{kind}.mp4"), "work": str(folder / kind)}
            for kind in ("first", "second", "killed")
        ]
        whole = [finish(start(order)) for order in orders[:2]]
        work = Path(orders[2]["work"])
        kill_after(start(orders[2]), work, arguments.units)
        done = finished_units(work)
        state = max((path.stat().st_size for path in work.glob("*.state")), default=0)
        rest = finish(start(orders[2]))
        results = [Path(order["target"]).read_bytes() for order in orders]
    repeats, same = results[0] == results[1], results[0] == results[2]
    seconds = min(job["total"] for job in whole)
    share = (whole[0]["frames"] - done[-1].stop) / whole[0]["frames"]
    lost = rest["total"] - share * seconds
    rows = [
        ["undisturbed, s", f"{whole[0]['total']:.1f} and {whole[1]['total']:.1f}"],
        ["its second run has the same bytes", "yes" if repeats else "NO"],
        ["killed after", f"{done[-1].stop} of {whole[0]['frames']:.0f} frames"],
        ["state on disk, MB", f"{state / 1e6:.1f}"],
        ["the rest, s", f"{rest['total']:.1f}"],
        ["of that, histories made again, s", f"{rest.get('warm up', 0.0):.1f}"],
        ["more than its share of a whole run, s", f"{lost:.1f}"],
        ["the same bytes after the kill", "yes" if same else "NO"],
    ]
    title = f"Going on after a crash: {arguments.model} at {width}x{height}"
    title += f" within {arguments.memory:g} GiB" if arguments.memory else ""
    values = {
        "model": arguments.model, "size": [width, height], "cold": arguments.cold, "memory_gib": arguments.memory,
        "same": same, "repeats": repeats,
        "state_bytes": state, "killed_at": done[-1].stop, "whole": whole, "rest": rest, "lost_s": lost,
    }  # fmt: skip
    publish("resume", title, table(["", ""], rows), values, arguments.results if arguments.save else None)
    return 0 if same else 1


def _write_shot(path: Path, num_frames: int, width: int, height: int) -> None:
    clip = (find_clips(GROUND_TRUTH) if GROUND_TRUTH.is_dir() else find_clips(SAMPLES))[-1]
    frames, _ = read_clip(clip)
    frames = repeat_to(crop_to_multiple(frames, 2), num_frames)
    write_h264(path, resize(frames, width, height, Image.Resampling.BICUBIC), Fraction(24), 18)
