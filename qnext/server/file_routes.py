"""The endpoints of files: OpenAI-compatible `/files`, and native `/api/v1/files`.

Mounted by `app`. Invariant: a key reads, lists and deletes its own files only; nothing tells it whether there
are others.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from . import listing
from .batch_store import BatchStore
from .envelope import request_id
from .errors import ApiError, at_capacity, invalid, missing
from .gate import COMPAT_BASES, NATIVE_BASE, Gate, json_response
from .keys import Key
from .stored_files import NoRoom, StoredFile, StoredFiles
from .upload import chunks, received

PURPOSES = ("batch", "file-extract", "fine-tune")
MAX_LISTED = 10_000
_MAX_NAME = 255
_LOG = logging.getLogger("qnext.server")


class FileRoutes:
    def __init__(self, gate: Gate, files: StoredFiles, batches: BatchStore) -> None:
        self._gate, self._files, self._batches = gate, files, batches

    def routes(self) -> list[Route]:
        native = NATIVE_BASE + "/files"
        return [
            Route(native, self.upload_native, methods=["POST"]),
            Route(native, self.index_native, methods=["GET"]),
            Route(native + "/{name}", self.get_native, methods=["GET"]),
            Route(native + "/{name}", self.delete_native, methods=["DELETE"]),
            *(
                route
                for base in COMPAT_BASES
                for route in (
                    Route(base + "/files", self.upload, methods=["POST"]),
                    Route(base + "/files", self.index, methods=["GET"]),
                    Route(base + "/files/{name}", self.get, methods=["GET"]),
                    Route(base + "/files/{name}", self.delete, methods=["DELETE"]),
                    Route(base + "/files/{name}/content", self.content, methods=["GET"]),
                )
            ),
        ]

    async def upload(self, request: Request) -> Response:
        key = self._gate.key(request)
        async with received(request, self._gate.settings.max_file_bytes) as form:
            purpose = _purpose(form)
            if purpose is None:
                raise invalid("'purpose' is missing: give one of " + ", ".join(PURPOSES), "purpose")
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise invalid("'file' is missing: send the file as the form's part of this name", "file")
            stored = await self._save(key, file, purpose)
        return json_response(_compat(stored))

    async def index(self, request: Request) -> Response:
        key, query = self._gate.key(request), request.query_params
        limit = listing.whole_number(query, "limit", MAX_LISTED, MAX_LISTED)
        after = query.get("after")
        found = self._files.listed(
            key.id,
            limit + 1,
            purpose=query.get("purpose") or None,
            after=self._own(key, after, "after") if after else None,
            oldest_first=listing.choice(query, "order", ("asc", "desc"), "desc") == "asc",
        )
        shown = [_compat(file) for file in found[:limit]]
        ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {}
        return json_response({"object": "list", "data": shown, "has_more": len(found) > limit, **ends})

    async def get(self, request: Request) -> Response:
        return json_response(_compat(self._asked(request)))

    async def content(self, request: Request) -> Response:
        file = self._asked(request)
        path = self._files.path(file.id)
        return FileResponse(path, media_type="application/octet-stream", filename=file.filename)

    async def delete(self, request: Request) -> Response:
        file = self._asked(request)
        await self._remove(file)
        return json_response({"id": file.id, "object": "file", "deleted": True})

    async def upload_native(self, request: Request) -> Response:
        key = self._gate.key(request)
        uploaded, failed = [], []
        async with received(request, self._gate.settings.max_file_bytes) as form:
            purpose = _purpose(form) or "fine-tune"
            sent = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
            if not sent:
                raise invalid(
                    "'files' is missing: send each file as a part of the form of this name", "files"
                )
            texts = [text for text in form.getlist("descriptions") if isinstance(text, str)]
            for file, text in zip(sent, [*texts, *[""] * len(sent)], strict=False):
                try:
                    stored = await self._save(key, file, purpose, text)
                    uploaded.append({"name": stored.filename, "file_id": stored.id})
                except ApiError as error:
                    failed.append({"name": _name(file), "code": error.native_code, "message": error.message})
        data = {"uploaded_files": uploaded, "failed_uploads": failed}
        return json_response({"data": data, "request_id": request_id(request)})

    async def index_native(self, request: Request) -> Response:
        key = self._gate.key(request)
        number, size = listing.page(request.query_params)
        found = self._files.listed(key.id, size, skip=(number - 1) * size)
        data = {
            "total": self._files.count(key.id),
            "page_no": number,
            "page_size": size,
            "files": [_native(file, request) for file in found],
        }
        return json_response({"data": data, "request_id": request_id(request)})

    async def get_native(self, request: Request) -> Response:
        data = _native(self._asked_native(request), request)
        return json_response({"data": data, "request_id": request_id(request)})

    async def delete_native(self, request: Request) -> Response:
        await self._remove(self._asked_native(request))
        return json_response({"request_id": request_id(request)})

    async def _save(self, key: Key, file: UploadFile, purpose: str, description: str = "") -> StoredFile:
        name, limit = _name(file), self._gate.settings.max_file_bytes
        if not file.size:
            raise invalid(f"the file {name!r} is empty", "file")
        if file.size > limit:
            raise ApiError("too_large", f"The file is larger than {limit} bytes", param="file")
        try:
            return await asyncio.to_thread(
                self._files.save,
                key.id,
                chunks(file.file),
                filename=name,
                purpose=purpose,
                description=description[:1000],
            )
        except NoRoom:
            most = self._gate.settings.max_stored_bytes
            words = f"your files may have {most} bytes in all: delete some that are not needed"
            raise invalid(words, "file") from None
        except OSError:
            _LOG.exception("a file could not be stored")
            raise at_capacity("The file could not be stored: the server has no room for it now") from None

    async def _remove(self, file: StoredFile) -> None:
        user = self._batches.unfinished_with(file.id)
        if user is not None:
            raise ApiError(
                "unsupported", f"The file is being read by batch {user}: cancel that first", param="id"
            )
        await asyncio.to_thread(self._files.delete, file)

    def _own(self, key: Key, name: str, param: str = "id") -> StoredFile:
        file = self._files.find(key.id, name)
        if file is None:
            error = missing("File object", name)
            error.param = param
            raise error
        return file

    def _asked(self, request: Request) -> StoredFile:
        return self._own(self._gate.key(request), request.path_params["name"])

    def _asked_native(self, request: Request) -> StoredFile:
        file = self._files.find(self._gate.key(request).id, request.path_params["name"])
        if file is None:
            raise invalid("File not found.")
        return file


def _purpose(form: FormData) -> str | None:
    """What the file is for. Raises ApiError for what no file can be for."""
    purpose = form.get("purpose")
    if purpose is not None and purpose not in PURPOSES:
        raise invalid(f"'purpose' should be one of {[*PURPOSES]}", "purpose")
    return purpose if isinstance(purpose, str) else None


def _name(file: UploadFile) -> str:
    """The file's own name, without folders and without what no terminal or header should meet."""
    last = re.split(r"[/\\]", file.filename or "")[-1]
    kept = "".join(letter for letter in last if letter.isprintable())
    return kept.encode("utf-8", "replace").decode()[:_MAX_NAME] or "file"


def _compat(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def _native(file: StoredFile, request: Request) -> dict[str, Any]:
    server = f"{request.scope['scheme']}://{request.headers.get('host', '')}"
    return {
        "id": file.number,
        "file_id": file.id,
        "name": file.filename,
        "description": file.description,
        "size": file.size,
        "md5": file.md5,
        "region": "local",
        "url": f"{server}{COMPAT_BASES[0]}/files/{file.id}/content",
        "user_id": "",
        "api_key_id": str(file.key_id),
        "gmt_create": (listing.written_time(file.created) or "")[:19],
        "purpose": file.purpose,
    }
