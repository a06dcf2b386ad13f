"""The fault table: every sentence that the doctor can say, with its severity and its action, in one place.

`docs/doctor.md` is made from it (`python -m inference.doctor.faults`). Names in braces are filled in by the check.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from inference.doctor.findings import Finding, Severity

OK, NOTE, WARNING, ERROR = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.ERROR


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of the table."""

    severity: Severity
    sentence: str
    action: str = ""


FAULTS: dict[str, Fault] = {
    # the machine
    "driver.ok": Fault(OK, "The NVIDIA driver {version} answers: {cards}."),
    "driver.none": Fault(
        NOTE,
        "There is no NVIDIA card here, so the embedded model runs on the CPU.",
        "Use a machine with an NVIDIA card for the released models.",
    ),
    "driver.missing": Fault(
        ERROR,
        "This machine should have an NVIDIA card, but its driver does not answer ({reason}).",
        "Start the container with the card (docker run --gpus all), or install the driver: nvidia-smi has to work.",
    ),
    "memory.ok": Fault(OK, "{free} of {total} memory is free."),
    "memory.little": Fault(
        WARNING,
        "Only {free} of {total} memory is free, so large pictures may end the worker.",
        "Close other programs, or use a machine with more memory.",
    ),
    "shm.ok": Fault(OK, "/dev/shm has {free} free."),
    "shm.little": Fault(
        WARNING,
        "/dev/shm has only {free} free, which is too little for several cards or processes to work on one job.",
        "Start the container with a larger one (docker run --shm-size=1g).",
    ),
    "shm.missing": Fault(
        NOTE, "There is no /dev/shm, which only several cards working on one job need.", "Mount a tmpfs there for that."
    ),
    "disk.ok": Fault(OK, "The data folder has {free} free, and writes {write} and reads {read} MB/s."),
    "disk.slow": Fault(
        WARNING,
        "The data folder writes only {write} MB/s and reads {read} MB/s, which can hold the work up.",
        "Put the data folder on a faster disk with --data or SEEDVR_DATA.",
    ),
    "disk.low": Fault(
        WARNING,
        "The disk of the data folder has only {free} free.",
        "Remove finished jobs, or lower --keep-days or --keep-gb.",
    ),
    "disk.full": Fault(
        ERROR,
        "The disk of the data folder is full ({free} free), so no job starts.",
        "Remove finished jobs or other files of that disk.",
    ),
    "disk.read-only": Fault(
        ERROR,
        "The data folder {folder} cannot be written ({reason}).",
        "Mount it writable, give this user the right to write, or name another one with --data or SEEDVR_DATA.",
    ),
    "filesystem.ok": Fault(OK, "The data folder is on {kind}."),
    "filesystem.network": Fault(
        NOTE,
        "The data folder is on a network file system ({kind}), where the index of jobs is kept in a slower, safe way.",
        "Nothing is needed; a local disk would be faster.",
    ),
    "filesystem.container": Fault(
        WARNING,
        "The data folder is inside the container ({kind}) and is lost with it.",
        "Put it on a volume with --data or SEEDVR_DATA, such as /workspace/seedvr.",
    ),
    "filesystem.memory": Fault(
        WARNING,
        "The data folder is in memory ({kind}) and is lost when the machine stops.",
        "Put it on a disk with --data or SEEDVR_DATA.",
    ),
    "clock.ok": Fault(OK, "The clock agrees with that of the hub."),
    "clock.unknown": Fault(OK, "The clock is plausible; there was no other one to compare it with."),
    "clock.wrong": Fault(
        WARNING,
        "The clock is {difference} {direction}, so sign-ins and downloads may be refused.",
        "Set the clock of the host (NTP); a container has that of its host.",
    ),
    "clock.past": Fault(
        ERROR,
        "The clock says {date}, which is before this program was made, so secure connections fail.",
        "Set the clock of the host (NTP); a container has that of its host.",
    ),
    "hub.ok": Fault(OK, "The hub answers at {endpoint}."),
    "hub.offline": Fault(
        NOTE, "Offline mode is on, so nothing is downloaded.", "Unset HF_HUB_OFFLINE to download models."
    ),
    "hub.unreachable": Fault(
        WARNING,
        "The hub at {endpoint} cannot be reached ({reason}), so models cannot be downloaded.",
        "Check network, proxy and firewall of the machine, or copy the files there and set engine.weights.",
    ),
    # the weights
    "weights.ok": Fault(OK, "{model} is here, and its files were verified."),
    "weights.unverified": Fault(OK, "{model} is here; its files are verified when they are first used."),
    "weights.none": Fault(NOTE, "{model} is not here; its first job downloads it.", "Nothing is needed."),
    "weights.partial": Fault(
        WARNING,
        "The download of {file} has stopped at {done}.",
        "Start a job with that model: the download goes on where it stopped.",
    ),
    "weights.wrong": Fault(
        ERROR,
        "{file} has {size} bytes instead of {expected}: it is incomplete or another file.",
        "Move {file} away; the next job downloads it anew.",
    ),
    "weights.link": Fault(
        ERROR,
        "{file} is a link to {target}, which is not there.",
        "Remove the link, or bring back what it leads to (a volume that is not mounted?).",
    ),
    "weights.embedded": Fault(
        ERROR, "The embedded model cannot be used: {reason}.", "Install the program again; its own files are damaged."
    ),
    "weights.folder": Fault(ERROR, "{reason}.", "Correct engine.weights (--weights), or leave it empty."),
    "codecs.ok": Fault(OK, "A clip was written as H.264 and read back; decoders for {codecs} are there."),
    "codecs.missing": Fault(
        WARNING, "FFmpeg here cannot read {codecs}.", "Install the PyAV wheel again (pip install --force-reinstall av)."
    ),
    "codecs.broken": Fault(
        ERROR,
        "H.264 video cannot be written and read ({reason}).",
        "Install the PyAV wheel again (pip install --force-reinstall av).",
    ),
    # torch and the card
    "torch.ok": Fault(OK, "torch {version} computes on {device}."),
    "torch.missing": Fault(
        ERROR,
        "torch cannot be used ({reason}).",
        "Remove .venv and start ./run.sh again; SEEDVR_TORCH names another build.",
    ),
    "torch.cpu-build": Fault(
        ERROR,
        "There is a card, but the installed torch {version} is a build for CPUs.",
        "Remove .venv and start ./run.sh again with SEEDVR_TORCH naming a CUDA build.",
    ),
    "torch.old-driver": Fault(
        ERROR,
        "The driver {driver} is too old for the CUDA {cuda} that torch {version} brings; it needs {needed} or newer.",
        "Choose a host with a newer driver, or set SEEDVR_TORCH to a build for an older CUDA.",
    ),
    "torch.no-cuda": Fault(
        ERROR,
        "torch {version} cannot start CUDA ({reason}).",
        "Restart the machine or pod; if it stays so, choose another host.",
    ),
    "architecture.ok": Fault(OK, "{card} has compute capability {capability}; torch has kernels for it ({entry})."),
    "architecture.unused": Fault(OK, "There is no card whose kernels torch would need."),
    "architecture.missing": Fault(
        ERROR,
        "{card} has compute capability {capability}, but the installed torch has kernels for {archs} only.",
        "Remove .venv and start ./run.sh again with SEEDVR_TORCH naming a build for this card.",
    ),
    "architecture.refused": Fault(
        ERROR,
        "{card} refused a first computation ({reason}).",
        "Remove .venv and start ./run.sh again with SEEDVR_TORCH naming a build for this card.",
    ),
    "vram.ok": Fault(OK, "{free} of {total} device memory is free."),
    "vram.unused": Fault(OK, "No device memory is needed on the CPU."),
    "vram.little": Fault(
        WARNING,
        "Only {free} of {total} device memory is free, so other programs use the card.",
        "End the other programs on the card (nvidia-smi lists them).",
    ),
    # what computes, each proven by a call
    "attention.ok": Fault(OK, "Attention by {backend} equals the plain result; jobs use it."),
    "attention.spare": Fault(OK, "Attention by {backend} equals the plain result; it is there in reserve."),
    "attention.unused": Fault(OK, "Attention by {backend} is not for this device ({reason})."),
    "attention.broken": Fault(
        WARNING,
        "Attention by {backend} does not work here ({reason}), so another one is used.",
        "Install the torch build that suits card and driver; jobs succeed without it, but slower.",
    ),
    "norms.ok": Fault(OK, "Norms equal their formula."),
    "norms.broken": Fault(
        ERROR, "Norms give wrong results ({reason}).", "Install another torch build with SEEDVR_TORCH."
    ),
    "convolutions.ok": Fault(OK, "Channels-last convolutions equal those on the CPU."),
    "convolutions.broken": Fault(
        ERROR,
        "Channels-last convolutions give wrong results ({reason}).",
        "Install another torch build with SEEDVR_TORCH.",
    ),
    "kernels.ok": Fault(OK, "The Triton kernels equal their plain twins."),
    "kernels.unused": Fault(OK, "The Triton kernels are for cards only; plain PyTorch does their work on the CPU."),
    "kernels.off": Fault(NOTE, "The Triton kernels are switched off.", "Start without --without kernels to use them."),
    "kernels.broken": Fault(
        WARNING,
        "The Triton kernels do not work here ({reason}), so plain PyTorch does their work, but slower.",
        "Install Triton and a C compiler (apt-get install gcc), or silence this with --without kernels.",
    ),
    # optional packages
    "flash-attn.absent": Fault(OK, "flash-attn is not installed, and not needed."),
    "flash-attn.off": Fault(NOTE, "flash-attn is switched off.", "Start without --without flash-attn to use it."),
    "flash-attn.ok": Fault(OK, "flash-attn equals the plain result; it is used where torch's own kernel is not."),
    "flash-attn.broken": Fault(
        NOTE,
        "flash-attn is installed but not used, since {reason}.",
        "Nothing needs it: remove it, or silence this with --without flash-attn.",
    ),
    "apex.absent": Fault(OK, "apex is not installed, and not needed."),
    "apex.off": Fault(NOTE, "apex is switched off.", "Nothing is needed."),
    "apex.ok": Fault(OK, "apex works, but is not needed: the built-in kernels do its work in fewer passes."),
    "apex.broken": Fault(
        NOTE,
        "apex is installed but not used, since {reason}.",
        "Nothing needs it: remove it, or silence this with --without apex.",
    ),
    # the examination itself
    "doctor.ended": Fault(
        ERROR,
        "The check of {check} did not come to its end: {reason}.",
        "Run `seedvr doctor` in a terminal, and report what it prints.",
    ),
}


def found(key: str, **values: object) -> Finding:
    """The finding of a row of the table. What is filled in is cut to one line, and not long."""
    fault = FAULTS[key]
    filled = {name: to_line(str(value)) for name, value in values.items()}
    return Finding(key, fault.severity, fault.sentence.format(**filled), fault.action.format(**filled))


def to_line(text: str, limit: int = 300) -> str:
    """`text` without line breaks, at most `limit` characters long, and without the point at its end."""
    line = " ".join(text.split())
    return (line if len(line) <= limit else f"{line[: limit - 3]}...").rstrip(".")


def to_table() -> str:
    """The fault table in Markdown."""
    rows = [f"| `{key}` | {fault.severity} | {fault.sentence} | {fault.action} |" for key, fault in FAULTS.items()]
    return "\n".join(["| finding | severity | sentence | action |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    sys.stdout.write(f"{to_table()}\n")
