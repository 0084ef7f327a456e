"""A folder of the disk tier, over several starts; and a family of entries to put there."""

from __future__ import annotations

from pathlib import Path

from qnext.engine.disk_tier import DiskTier
from qnext.engine.entry_file import file_bytes
from qnext.engine.entry_folder import WHOLE
from qnext.engine.tier import Entry

from .entries import FINGERPRINT, entry

FILE = file_bytes(entry(1), FINGERPRINT)  # of an entry of one token without a parent


class Restarts:
    """One folder, and the tiers that open it one after the other."""

    def __init__(self, root: Path) -> None:
        self.root, self.own = root, root / FINGERPRINT
        self.tiers: list[DiskTier] = []

    def start(self, limit: int = 1 << 20, queue: int = 1 << 20) -> DiskTier:
        self.tiers.append(DiskTier(self.root, FINGERPRINT, limit, queue))
        return self.tiers[-1]

    def restart(self, *entries: Entry, limit: int = 1 << 20) -> DiskTier:
        """Put these, close, and start again."""
        tier = self.start()
        for each in entries:
            tier.put(each)
        tier.close()
        return self.start(limit)

    def file(self, what: Entry) -> Path:
        return self.own / (what.header.key + WHOLE)

    def files(self) -> set[str]:
        return {path.stem for path in self.own.iterdir()}


ROOT = entry(1, 2)
CHILD = entry(3, parent=ROOT)
GRANDCHILD = entry(4, 5, 6, parent=CHILD)
SIBLING = entry(7, parent=ROOT)
FAMILY = (ROOT, CHILD, GRANDCHILD, SIBLING)
