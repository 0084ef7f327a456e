"""The OpenAI-compatible endpoints of batches: create, list, get, cancel.

Mounted by `app` under each of the compatible bases. Invariant: a key sees and cancels its own batches only.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import listing
from .batch_lines import ENDPOINTS, TEST_ENDPOINT, endpoint_of
from .batch_runner import BatchRunner
from .batch_store import ENDED, UNFINISHED, Batch, BatchStore, Filters
from .errors import ApiError, invalid, missing
from .gate import COMPAT_BASES, Gate, json_response
from .stored_files import StoredFiles

_HOURS = (24, 336)
_PAIRS, _NAME, _VALUE = 16, 64, 512
TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class BatchRoutes:
    def __init__(self, gate: Gate, files: StoredFiles, batches: BatchStore, runner: BatchRunner) -> None:
        self._gate, self._files, self._batches, self._runner = gate, files, batches, runner

    def routes(self) -> list[Route]:
        return [
            route
            for base in COMPAT_BASES
            for route in (
                Route(base + "/batches", self.create, methods=["POST"]),
                Route(base + "/batches", self.index, methods=["GET"]),
                Route(base + "/batches/{name}", self.get, methods=["GET"]),
                Route(base + "/batches/{name}/cancel", self.cancel, methods=["POST"]),
            )
        ]

    async def create(self, request: Request) -> Response:
        key = self._gate.key(request)
        body = await self._gate.body(request)
        endpoint = endpoint_of(body.get("endpoint"))
        if endpoint is None:
            raise invalid(f"'endpoint' should be one of {[*ENDPOINTS, TEST_ENDPOINT]}", "endpoint")
        window, hours = _window(body.get("completion_window"))
        details = _details(body.get("metadata"))
        name = body.get("input_file_id")
        if not isinstance(name, str) or not name:
            raise invalid("'input_file_id' is missing: give the id of an uploaded file", "input_file_id")
        file = self._files.find(key.id, name)
        if file is None:
            raise invalid(f"No such File object: {name}", "input_file_id")
        if file.purpose != "batch":
            words = f"the file's purpose is {file.purpose!r}: upload it with the purpose 'batch'"
            raise invalid(words, "input_file_id")
        most = self._gate.settings.max_batches
        batch = await asyncio.to_thread(
            self._batches.create, file, endpoint, window, hours * 3600, details, most
        )
        if batch is None:
            raise invalid(f"at most {most} of your batches may be unfinished: wait for some or cancel them")
        self._runner.wake()
        return json_response(_told(batch))

    async def index(self, request: Request) -> Response:
        key, query = self._gate.key(request), request.query_params
        limit = listing.whole_number(query, "limit", 20, 100)
        filters = Filters(
            name=query.get("ds_name") or "",
            statuses=listing.names(query, "status", (*UNFINISHED, *ENDED)),
            input_file_ids=listing.names(query, "input_file_ids"),
            since=listing.moment(query, "create_after"),
            until=listing.moment(query, "create_before"),
        )
        after = None
        if name := query.get("after"):
            after = self._batches.find(key.id, name)
            if after is None:
                raise invalid(f"No such Batch object: {name}", "after")
        found, total = self._batches.listed(key.id, limit, filters, after=after)
        ends = {"first_id": found[0].id, "last_id": found[-1].id} if found else {}
        data = [_told(batch) for batch in found]
        return json_response({"object": "list", "data": data, "has_more": total > len(found), **ends})

    async def get(self, request: Request) -> Response:
        return json_response(_told(self._asked(request)))

    async def cancel(self, request: Request) -> Response:
        batch = self._asked(request)
        cancelled = await asyncio.to_thread(self._batches.cancel, batch)
        if cancelled is None:
            now = self._asked(request).status
            raise ApiError("unsupported", f"Cannot cancel a batch with status {now!r}.", param="id")
        self._runner.wake()
        return json_response(_told(cancelled))

    def _asked(self, request: Request) -> Batch:
        key, name = self._gate.key(request), request.path_params["name"]
        batch = self._batches.find(key.id, name)
        if batch is None:
            raise missing("Batch object", name)
        return batch


def _window(text: Any) -> tuple[str, int]:
    """The window as it was given, and in hours: from a day to two weeks."""
    found = re.fullmatch(r"(\d{1,4})([hd])", text, re.A) if isinstance(text, str) else None
    hours = int(found[1]) * (24 if found[2] == "d" else 1) if found else 0
    if not _HOURS[0] <= hours <= _HOURS[1]:
        words = "'completion_window' should be hours or days from 24h to 336h, such as 24h or 7d"
        raise invalid(words, "completion_window")
    return str(text), hours


def _details(raw: Any) -> dict[str, str]:
    if raw is None:
        return {}
    fits = isinstance(raw, dict) and len(raw) <= _PAIRS
    if fits and all(len(k) <= _NAME and isinstance(v, str) and len(v) <= _VALUE for k, v in raw.items()):
        return dict(raw)
    words = f"at most {_PAIRS} texts of {_VALUE} characters with names of {_NAME}"
    raise invalid(f"'metadata' should be an object of {words}", "metadata")


def _told(batch: Batch) -> dict[str, Any]:
    def seconds(value: float | None) -> int | None:
        return None if value is None else int(value)

    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": int(batch.created),
        "expires_at": int(batch.expires),
        **{f"{each}_at": seconds(getattr(batch, f"{each}_at")) for each in TIMES},
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": batch.input,
            "input_tokens_details": {"cached_tokens": batch.cached},
            "output_tokens": batch.output,
            "output_tokens_details": {"reasoning_tokens": batch.reasoning},
            "total_tokens": batch.input + batch.output,
        },
        "metadata": batch.details or None,
    }
