"""The operations of files, OpenAI-compatible and native.

Read by `document`. Invariant: as `file_routes` serves them.
"""

from __future__ import annotations

from ..file_routes import MAX_LISTED, PURPOSES
from ..gate import NATIVE_BASE
from .operation import COMPAT_PREFIXES, Operation
from .schema import Schema, answer, const, count, either, listed, many, ref, text, whole

TAG, NATIVE_TAG = "OpenAI files and batches", "DashScope files and tasks"
_PATH, _NATIVE = "/v1/files", NATIVE_BASE + "/files"
_BYTES = text("The file.", format="binary", contentMediaType="application/octet-stream")
_PURPOSE = text("What the file is for.", *PURPOSES)
_PAGE: dict[str, Schema] = {
    "page_no": whole("", 1, 10**6, default=1),
    "page_size": whole("", 1, 100, default=10),
}


def _native(told: Schema) -> Schema:
    return answer("", {"data": told, "request_id": text()})


OPERATIONS = [
    Operation(
        "uploadFile",
        "post",
        _PATH,
        TAG,
        "Upload a file",
        ref("File"),
        "",
        COMPAT_PREFIXES,
        body=answer("", {"file": _BYTES, "purpose": _PURPOSE}),
        form=True,
        errors=(503,),
    ),
    Operation(
        "listFiles",
        "get",
        _PATH,
        TAG,
        "The files of the key",
        listed("File", ""),
        "",
        COMPAT_PREFIXES,
        query={
            "limit": whole("", 1, MAX_LISTED, default=MAX_LISTED),
            "after": text("The last id of the page before."),
            "order": text("By time.", "asc", "desc", default="desc"),
            "purpose": text("Those for this only."),
        },
        errors=(404,),
    ),
    Operation(
        "getFile", "get", _PATH + "/{name}", TAG, "What is known of a file", ref("File"), "", COMPAT_PREFIXES
    ),
    Operation(
        "getFileContent",
        "get",
        _PATH + "/{name}/content",
        TAG,
        "The bytes of a file",
        text(format="binary"),
        "",
        COMPAT_PREFIXES,
        media="application/octet-stream",
    ),
    Operation(
        "deleteFile",
        "delete",
        _PATH + "/{name}",
        TAG,
        "Delete a file",
        answer("", {"id": text(), "object": const("file"), "deleted": const(True)}),
        "Refused while a batch reads it.",
        COMPAT_PREFIXES,
        errors=(400,),
    ),
    Operation(
        "uploadNativeFiles",
        "post",
        _NATIVE,
        NATIVE_TAG,
        "Upload files",
        _native(
            answer(
                "",
                {
                    "uploaded_files": many(answer("", {"name": text(), "file_id": text()})),
                    "failed_uploads": many(answer("", {"name": text(), "code": text(), "message": text()})),
                },
            )
        ),
        body=answer(  # in a form nothing is null
            "",
            {"files": many(_BYTES, minItems=1)},
            {"purpose": _PURPOSE | {"default": "fine-tune"}, "descriptions": either(text(), many(text()))},
        ),
        form=True,
    ),
    Operation(
        "listNativeFiles",
        "get",
        _NATIVE,
        NATIVE_TAG,
        "The files of the key, a page at a time",
        _native(
            answer(
                "",
                {
                    "total": count(),
                    "page_no": count(),
                    "page_size": count(),
                    "files": many(ref("NativeFile")),
                },
            )
        ),
        query=_PAGE,
    ),
    Operation(
        "getNativeFile",
        "get",
        _NATIVE + "/{name}",
        NATIVE_TAG,
        "What is known of a file",
        _native(ref("NativeFile")),
        errors=(400,),
    ),
    Operation(
        "deleteNativeFile",
        "delete",
        _NATIVE + "/{name}",
        NATIVE_TAG,
        "Delete a file",
        answer("", {"request_id": text()}),
        "Refused while a batch reads it.",
        errors=(400,),
    ),
]
SCHEMAS: dict[str, Schema] = {
    "File": answer(
        "",
        {
            "id": text(),
            "object": const("file"),
            "bytes": count(),
            "created_at": count("Seconds since 1970."),
            "filename": text(),
            "purpose": text(),
            "status": const("processed"),
            "status_details": {"type": "null"},
        },
    ),
    "NativeFile": answer(
        "",
        {
            "id": count(),
            "size": count("Bytes."),
            **{
                name: text()
                for name in (
                    *("file_id", "name", "description", "md5", "region", "url"),
                    *("user_id", "api_key_id", "gmt_create", "purpose"),
                )
            },
        },
    ),
}
