"""The native endpoints of tasks: batches, seen as the asynchronous jobs of the native protocol.

Mounted by `app` under `/api/v1`. Invariant: a task's id is its batch's; a key sees and cancels its own only.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import listing
from .batch_runner import BatchRunner
from .batch_store import Batch, BatchStore, Filters
from .envelope import request_id
from .errors import ApiError, invalid
from .gate import NATIVE_BASE, Gate, json_response

_STATUS = {
    "validating": "PENDING",
    "in_progress": "RUNNING",
    "finalizing": "RUNNING",
    "cancelling": "RUNNING",
    "completed": "SUCCEEDED",
    "failed": "FAILED",
    "expired": "FAILED",
    "cancelled": "CANCELED",
}


class TaskRoutes:
    def __init__(self, gate: Gate, batches: BatchStore, runner: BatchRunner) -> None:
        self._gate, self._batches, self._runner = gate, batches, runner

    def routes(self) -> list[Route]:
        base = NATIVE_BASE + "/tasks"
        return [
            Route(base, self.index, methods=["GET"]),
            Route(base + "/{name}", self.get, methods=["GET"]),
            Route(base + "/{name}/cancel", self.cancel, methods=["POST"]),
        ]

    async def index(self, request: Request) -> Response:
        key, query = self._gate.key(request), request.query_params
        number, size = listing.page(query)
        wanted = listing.choice(query, "status", {"", *_STATUS.values()}, "")
        filters = Filters(
            statuses=[status for status, shown in _STATUS.items() if shown == wanted],
            model=query.get("model_name") or "",
            since=listing.moment(query, "start_time"),
            until=listing.moment(query, "end_time"),
        )
        found, total = self._batches.listed(key.id, size, filters, skip=(number - 1) * size)
        page = {
            "total": total,
            "total_page": -(-total // size),
            "page_no": number,
            "page_size": size,
            "data": [_row(batch) for batch in found],
        }
        return json_response(page | {"request_id": request_id(request)})

    async def get(self, request: Request) -> Response:
        key, name = self._gate.key(request), request.path_params["name"]
        batch = self._batches.find(key.id, name)
        output = {"task_id": name, "task_status": "UNKNOWN"} if batch is None else _output(batch)
        return json_response({"output": output, "request_id": request_id(request)})

    async def cancel(self, request: Request) -> Response:
        key, name = self._gate.key(request), request.path_params["name"]
        batch = self._batches.find(key.id, name)
        if batch is None:
            raise invalid(f"Task not found: {name}")
        cancelled = await asyncio.to_thread(self._batches.cancel, batch)
        if cancelled is None:
            raise ApiError("unsupported", "Failed to cancel the task: it has ended or is about to.")
        self._runner.wake()
        return json_response({"output": _output(cancelled), "request_id": request_id(request)})


def _output(batch: Batch) -> dict[str, Any]:
    told: dict[str, Any] = {
        "task_id": batch.id,
        "task_status": _STATUS[batch.status],
        "submit_time": listing.written_time(batch.created),
        "scheduled_time": listing.written_time(batch.in_progress_at),
        "end_time": listing.written_time(batch.ended_at),
        "task_metrics": {"TOTAL": batch.total, "SUCCEEDED": batch.completed, "FAILED": batch.failed},
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
    }
    if batch.errors:
        told |= {"code": batch.errors[0]["code"], "message": batch.errors[0]["message"]}
    elif batch.status == "expired":
        told |= {"code": "batch_expired", "message": "The completion window has expired."}
    return told


def _row(batch: Batch) -> dict[str, Any]:
    return {
        "task_id": batch.id,
        "status": _STATUS[batch.status],
        "model_name": batch.model,
        "api_key_id": str(batch.key_id),
        "region": "local",
        "gmt_create": int(batch.created * 1000),
        "start_time": int(batch.in_progress_at * 1000) if batch.in_progress_at else None,
        "end_time": int(batch.ended_at * 1000) if batch.ended_at else None,
    }
