"""The operations of work that is done later: batches, and tasks, which are batches in the native protocol.

Read by `document`. Invariant: as `batch_routes` and `task_routes` serve them.
"""

from __future__ import annotations

from ..batch_lines import ENDPOINTS, TEST_ENDPOINT
from ..batch_routes import TIMES
from ..batch_store import ENDED, UNFINISHED
from ..gate import NATIVE_BASE
from .files import NATIVE_TAG, TAG
from .operation import COMPAT_PREFIXES, Operation
from .schema import Schema, Schemas, answer, const, count, listed, many, nullable, ref, request, text, whole

_PATH, _TASKS = "/v1/batches", NATIVE_BASE + "/tasks"
_WINDOW = "^((2[4-9]|[3-9][0-9]|[12][0-9]{2}|3[0-2][0-9]|33[0-6])h|([1-9]|1[0-4])d)$"
_MOMENT = "yyyyMMddHHmmss (UTC), or seconds since 1970."
_TASK_STATUS = ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELED")
_TASK = answer("", {"output": ref("Task"), "request_id": text()})

OPERATIONS = [
    Operation(
        "createBatch",
        "post",
        _PATH,
        TAG,
        "Have the lines of a file answered",
        ref("Batch"),
        "",
        COMPAT_PREFIXES,
        body=request(
            "",
            {
                "input_file_id": text(
                    'A file of the purpose `batch`: lines of `{"custom_id", "body", …}`.', minLength=1
                ),
                "endpoint": text("", *ENDPOINTS, TEST_ENDPOINT),
                "completion_window": text("Hours or days, from 24h to 336h.", pattern=_WINDOW),
            },
            {
                "metadata": {
                    "type": "object",
                    "additionalProperties": text(maxLength=512),
                    "maxProperties": 16,
                    "description": "`ds_name` and `ds_description`, or whatever you like.",
                }
            },
        ),
    ),
    Operation(
        "listBatches",
        "get",
        _PATH,
        TAG,
        "The batches of the key, the newest first",
        listed("Batch", ""),
        "",
        COMPAT_PREFIXES,
        query={
            "limit": whole("", 1, 100, default=20),
            "after": text("The last id of the page before."),
            "ds_name": text("Part of the name in `metadata`."),
            "status": text("Some of the statuses, separated by commas."),
            "input_file_ids": text("Some ids, separated by commas."),
            "create_after": text(_MOMENT),
            "create_before": text(_MOMENT),
        },
    ),
    Operation("getBatch", "get", _PATH + "/{name}", TAG, "One batch", ref("Batch"), "", COMPAT_PREFIXES),
    Operation(
        "cancelBatch",
        "post",
        _PATH + "/{name}/cancel",
        TAG,
        "Cancel a batch",
        ref("Batch"),
        "Lines that were answered stay answered.",
        COMPAT_PREFIXES,
        errors=(400,),
    ),
    Operation(
        "listTasks",
        "get",
        _TASKS,
        NATIVE_TAG,
        "The tasks of the key",
        answer(
            "",
            {
                **{name: count() for name in ("total", "total_page", "page_no", "page_size")},
                "data": many(ref("TaskRow")),
                "request_id": text(),
            },
        ),
        query={
            "page_no": whole("", 1, 10**6, default=1),
            "page_size": whole("", 1, 100, default=10),
            "status": text("", *_TASK_STATUS),
            "model_name": text(),
            "start_time": text(_MOMENT),
            "end_time": text(_MOMENT),
        },
    ),
    Operation("getTask", "get", _TASKS + "/{name}", NATIVE_TAG, "One task; UNKNOWN if there is none", _TASK),
    Operation(
        "cancelTask", "post", _TASKS + "/{name}/cancel", NATIVE_TAG, "Cancel a task", _TASK, errors=(400,)
    ),
]
_TIME = nullable(count("Seconds since 1970."))
_MS = nullable(count("Milliseconds since 1970."))
_USAGE: Schemas = {
    "input_tokens": count(),
    "input_tokens_details": answer("", {"cached_tokens": count()}),
    "output_tokens": count(),
    "output_tokens_details": answer("", {"reasoning_tokens": count()}),
    "total_tokens": count(),
}
_FAULT: Schemas = {
    "code": text(),
    "message": text(),
    "line": nullable(count()),
    "param": nullable(text()),
}
_WRITTEN = nullable(text("yyyy-mm-dd hh:mm:ss.000, UTC."))
SCHEMAS: dict[str, Schema] = {
    "Batch": answer(
        "",
        {
            "id": text(),
            "object": const("batch"),
            "endpoint": text(),
            "model": nullable(text()),
            "errors": nullable(answer("", {"object": const("list"), "data": many(answer("", _FAULT))})),
            "input_file_id": text(),
            "completion_window": text(),
            "status": text("", *UNFINISHED, *ENDED),
            "output_file_id": nullable(text()),
            "error_file_id": nullable(text()),
            "created_at": count("Seconds since 1970."),
            "expires_at": count("Seconds since 1970."),
            **{f"{each}_at": _TIME for each in TIMES},
            "request_counts": answer("", {"total": count(), "completed": count(), "failed": count()}),
            "usage": answer("", _USAGE),
            "metadata": nullable({"type": "object", "additionalProperties": text()}),
        },
    ),
    "Task": answer(
        "",
        {"task_id": text(), "task_status": text("", *_TASK_STATUS, "UNKNOWN")},
        {
            "submit_time": _WRITTEN,
            "scheduled_time": _WRITTEN,
            "end_time": _WRITTEN,
            "task_metrics": answer("", {"TOTAL": count(), "SUCCEEDED": count(), "FAILED": count()}),
            "output_file_id": nullable(text()),
            "error_file_id": nullable(text()),
            "code": text(),
            "message": text(),
        },
    ),
    "TaskRow": answer(
        "",
        {
            "task_id": text(),
            "status": text("", *_TASK_STATUS),
            "model_name": text(),
            "api_key_id": text(),
            "region": text(),
            "gmt_create": count("Milliseconds since 1970."),
            "start_time": _MS,
            "end_time": _MS,
        },
    ),
}
