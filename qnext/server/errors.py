"""An error a client may see: its kind, its words, and how each dialect writes it.

Raised by every file of the server, written by `app`, `envelope` and the dialects' replies. Invariant: what is
not an `ApiError` reaches a client only as the kind "internal", never as a traceback.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "key",
    "model",
    "parameter",
    "unsupported",
    "too_large",
    "internal",
    "timeout",
    "capacity",
    "url",
    "method",
]


@dataclass(frozen=True)
class _Row:
    status: int
    native: str
    compat: str
    type: str = "invalid_request_error"


_TABLE: dict[Kind, _Row] = {
    "key": _Row(401, "InvalidApiKey", "invalid_api_key"),
    "model": _Row(404, "ModelNotFound", "model_not_found"),
    "parameter": _Row(400, "InvalidParameter", "invalid_parameter_error"),
    "unsupported": _Row(400, "UnsupportedOperation", "unsupported_operation"),
    "too_large": _Row(413, "BadRequest.TooLarge", "request_too_large"),
    "internal": _Row(500, "InternalError", "internal_error", "internal_error"),
    "timeout": _Row(408, "RequestTimeOut", "RequestTimeOut", "RequestTimeOut"),
    "capacity": _Row(503, "ModelServingError", "model_serving_error", "model_serving_error"),
    "url": _Row(404, "InvalidURL", "not_found"),
    "method": _Row(405, "MethodNotAllowed", "method_not_allowed"),
}


class ApiError(Exception):
    """`message` is what native clients read; `compat`, when given, is what OpenAI clients read instead.

    `param` names the parameter at fault; `retry_after` is in seconds.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        compat: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message
        self.compat = compat or message
        self.param = param
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        return _TABLE[self.kind].status

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def native_body(error: ApiError, request_id: str) -> dict[str, Any]:
    return {"code": _TABLE[error.kind].native, "message": error.message, "request_id": request_id}


def compat_body(error: ApiError, request_id: str) -> dict[str, Any]:
    row = _TABLE[error.kind]
    inner = {"message": error.compat, "type": row.type, "param": error.param, "code": row.compat}
    return {"error": inner, "request_id": request_id}


def bad_key(base_url: str) -> ApiError:
    """`base_url` tells users who mixed up servers or regions which server refused them."""
    hint = f"This server is {base_url}; `qnext keys` creates and lists its keys."
    return ApiError("key", f"Invalid API-key provided. {hint}", compat=f"Incorrect API key provided. {hint}")


def no_model(name: str) -> ApiError:
    words = f"The model `{name}` does not exist or you do not have access to it."
    return ApiError("model", f"Model not exist. {words}", compat=words, param="model")


def invalid(message: str, param: str | None = None) -> ApiError:
    return ApiError("parameter", message, param=param)


def bad_body() -> ApiError:
    return ApiError("parameter", "Required body invalid, please check the request body format.")


def too_long(length: int, limit: int, context: int) -> ApiError:
    """A prompt of `length` tokens where 1 to `limit` may be given. OpenAI clients look for their own
    wording."""
    words = f"Range of input length should be [1, {limit}]"
    more = f"This model's maximum context length is {context} tokens; the input has {length} tokens."
    return ApiError("parameter", words, compat=f"{words}. {more}", param="messages")


def internal() -> ApiError:
    return ApiError("internal", "An internal error has occurred, please try again later.")


def timed_out() -> ApiError:
    return ApiError("timeout", "Request timed out, please try again later.")


def at_capacity(message: str) -> ApiError:
    return ApiError("capacity", message, retry_after=1)
