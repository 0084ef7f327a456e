"""qnext: the whole Qwen3-Next system. Names are loaded when first used, so that importing this is quick."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import VERSION

if TYPE_CHECKING:
    from .engine.config import EngineConfig
    from .engine.request import SamplingParams
    from .llm import LLM
    from .model.config import ModelConfig
    from .model.packing import Packing
    from .model.qwen3_next import Qwen3Next
    from .text.messages import Message
    from .text.tokenizer import Tokenizer

__version__ = VERSION
_HOMES = {
    "EngineConfig": "engine.config",
    "LLM": "llm",
    "Message": "text.messages",
    "ModelConfig": "model.config",
    "Packing": "model.packing",
    "Qwen3Next": "model.qwen3_next",
    "SamplingParams": "engine.request",
    "Tokenizer": "text.tokenizer",
}
__all__ = [
    "LLM",
    "EngineConfig",
    "Message",
    "ModelConfig",
    "Packing",
    "Qwen3Next",
    "SamplingParams",
    "Tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qnext' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
