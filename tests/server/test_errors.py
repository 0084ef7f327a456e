from __future__ import annotations

import pytest

from qnext.server.errors import (
    ApiError,
    anthropic_body,
    at_capacity,
    bad_key,
    compat_body,
    free_tier_used,
    in_arrears,
    internal,
    invalid,
    native_body,
    no_model,
    renamed,
    stopping,
    timed_out,
    too_long,
    too_many_at_once,
    too_many_requests,
    too_many_tokens,
)

FREE_TIER = "AllocationQuota.FreeTierOnly"
TABLE = [
    (bad_key("u"), 401, "InvalidApiKey", "invalid_api_key", "invalid_request_error"),
    (no_model("x"), 404, "ModelNotFound", "model_not_found", "invalid_request_error"),
    (invalid("x", "n"), 400, "InvalidParameter", "invalid_parameter_error", "invalid_request_error"),
    (too_long(9, 5, 6), 400, "InvalidParameter", "invalid_parameter_error", "invalid_request_error"),
    (ApiError("too_large", "x"), 413, "BadRequest.TooLarge", "request_too_large", "invalid_request_error"),
    (too_many_requests(60, 9), 429, "Throttling.RateQuota", "limit_requests", "limit_requests"),
    (too_many_tokens("x", 9), 429, "Throttling.AllocationQuota", "insufficient_quota", "insufficient_quota"),
    (too_many_at_once(2), 429, "Throttling.Concurrency", "limit_concurrency", "limit_concurrency"),
    (free_tier_used("m"), 403, FREE_TIER, FREE_TIER, FREE_TIER),
    (stopping(), 503, "ModelServingError", "model_serving_error", "model_serving_error"),
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


def test_an_unpaid_account_has_its_number() -> None:
    error = in_arrears()
    assert error.status == 400 and error.message.startswith("Access denied, please make sure your account")
    assert native_body(error, "r")["code"] == "Arrearage" and native_body(error, "r")["error_code"] == 10402
    inner = compat_body(error, "r")["error"]
    assert (inner["code"], inner["type"], inner["error_code"]) == ("Arrearage", "Arrearage", 10402)


def test_when_to_come_again() -> None:
    for error in (too_many_requests(60, 9), too_many_tokens("x", 9), too_many_at_once(2), stopping()):
        assert int(error.headers["Retry-After"]) >= 1 and "x-should-retry" not in error.headers
    assert too_many_tokens("x", 9, retry=False).headers == {"Retry-After": "9", "x-should-retry": "false"}


def test_anthropics_types() -> None:
    kinds = {
        bad_key("http://x"): "authentication_error",
        no_model("m"): "not_found_error",
        invalid("no", "n"): "invalid_request_error",
        internal(): "api_error",
        timed_out(): "timeout_error",
        at_capacity("full"): "overloaded_error",
        in_arrears(): "billing_error",
    }
    for error, kind in kinds.items():
        body = anthropic_body(error, "r")
        assert body["type"] == "error" and body["request_id"] == "r"
        assert (body["error"]["type"], body["error"]["message"]) == (kind, error.compat)
    assert anthropic_body(in_arrears(), "r")["error"]["error_code"] == 10402


def test_an_error_by_other_names() -> None:
    error = ApiError("tokens", "stop is bad", compat="stop!", param="stop", retry_after=3, retry=False)
    other = renamed(error, {"stop": "stop_sequences"})
    assert (other.kind, other.message, other.compat) == ("tokens", "stop_sequences is bad", "stop_sequences!")
    assert (other.param, other.headers) == ("stop_sequences", error.headers)
