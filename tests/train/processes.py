"""Real processes for the tests of training: copies of the test's own, so that none has to import anything."""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable


def start(work: Callable[[], object], environment: dict[str, str] | None = None) -> int:
    """Do `work` in a new process; returns its id. It ends with code 0, or 1 and a traceback on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of this process only wait
        process = os.fork()
    if process:
        return process
    code = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the test's own timeout
        os.environ.update(environment or {})
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end(process: int, seconds: float | None = None) -> int | None:
    """Wait for a process -> its code, negative for a signal; None if it still runs after `seconds`."""
    limit = None if seconds is None else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, 0 if limit is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if limit is not None and time.monotonic() > limit:
            return None
        time.sleep(0.002)


def start_mesh(count: int, work: Callable[[int], object]) -> list[int]:
    """`work(rank)` in `count` processes that know of one another as those of `torchrun` do; their ids."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        start(lambda rank=rank: work(rank), {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})  # type: ignore[misc]
        for rank in range(count)
    ]
