"""Rate limits: requests and tokens a minute and answers at once, for each key.

Called by `admission`. Invariants: tokens are reserved before the engine works and given back when it has used
fewer, so that what is admitted in one minute of the clock never exceeds the limit; a request that is refused
uses up no tokens. Rates are counted in the storage of the settings, which several servers may share; answers
at once are counted by each server for itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage, Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string

from .errors import at_capacity, too_many_at_once, too_many_requests, too_many_tokens

MINUTE = 60
_LOG = logging.getLogger("qnext.server")


class Limits:
    """The counters of one server. `storage` is a URL; `clock` gives seconds since 1970."""

    def __init__(self, storage: str = "memory://", clock: Callable[[], float] = time.time) -> None:
        self._storage = _open(storage)
        self._window = MovingWindowRateLimiter(self._storage)
        self._clock = clock
        self._running: Counter[int] = Counter()
        self._returns = set[asyncio.Task[None]]()

    async def take_request(self, key_id: int, limit: int) -> int:
        """Counts a request in the 60 seconds before now; returns how many more may come. Raises ApiError
        when there were `limit` already."""
        item = RateLimitItemPerMinute(limit, namespace="qnext-rpm")
        with _reached():
            taken = await self._window.hit(item, str(key_id))
            reset, left = await self._window.get_window_stats(item, str(key_id))
        if not taken:
            raise too_many_requests(limit, max(1, round(reset - time.time() + 0.5)))
        return max(left, 0)

    async def take_tokens(self, key_id: int, tokens: int, limit: int) -> tuple[str, int]:
        """Reserves tokens in this minute; returns the minute's name, for `return_tokens`, and how many are
        left. Raises ApiError when they do not fit."""
        now = self._clock()
        minute = f"qnext-tpm/{key_id}/{int(now // MINUTE)}"
        rest = int(MINUTE - now % MINUTE) + 1
        if tokens > limit:
            words = f"The prompt and max_tokens make {tokens} tokens, this key may use {limit} a minute: "
            raise too_many_tokens(f"{words}give less, or a smaller max_tokens.", rest, retry=False)
        with _reached():
            used = await self._storage.incr(minute, 2 * MINUTE, tokens)
            if used > limit:
                await self._storage.incr(minute, 2 * MINUTE, -tokens)
        if used > limit:
            left = max(limit - used + tokens, 0)
            words = f"The prompt and max_tokens make {tokens} tokens, of {limit} a minute {left} are left."
            raise too_many_tokens(words, rest)
        return minute, limit - used

    def return_tokens(self, minute: str, tokens: int) -> None:
        """Gives back what was reserved and not used, to the minute it was taken from."""
        if tokens:
            # a task of its own, since the request that ends may be in the midst of being cancelled
            task = asyncio.ensure_future(self._return(minute, tokens))
            self._returns.add(task)
            task.add_done_callback(self._returns.discard)

    def enter(self, key_id: int, limit: int) -> None:
        """One more answer is being made for a key, to be ended with `leave`. Raises ApiError when there are
        `limit` already."""
        if self._running[key_id] >= limit:
            raise too_many_at_once(limit)
        self._running[key_id] += 1

    def leave(self, key_id: int) -> None:
        self._running[key_id] -= 1
        if not self._running[key_id]:
            del self._running[key_id]

    async def settled(self) -> None:
        """Returns when all that was given back is."""
        await asyncio.gather(*self._returns)

    async def close(self) -> None:
        """Lets go of the storage's connections."""
        await self.settled()
        if isinstance(self._storage, RedisStorage):
            await self._storage.bridge.get_connection().aclose()  # type: ignore[attr-defined]

    async def _return(self, minute: str, tokens: int) -> None:
        try:
            await self._storage.incr(minute, 2 * MINUTE, -tokens)
        except StorageError:  # they come back when the minute is over
            _LOG.exception("%d tokens of %s could not be given back", tokens, minute)


@contextmanager
def _reached() -> Iterator[None]:
    """Without its counters a server cannot keep its limits: it takes nothing until they are back."""
    try:
        yield
    except StorageError:
        _LOG.exception("the storage of the limits cannot be reached")
        raise at_capacity("The rates of this key cannot be counted for now, please try again.") from None


def _open(url: str) -> Storage:
    try:
        found = storage_from_string(
            f"async+{url}",
            wrap_exceptions=True,
            **({} if url.startswith("memory:") else {"implementation": "redispy"}),
        )
    except (ConfigurationError, ImportError) as error:
        known = "give memory:// or redis://HOST:PORT (which needs `pip install redis`)"
        raise ValueError(f"QNEXT_LIMITS_STORAGE is {url!r}: {known} ({error})") from None
    assert isinstance(found, Storage)
    return found
