"""Downloads and verifies the files of one model while the image is built: `python docker/bake.py MODEL`.

They land in HF_HOME, with a name each in its folder `weights`, which the start script gives as engine.weights.
"""

import os
import sys
from pathlib import Path

from inference.catalogue import find_model
from inference.download import model_files
from inference.errors import RestoreError


def main(name: str) -> int:
    """0 when all files are there and have their pinned SHA-256."""
    try:
        files = model_files(find_model(name))
    except RestoreError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    folder = Path(os.environ["HF_HOME"]) / "weights"
    folder.mkdir(exist_ok=True)
    for part, path in files.items():
        (folder / path.name).symlink_to(os.path.relpath(path.resolve(), folder.resolve()))
        sys.stdout.write(f"{part.value}: {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
