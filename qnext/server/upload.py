"""An upload: the files and fields of a multipart form, as they come in, up to a limit.

Called by `file_routes`. Invariants: a form that breaks off is no form; whatever happens, its temporary files
are gone when the caller is done with it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import BinaryIO

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .errors import ApiError, invalid

# What a client sends wrongly is told to the client, not to the log.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

_FRAME = 64 * 2**10  # what boundaries, headers and fields may take beside the files
_CHUNK = 2**20
MAX_FILES = 100


@asynccontextmanager
async def received(request: Request, max_bytes: int) -> AsyncIterator[FormData]:
    """The form that was sent. Raises ApiError for one that is too large or is none."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise invalid("the body must be a form: Content-Type: multipart/form-data with a boundary")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:18]) > max_bytes + _FRAME:
        raise _too_large(max_bytes)
    form = _Form(request, max_bytes)
    try:
        fields = await form.parse()
    except MultiPartException as error:
        raise invalid(f"the form cannot be read: {error.message}") from None
    try:
        yield fields
    finally:
        await fields.close()


def chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _too_large(max_bytes: int) -> ApiError:
    return ApiError("too_large", f"The file is larger than {max_bytes} bytes", param="file")


class _Form(MultiPartParser):
    """A parser that knows whether the form's end has come."""

    def __init__(self, request: Request, max_bytes: int) -> None:
        stream = self._limited(request, max_bytes)
        super().__init__(request.headers, stream, max_files=MAX_FILES, max_fields=100, max_part_size=_FRAME)
        self._whole = False

    def on_end(self) -> None:
        self._whole = True

    async def _limited(self, request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes + _FRAME:
                raise _too_large(max_bytes)
            yield chunk
        if not self._whole:  # told from here, so that the parser lets go of its files
            raise MultiPartException("it breaks off before its end.")
