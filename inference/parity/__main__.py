"""`python -m inference.parity DIR`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from inference.parity import run_parity


def main(arguments: Sequence[str]) -> int:
    """Compare with the fixtures in a folder; returns the exit code."""
    parser = argparse.ArgumentParser(prog="parity", description="Compare with stored reference numbers.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="dit, vae or pipeline fixtures")
    return run_parity(parser.parse_args(arguments).folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
