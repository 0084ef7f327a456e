from __future__ import annotations

import pytest

from qnext.server.errors import (
    ApiError,
    at_capacity,
    bad_key,
    compat_body,
    internal,
    invalid,
    native_body,
    no_model,
    timed_out,
    too_long,
)

TABLE = [
    (bad_key("u"), 401, "InvalidApiKey", "invalid_api_key", "invalid_request_error"),
    (no_model("x"), 404, "ModelNotFound", "model_not_found", "invalid_request_error"),
    (invalid("x", "n"), 400, "InvalidParameter", "invalid_parameter_error", "invalid_request_error"),
    (too_long(9, 5, 6), 400, "InvalidParameter", "invalid_parameter_error", "invalid_request_error"),
    (ApiError("too_large", "x"), 413, "BadRequest.TooLarge", "request_too_large", "invalid_request_error"),
    (internal(), 500, "InternalError", "internal_error", "internal_error"),
    (timed_out(), 408, "RequestTimeOut", "RequestTimeOut", "RequestTimeOut"),
    (at_capacity("x"), 503, "ModelServingError", "model_serving_error", "model_serving_error"),
    (ApiError("url", "x"), 404, "InvalidURL", "not_found", "invalid_request_error"),
]


@pytest.mark.parametrize(
    ("error", "status", "native", "compat", "kind"), TABLE, ids=[row[2] for row in TABLE]
)
def test_the_table_of_the_contract(error: ApiError, status: int, native: str, compat: str, kind: str) -> None:
    assert error.status == status
    assert native_body(error, "r") == {"code": native, "message": error.message, "request_id": "r"}
    inner = {"message": error.compat, "type": kind, "param": error.param, "code": compat}
    assert compat_body(error, "r") == {"error": inner, "request_id": "r"}


def test_words_that_clients_look_for() -> None:
    assert bad_key("http://h/v1").message.startswith("Invalid API-key provided.")
    assert (
        "Incorrect API key provided" in bad_key("http://h/v1").compat
        and "http://h/v1" in bad_key("http://h/v1").compat
    )
    assert too_long(9, 5, 6).message == "Range of input length should be [1, 5]"
    assert "maximum context length is 6 tokens" in too_long(9, 5, 6).compat
    assert at_capacity("x").headers == {"Retry-After": "1"} and internal().headers == {}
