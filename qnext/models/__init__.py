"""The embedded checkpoints: tiny demonstration models in the published format, found by name.

Used by `llm` and `cli`. Invariant: a name that is not embedded is a path, never a download.
"""

from __future__ import annotations

from pathlib import Path

EMBEDDED = ("tiny-base", "tiny-instruct", "tiny-thinking")


def locate(name: str | Path) -> Path:
    """The folder of an embedded model's name, or of a checkpoint directory. Raises ValueError if neither."""
    if name in EMBEDDED:
        return Path(__file__).parent / str(name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"no model {str(name)!r}: give a checkpoint directory, or one of {', '.join(EMBEDDED)}"
        )
    return folder
