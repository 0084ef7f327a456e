"""Batches through the real SDKs: the compatible endpoints, and the native tasks that show the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dashscope
import httpx
import openai
import pytest
from dashscope.client.base_api import BaseAsyncApi
from openai import OpenAI
from openai.types import Batch

from qnext.server.batch_answers import PRIORITY
from qnext.server.service import Service
from qnext.server.settings import Settings

from .conftest import Live, serving
from .fake_engine import FakeEngine

CHAT, COMPLETIONS, TEST = "/v1/chat/completions", "/v1/completions", "/v1/chat/ds-test"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=live.url + "/compatible-mode/v1", api_key=live.key, max_retries=0) as client:
        yield client


@pytest.fixture
def tasks(live: Live, monkeypatch: pytest.MonkeyPatch) -> type[BaseAsyncApi]:
    monkeypatch.setattr(dashscope, "base_http_api_url", live.url + "/api/v1")
    monkeypatch.setattr(dashscope, "api_key", live.key)
    return BaseAsyncApi


def line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    body = {"model": "tiny-instruct", "messages": HI} | body
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def upload(client: OpenAI, lines: list[dict[str, Any]]) -> str:
    content = "".join(json.dumps(each) + "\n" for each in lines).encode()
    return client.files.create(file=("lines.jsonl", content), purpose="batch").id


def begin(client: OpenAI, lines: list[dict[str, Any]], endpoint: Any = CHAT, **options: Any) -> Batch:
    options = {"completion_window": "24h"} | options
    return client.batches.create(input_file_id=upload(client, lines), endpoint=endpoint, **options)


def until(client: OpenAI, batch: Batch, right: Callable[[Batch], bool], seconds: float = 20) -> Batch:
    deadline = time.monotonic() + seconds
    while not right(batch):
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    return batch


def ended(client: OpenAI, batch: Batch) -> Batch:
    return until(client, batch, lambda b: b.status in ("completed", "failed", "expired", "cancelled"))


def said(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]


def test_every_line_is_answered_in_one_of_two_files(client: OpenAI, live: Live) -> None:
    lines = [line("good", seed=1), line("hot", temperature=3), line("streamed", stream=True, max_tokens=2)]
    details = {"ds_name": "three", "ds_description": "lines"}
    batch = begin(client, lines, metadata=details)
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", CHAT, "24h")
    assert batch.id.startswith("batch_") and batch.status == "validating" and batch.metadata == details
    assert batch.expires_at == batch.created_at + 24 * 3600
    batch = ended(client, batch)
    assert batch.status == "completed" and batch.errors is None and batch.model == "tiny-instruct"
    assert batch.request_counts is not None and vars(batch.request_counts) == {
        "total": 3,
        "completed": 2,
        "failed": 1,
    }
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert None not in times and times == sorted(times)  # type: ignore[type-var]
    good, streamed = said(client, batch.output_file_id)
    assert [each["custom_id"] for each in (good, streamed)] == ["good", "streamed"]
    response = good["response"]
    assert response["status_code"] == 200 and good["error"] is None and good["id"].startswith("batch_req_")
    answer = openai.types.chat.ChatCompletion.model_validate(response["body"])
    assert answer.choices[0].message.content == "Hello there, friend."
    assert answer.id == f"chatcmpl-{response['request_id']}"
    assert streamed["response"]["body"]["choices"][0]["finish_reason"] == "length"
    (hot,) = said(client, batch.error_file_id)
    assert hot["custom_id"] == "hot" and hot["response"]["status_code"] == 400
    assert hot["response"]["body"]["error"]["param"] == "temperature"
    words = "Temperature should be in [0.0, 2.0)"
    assert hot["error"] == {"code": "invalid_parameter_error", "message": words}
    files = {file.id: file for file in client.files.list(purpose="batch_output")}
    assert files[batch.output_file_id or ""].filename == f"{batch.id}_output.jsonl"
    bodies = [good["response"]["body"], streamed["response"]["body"]]
    assert batch.usage is not None
    assert batch.usage.total_tokens == sum(body["usage"]["total_tokens"] for body in bodies)


def test_lines_wait_behind_live_requests_and_are_paid_for(client: OpenAI, live: Live) -> None:
    entries = len(live.admission.ledger.entries(live.keys.verify(live.key).id))  # type: ignore[union-attr]
    batch = ended(client, begin(client, [line("a", priority=-5, seed=3), line("b")]))
    client.chat.completions.create(model="tiny-instruct", messages=HI)  # type: ignore[arg-type]
    assert sorted(request.priority for request in live.instruct.requests) == [0, PRIORITY, PRIORITY]
    assert len({request.cache_salt for request in live.instruct.requests}) == 1
    live.admission.submit(lambda: None).result()
    rows = live.admission.ledger.entries(live.keys.verify(live.key).id)[entries:]  # type: ignore[union-attr]
    names = {each["response"]["request_id"] for each in said(client, batch.output_file_id)}
    assert names < {row.request_id for row in rows} and len(rows) == 3


def test_completions_and_thinking(client: OpenAI, live: Live) -> None:
    body = {"prompt": ["One", "Two"], "model": "tiny-base", "messages": None, "max_tokens": 3}
    lines = [line("a", "/compatible-mode" + COMPLETIONS, **body)]
    batch = ended(client, begin(client, lines, endpoint="/compatible-mode" + COMPLETIONS))
    assert batch.endpoint == COMPLETIONS
    (only,) = said(client, batch.output_file_id)
    assert [choice["index"] for choice in only["response"]["body"]["choices"]] == [0, 1]
    live.thinking.say("Let me see.\n</think>\n\nYes.")
    batch = ended(client, begin(client, [line("t", model="qwen3-next-80b-a3b-thinking")]))
    (only,) = said(client, batch.output_file_id)
    message = only["response"]["body"]["choices"][0]["message"]
    assert message["content"] == "Yes." and message["reasoning_content"] == "Let me see."


def test_a_file_that_is_not_sound_fails_the_batch(client: OpenAI, live: Live) -> None:
    lines = [line("a"), line("a"), line("b", model="tiny-base"), line("c", url=TEST)]
    batch = ended(client, begin(client, lines))
    assert batch.status == "failed" and batch.failed_at is not None and batch.output_file_id is None
    assert batch.errors is not None and batch.errors.data is not None
    assert [(fault.code, fault.line) for fault in batch.errors.data] == [
        ("duplicate_custom_id", 2),
        ("mismatched_model", 3),
        ("url_not_found", 4),
    ]
    batch = ended(client, begin(client, [line("a", model="gpt-4o")]))
    assert batch.errors is not None and batch.errors.data is not None
    assert [(fault.code, fault.param) for fault in batch.errors.data] == [("model_not_found", "body.model")]
    assert live.instruct.requests == []


def test_the_test_model_answers_without_an_engine(client: OpenAI, live: Live) -> None:
    lines = [line(str(i), TEST, model="batch-test-model") for i in range(100)]
    batch = ended(client, begin(client, lines, endpoint=TEST))
    assert batch.status == "completed" and live.instruct.requests == []
    answers = said(client, batch.output_file_id)
    assert [each["custom_id"] for each in answers] == [str(i) for i in range(100)]
    assert all(each["response"]["body"]["choices"][0]["message"]["content"] for each in answers)


BAD = {
    "endpoint": ({"endpoint": "/v1/embeddings"}, "'endpoint' should be one of"),
    "no endpoint": ({"endpoint": None}, "'endpoint' should be one of"),
    "short window": ({"completion_window": "1h"}, "from 24h to 336h"),
    "long window": ({"completion_window": "15d"}, "from 24h to 336h"),
    "odd window": ({"completion_window": 24}, "from 24h to 336h"),
    "no file": ({"input_file_id": None}, "'input_file_id' is missing"),
    "unknown file": ({"input_file_id": "file-x"}, "No such File object: file-x"),
    "metadata is a text": ({"metadata": "x"}, "'metadata' should be an object"),
    "metadata holds a number": ({"metadata": {"a": 1}}, "'metadata' should be an object"),
    "metadata is large": ({"metadata": {"a": "x" * 513}}, "'metadata' should be an object"),
    "metadata has many": ({"metadata": {str(i): "" for i in range(17)}}, "'metadata' should be an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_told_what_is_wrong(client: OpenAI, http: httpx.Client, name: str) -> None:
    changes, words = BAD[name]
    body = {"input_file_id": upload(client, [line("a")]), "endpoint": CHAT, "completion_window": "24h"}
    answer = http.post("/v1/batches", json=body | changes)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    (param,) = changes
    assert answer.json()["error"]["param"] == param


def test_windows_of_two_weeks_and_files_of_another_purpose(client: OpenAI) -> None:
    batch = begin(client, [line("a")], completion_window="14d")
    assert batch.expires_at == batch.created_at + 336 * 3600
    other = client.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune").id
    with pytest.raises(openai.BadRequestError, match="upload it with the purpose 'batch'"):
        client.batches.create(input_file_id=other, endpoint=CHAT, completion_window="24h")


def test_a_batch_is_cancelled_in_its_middle(client: OpenAI, live: Live) -> None:
    live.instruct.delay = 0.02
    batch = begin(client, [line(str(i)) for i in range(60)])
    with pytest.raises(openai.BadRequestError, match=f"read by batch {batch.id}"):
        client.files.delete(batch.input_file_id)
    until(client, batch, lambda b: b.request_counts is not None and b.request_counts.completed >= 3)
    live.instruct.delay = 5  # those that run now go on for long
    assert client.batches.cancel(batch.id).status == "cancelling"
    begun = time.monotonic()
    batch = ended(client, batch)
    assert batch.status == "cancelled" and time.monotonic() - begun < 3
    assert batch.cancelling_at is not None and batch.cancelled_at is not None
    answered, rest = said(client, batch.output_file_id), said(client, batch.error_file_id)
    assert len(answered) >= 3 and len(rest) > 0
    assert sorted(int(each["custom_id"]) for each in answered + rest) == [*range(60)]
    assert {each["error"]["code"] for each in rest} == {"batch_cancelled"} and rest[0]["response"] is None
    counts = batch.request_counts
    assert counts is not None and (counts.completed, counts.failed) == (len(answered), len(rest))
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a batch with status 'cancelled'"):
        client.batches.cancel(batch.id)
    assert client.files.delete(batch.input_file_id).deleted
    live.instruct.wait_for_abort(1)


def test_what_passes_by_itself_is_waited_for(client: OpenAI, live: Live) -> None:
    live.instruct.refusal = RuntimeError("queue full")
    batch = begin(client, [line("a"), line("b")])
    time.sleep(0.3)
    live.instruct.refusal = None
    batch = ended(client, batch)
    assert batch.status == "completed" and len(said(client, batch.output_file_id)) == 2


def test_limits_of_the_key_are_waited_for_and_its_quota_is_not(live: Live) -> None:
    live.instruct.delay = 0.01
    key, secret = live.keys.create("limited", concurrency=1, free_tokens=150)
    with OpenAI(base_url=live.url + "/v1", api_key=secret, max_retries=0) as client:
        batch = ended(client, begin(client, [line(str(i), max_tokens=20) for i in range(8)]))
        answered, refused = said(client, batch.output_file_id), said(client, batch.error_file_id)
    assert len(answered) + len(refused) == 8 and len(answered) >= 4
    assert {each["response"]["status_code"] for each in refused} == {403}
    assert {each["error"]["code"] for each in refused} == {"AllocationQuota.FreeTierOnly"}
    live.admission.submit(lambda: None).result()
    rows = live.admission.ledger.entries(key.id)
    assert batch.usage is not None and batch.usage.total_tokens <= 150
    assert sum(row.input_tokens + row.output_tokens for row in rows) == batch.usage.total_tokens


def test_a_failing_engine_fails_the_line_after_some_tries(client: OpenAI, live: Live) -> None:
    live.instruct.fail("Hel")
    batch = ended(client, begin(client, [line("a")]))
    assert batch.status == "completed" and batch.output_file_id is None and len(live.instruct.requests) == 3
    (only,) = said(client, batch.error_file_id)
    assert only["response"]["status_code"] == 500 and only["error"]["code"] == "internal_error"
    assert "boom" not in json.dumps(only)


def test_a_revoked_key_ends_its_lines(client: OpenAI, live: Live) -> None:
    key, secret = live.keys.create("leaver")
    with OpenAI(base_url=live.url + "/v1", api_key=secret, max_retries=0) as leaver:
        live.instruct.delay = 0.03
        batch = begin(leaver, [line(str(i)) for i in range(30)])
        until(leaver, batch, lambda b: b.status == "in_progress")
        live.keys.revoke(key.id)
        with pytest.raises(openai.AuthenticationError):
            leaver.batches.retrieve(batch.id)
    before = len(live.instruct.requests)
    time.sleep(1)
    assert len(live.instruct.requests) <= before + 4  # those that were on their way


def test_lists(client: OpenAI, http: httpx.Client) -> None:
    made = [ended(client, begin(client, [line("a")], metadata={"ds_name": f"my_job {i}"})) for i in range(3)]
    failed = ended(client, begin(client, [line("a", model="no")], metadata={"ds_name": "other"}))
    newest = [failed.id, *(batch.id for batch in made[::-1])]
    assert [batch.id for batch in client.batches.list(limit=4).data] == newest
    page = client.batches.list(limit=2)
    assert page.has_more and [batch.id for batch in page.data] == newest[:2]
    assert [batch.id for batch in client.batches.list(limit=2, after=newest[1]).data] == newest[2:4]

    def found(**query: Any) -> list[str]:
        return [batch.id for batch in client.batches.list(limit=4, extra_query=query).data]

    assert found(ds_name="my_job") == newest[1:] and found(ds_name="my%") == []
    assert found(status="failed,expired")[0] == failed.id
    ids = f"{made[0].input_file_id},{made[2].input_file_id}"
    assert found(input_file_ids=ids) == [made[2].id, made[0].id]
    now = time.strftime("%Y%m%d%H%M%S", time.gmtime(made[0].created_at - 1))
    assert found(create_after=now, ds_name="my_job 0") == [made[0].id]
    assert found(create_before=now, ds_name="my_job 0") == []
    for query, words in (
        ({"status": "done"}, "status should be some of"),
        ({"create_after": "now"}, "create_after should be"),
        ({"limit": 101}, "Range of limit"),
        ({"after": "batch_no"}, "No such Batch object: batch_no"),
    ):
        answer = http.get("/v1/batches", params=query)
        assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_nobody_finds_the_batches_of_others(client: OpenAI, live: Live, tasks: type[BaseAsyncApi]) -> None:
    batch = ended(client, begin(client, [line("a")]))
    other = live.keys.create("other")[1]
    with OpenAI(base_url=live.url + "/v1", api_key=other, max_retries=0) as stranger:
        assert stranger.batches.list().data == []
        for call in (stranger.batches.retrieve, stranger.batches.cancel):
            with pytest.raises(openai.NotFoundError, match=f"No such Batch object: {batch.id}"):
                call(batch.id)
        with pytest.raises(openai.BadRequestError, match="No such File object"):
            stranger.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
    assert tasks.fetch(batch.id, api_key=other).output["task_status"] == "UNKNOWN"


def test_batches_are_tasks(client: OpenAI, live: Live, tasks: type[BaseAsyncApi]) -> None:
    live.instruct.delay = 0.05
    batch = begin(client, [line(str(i)) for i in range(30)])
    until(client, batch, lambda b: b.status == "in_progress")
    output = tasks.fetch(batch.id).output
    assert (output["task_id"], output["task_status"]) == (batch.id, "RUNNING")
    assert output["task_metrics"]["TOTAL"] == 30 and output["end_time"] is None
    assert len(output["submit_time"]) == len("2026-01-31 08:15:00.000")
    cancelled = tasks.cancel(batch.id)
    assert cancelled.status_code == 200 and cancelled.output["task_status"] in ("RUNNING", "CANCELED")
    ended(client, batch)
    output = tasks.wait(batch.id).output
    assert output["task_status"] == "CANCELED" and output["end_time"] >= output["submit_time"]
    again = tasks.cancel(batch.id)
    assert (again.status_code, again.code) == (400, "UnsupportedOperation")
    wrong = ended(client, begin(client, [line("a", model="no")]))
    output = tasks.fetch(wrong.id).output
    assert (output["task_status"], output["code"]) == ("FAILED", "model_not_found") and output["message"]
    listed = tasks.list(page_no=1, page_size=1, status="CANCELED").output
    assert listed["data"][0]["task_id"] == batch.id and listed["data"][0]["status"] == "CANCELED"
    assert listed["total"] >= 1 and (listed["page_no"], listed["page_size"]) == (1, 1)
    assert tasks.list(model_name="nobody").output["data"] == []
    assert tasks.list(end_time="20200101000000").output["total"] == 0
    for odd in (tasks.list(status="DONE"), tasks.cancel("nothing")):
        assert (odd.status_code, odd.code) == (400, "InvalidParameter")
    assert tasks.fetch("nothing").output["task_status"] == "UNKNOWN"


def test_a_key_may_have_so_many_unfinished(
    service: Service, engines: dict[str, FakeEngine], settings: Settings, tmp_path: Path
) -> None:
    for engine in engines.values():
        engine.reset()
    few = replace(settings, home=tmp_path, max_batches=2)
    with (
        serving(service, engines, few, "h11") as live,
        OpenAI(base_url=live.url + "/v1", api_key=live.key, max_retries=0) as client,
    ):
        live.instruct.delay = 0.5
        made = [begin(client, [line("a")]) for _ in range(2)]
        with pytest.raises(openai.BadRequestError, match="at most 2 of your batches may be unfinished"):
            begin(client, [line("a")])
        live.instruct.delay = 0
        client.batches.cancel(made[0].id)
        ended(client, made[0])
        ended(client, begin(client, [line("a")]))
        assert len(client.batches.list().data) == 3
