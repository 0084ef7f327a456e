"""A program for tests: trains a recipe file on the toy data source, alone or as one process of a mesh.

    torchrun --nproc-per-node 2 -m tests.train.toy_run RECIPE [key=value ...]

What goes wrong is one line on stderr and exit code 2, as from the command line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from qnext.train import supervised, trainer

from .toy import ToySource


def main(recipe: str, overrides: Sequence[str]) -> int:
    """Train the recipe; returns the exit code."""
    supervised.open_source = lambda spec, folder, seed: ToySource(seed)
    try:
        trainer.train(Path(recipe), overrides)
    except ValueError as error:
        print(f"toy_run: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
