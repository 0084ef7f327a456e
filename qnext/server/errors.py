"""An error a client may see: its kind, its words, and how each dialect writes it.

Raised by every file of the server, written by `app`, `envelope` and the dialects' replies. Invariant: what is
not an `ApiError` reaches a client only as the kind "internal", never as a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "key",
    "model",
    "parameter",
    "unsupported",
    "too_large",
    "requests",
    "tokens",
    "concurrency",
    "arrears",
    "free_tier",
    "internal",
    "timeout",
    "capacity",
    "url",
    "method",
    "missing",
]
# Those that say: not now, or not for you, though nothing is wrong with the request.
REFUSALS: frozenset[Kind] = frozenset(
    ("requests", "tokens", "concurrency", "arrears", "free_tier", "capacity")
)


@dataclass(frozen=True)
class _Row:
    status: int
    native: str
    compat: str
    type: str = "invalid_request_error"
    number: int | None = None


_TABLE: dict[Kind, _Row] = {
    "key": _Row(401, "InvalidApiKey", "invalid_api_key"),
    "model": _Row(404, "ModelNotFound", "model_not_found"),
    "parameter": _Row(400, "InvalidParameter", "invalid_parameter_error"),
    "unsupported": _Row(400, "UnsupportedOperation", "unsupported_operation"),
    "too_large": _Row(413, "BadRequest.TooLarge", "request_too_large"),
    "requests": _Row(429, "Throttling.RateQuota", "limit_requests", "limit_requests"),
    "tokens": _Row(429, "Throttling.AllocationQuota", "insufficient_quota", "insufficient_quota"),
    "concurrency": _Row(429, "Throttling.Concurrency", "limit_concurrency", "limit_concurrency"),
    "arrears": _Row(400, "Arrearage", "Arrearage", "Arrearage", number=10402),
    "free_tier": _Row(
        403, "AllocationQuota.FreeTierOnly", "AllocationQuota.FreeTierOnly", "AllocationQuota.FreeTierOnly"
    ),
    "internal": _Row(500, "InternalError", "internal_error", "internal_error"),
    "timeout": _Row(408, "RequestTimeOut", "RequestTimeOut", "RequestTimeOut"),
    "capacity": _Row(503, "ModelServingError", "model_serving_error", "model_serving_error"),
    "url": _Row(404, "InvalidURL", "not_found"),
    "method": _Row(405, "MethodNotAllowed", "method_not_allowed"),
    "missing": _Row(404, "NotFound", "not_found"),
}


_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """`message` is what native clients read; `compat`, when given, is what OpenAI clients read instead.

    `param` names the parameter at fault; `retry_after` is in seconds; `retry` False tells SDKs that the same
    request would be refused again.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        compat: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        retry: bool = True,
    ) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message
        self.compat = compat or message
        self.param = param
        self.retry_after = retry_after
        self.retry = retry

    @property
    def status(self) -> int:
        return _TABLE[self.kind].status

    @property
    def native_code(self) -> str:
        return _TABLE[self.kind].native

    @property
    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found if self.retry else found | {"x-should-retry": "false"}


def native_body(error: ApiError, request_id: str) -> dict[str, Any]:
    row = _TABLE[error.kind]
    return {"code": error.native_code, "message": error.message, "request_id": request_id} | _numbered(row)


def compat_body(error: ApiError, request_id: str) -> dict[str, Any]:
    row = _TABLE[error.kind]
    inner = {"message": error.compat, "type": row.type, "param": error.param, "code": row.compat}
    return {"error": inner | _numbered(row), "request_id": request_id}


def _numbered(row: _Row) -> dict[str, Any]:
    return {} if row.number is None else {"error_code": row.number}


def anthropic_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """Anthropic tells errors apart by their type, which follows from the status but for an unpaid account."""
    kind = _ANTHROPIC.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    inner = {"type": "billing_error" if error.kind == "arrears" else kind, "message": error.compat}
    return {"type": "error", "error": inner | _numbered(_TABLE[error.kind]), "request_id": request_id}


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """The same error where a dialect calls parameters by other names (old to new)."""
    message, compat, param = error.message, error.compat, error.param
    for old, new in names.items():
        message, compat = message.replace(old, new), compat.replace(old, new)
        param = param and param.replace(old, new)
    return ApiError(
        error.kind, message, compat=compat, param=param, retry_after=error.retry_after, retry=error.retry
    )


def bad_key(base_url: str) -> ApiError:
    """`base_url` tells users who mixed up servers or regions which server refused them."""
    hint = f"This server is {base_url}; `qnext keys` creates and lists its keys."
    return ApiError("key", f"Invalid API-key provided. {hint}", compat=f"Incorrect API key provided. {hint}")


def no_model(name: str) -> ApiError:
    words = f"The model `{name}` does not exist or you do not have access to it."
    return ApiError("model", f"Model not exist. {words}", compat=words, param="model")


def missing(what: str, name: str) -> ApiError:
    """There is no such object, or it is another key's: nobody learns which."""
    return ApiError("missing", f"No such {what}: {name}", param="id")


def invalid(message: str, param: str | None = None) -> ApiError:
    return ApiError("parameter", message, param=param)


def bad_body() -> ApiError:
    return ApiError("parameter", "Required body invalid, please check the request body format.")


def too_long(length: int, limit: int, context: int, *, at_least: bool = False) -> ApiError:
    """A prompt of `length` tokens (`at_least`: counted no further) where 1 to `limit` may be given. OpenAI
    clients look for their own wording."""
    words = f"Range of input length should be [1, {limit}]"
    size = f"more than {length}" if at_least else str(length)
    more = f"This model's maximum context length is {context} tokens; the input has {size} tokens."
    return ApiError("parameter", words, compat=f"{words}. {more}", param="messages")


def internal() -> ApiError:
    return ApiError("internal", "An internal error has occurred, please try again later.")


def timed_out() -> ApiError:
    return ApiError("timeout", "Request timed out, please try again later.")


def slow_body() -> ApiError:
    return ApiError("timeout", "The request's body did not come in time: send it without pauses.")


def at_capacity(message: str) -> ApiError:
    return ApiError("capacity", message, retry_after=1)


def too_many_requests(limit: int, retry_after: int) -> ApiError:
    words = f"Requests rate limit exceeded, please try again later. This key may ask {limit} times a minute."
    return ApiError("requests", words, retry_after=retry_after)


def too_many_tokens(more: str, retry_after: int, *, retry: bool = True) -> ApiError:
    """`more` says what was asked, and what could be."""
    words = f"Allocated quota exceeded, please increase your quota limit. {more}"
    return ApiError("tokens", words, retry_after=retry_after, retry=retry)


def too_many_at_once(limit: int) -> ApiError:
    words = f"Concurrency limit exceeded, please try again later. This key may have {limit} answers at once."
    return ApiError("concurrency", words, retry_after=1)


def in_arrears() -> ApiError:
    """The number 10402 is what some clients know for an insufficient balance."""
    return ApiError("arrears", "Access denied, please make sure your account is in good standing.")


def free_tier_used(model: str) -> ApiError:
    words = (
        "The free tier of the model has been exhausted. If you wish to continue access the model on a paid"
    )
    return ApiError("free_tier", f"{words} basis, please add a balance to the key. The model is {model}.")


def stopping() -> ApiError:
    return ApiError("capacity", "The server is shutting down, please try again later.", retry_after=5)
