"""`Streaming`: answers as they come, each frame with `output["text_delta"]`, its new text.

Tutorials import it from `dashscope`, which has no such class; programs import it from here, or call `install`
first. Invariant: a frame keeps everything that the SDK gave it, and joining the deltas gives the whole text,
whichever format and mode were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Streaming:
    """`dashscope.Generation` with `stream=True`, frame by frame."""

    @staticmethod
    def call(*args: Any, **kwargs: Any) -> Iterator[Any]:
        """The frames of an answer, asked for with the arguments of `Generation.call`. Only new text travels
        unless `incremental_output=False`. A frame that tells an error has `status_code`, `code` and
        `message`, and no output. Raises ImportError without the SDK."""
        cumulative = kwargs.get("incremental_output") is False
        asked = kwargs | {"stream": True, "incremental_output": not cumulative}
        return _with_deltas(_sdk().Generation.call(*args, **asked), cumulative)


def install() -> None:
    """Makes `from dashscope import Streaming` work, in this process. Raises ImportError without the SDK."""
    _sdk().Streaming = Streaming


def _sdk() -> Any:
    try:
        import dashscope
    except ImportError:
        raise ImportError("Streaming needs the vendor's SDK: pip install dashscope") from None
    return dashscope


def _with_deltas(frames: Iterator[Any], cumulative: bool) -> Iterator[Any]:
    told: dict[int, str] = {}
    for frame in frames:
        if frame.output is not None:
            index, text = _text(frame.output)
            before = told.get(index, "")
            # A snapshot that does not go on from the last one is no snapshot of ours: it is all new.
            whole = cumulative and text.startswith(before)
            frame.output["text_delta"] = text[len(before) :] if whole else text
            told[index] = text
        yield frame


def _text(output: Mapping[str, Any]) -> tuple[int, str]:
    """The choice that a frame tells of, and the text it holds, in either format."""
    choices = output.get("choices")
    if not choices:
        return 0, output.get("text") or ""
    return choices[0].get("index") or 0, choices[0]["message"].get("content") or ""
