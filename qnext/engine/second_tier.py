"""The second tier: copies of checkpoints in host memory or on disk, behind the prefix cache.

Called by `keeper` when a checkpoint is made, and by `steps` when a sequence begins at one that has left the
memory. Invariant: an entry holds what its parent does not; only whole chains are ever brought back.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

import torch
from torch import Tensor

from .cache import Checkpoint, PrefixCache
from .config import EngineConfig
from .disk_tier import DiskTier
from .host_tier import HostTier
from .plan import Fetch
from .runner import Runner
from .sight import blank, fill
from .tier import Entry, Header, Tier, entry_key

LAYOUT = 2  # of a slot's bytes: another number where they lie otherwise than before
ABOUT = 16  # bytes after a state: replays, and how far the MTP head must not look back


class SecondTier:
    """Moves checkpoints between the runner's memory and a tier. The tree learns at once what is there."""

    def __init__(self, tier: Tier, runner: Runner, cache: PrefixCache) -> None:
        self._tier, self._runner, self._cache = tier, runner, cache
        self._filled = cache.pages.filled
        texts: dict[str, tuple[int, ...]] = {}
        for header in tier.headers():
            texts[header.key] = (*texts.get(header.parent or "", ()), *header.tokens)
            salt, stretched = header.salt[1:], header.salt[0] == "L"
            cache.learn((salt, stretched), texts[header.key], header.key)

    @classmethod
    def of(cls, config: EngineConfig, runner: Runner, cache: PrefixCache, weights: str) -> SecondTier | None:
        """What the config asks for: None, host memory or disk. Raises ValueError where it is not known which
        `weights` these are."""
        if config.disk_cache is not None:
            if not weights:
                raise ValueError("disk_cache needs a checkpoint directory: its copies must fit the weights")
            # Copies fit only the same weights, laid out in the same way.
            kv = str(runner.state.pages.dtype)
            layout = (LAYOUT, weights, config.drafts, kv, runner.state_bytes, ABOUT)
            digest = blake2b(repr(layout).encode(), digest_size=16).hexdigest()
            tier: Tier = DiskTier(config.disk_cache, digest, config.disk_cache_bytes)
            return cls(tier, runner, cache)
        if config.host_cache_bytes:
            return cls(HostTier(config.host_cache_bytes), runner, cache)
        return None

    def write(self, checkpoint: Checkpoint, slot: int, pages: array[int]) -> None:
        """Copy a checkpoint that has just been made; `slot` and `pages` still hold it."""
        if checkpoint.key is not None and checkpoint.key in self._tier:
            return
        above = self._cache.above(checkpoint)
        parent = next((each for each in above if each.key is not None and each.key in self._tier), None)
        begin = parent.length if parent else 0
        tokens = self._cache.tokens(checkpoint)[begin:]
        salt = ("L" if checkpoint.root[1] else "S") + checkpoint.root[0]
        parent_key = parent.key if parent else None
        key = entry_key(parent_key, salt, tokens)
        content = self._runner.content_of(slot).cpu()
        unseen = blank(self._filled, pages, checkpoint.length, self._runner.page_size)
        about = torch.tensor([checkpoint.replays, unseen]).view(torch.uint8)
        state = torch.cat((content, about))
        kv = self._cells(pages, begin, checkpoint.length).cpu()
        self._tier.put(Entry(Header(key, parent_key, salt, tokens), kv, state))
        checkpoint.key = key if key in self._tier else None

    def fetch(self, move: Fetch) -> bool:
        """Bring a checkpoint to a sequence's pages and slot; False if it is gone, and then nobody finds it
        again."""
        sequence, checkpoint = move.sequence, move.checkpoint
        entries: list[Entry] = []
        key = checkpoint.key
        if key is None:  # found to be gone by another sequence of this very step
            return False
        while key is not None:
            entry = self._tier.get(key)
            if entry is None:
                checkpoint.key = None
                self._cache.remove(checkpoint)
                return False
            entries.append(entry)
            key = entry.header.parent
        end = 0
        for entry in reversed(entries):
            begin, end = end, end + len(entry.header.tokens)
            self._set_cells(sequence.pages, begin, end, entry.kv)
        assert sequence.slot is not None
        about = [entry.state[-ABOUT:].clone().view(torch.int64).tolist() for entry in entries]
        sequence.replays, unseen = about[0][0], max(each[1] for each in about)
        if unseen < end:
            fill(self._filled, sequence.pages, unseen, end, self._runner.page_size)
        self._runner.fill(sequence.slot, entries[0].state[:-ABOUT].to(self._runner.device))
        sequence.kept = 0  # so that its end is kept in memory too
        return True

    def close(self) -> None:
        self._tier.close()

    def _cells(self, pages: array[int], begin: int, end: int) -> Tensor:
        """Keys and values of tokens as bytes, token by token."""
        size = self._runner.page_size
        where = torch.arange(begin, end, device=self._runner.device)
        table = torch.tensor(pages, device=self._runner.device)
        found = self._runner.state.pages.permute(0, 3, 1, 2, 4, 5)[table[where // size], where % size]
        return found.contiguous().view(torch.uint8).flatten()

    def _set_cells(self, pages: array[int], begin: int, end: int, content: Tensor) -> None:
        """Put `_cells` back."""
        memory, size = self._runner.state.pages, self._runner.page_size
        where = torch.arange(begin, end, device=memory.device)
        table = torch.tensor(pages, device=memory.device)
        shape = (end - begin, memory.shape[1], 2, *memory.shape[4:])
        values = content.to(memory.device).view(memory.dtype).view(shape)
        memory.permute(0, 3, 1, 2, 4, 5)[table[where // size], where % size] = values
