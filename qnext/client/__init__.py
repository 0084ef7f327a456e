"""The client package: what code against DashScope needs beside the vendor's SDK.

Used by programs that call any server of the protocol, the hosted one included. Invariant: imports nothing of
ours, so that it may be copied out of here as it stands.
"""

from .chain import chain, pieces
from .groups import MAX_PROMPTS, answer_all
from .regions import Region, Regions
from .retries import call_with_retry, retryable, wait_seconds
from .streaming import Streaming, install

__all__ = [
    "MAX_PROMPTS",
    "Region",
    "Regions",
    "Streaming",
    "answer_all",
    "call_with_retry",
    "chain",
    "install",
    "pieces",
    "retryable",
    "wait_seconds",
]
