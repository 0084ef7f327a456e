"""Files through the real SDKs, and what a bad upload is told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dashscope
import httpx
import openai
import pytest
from openai import OpenAI

from qnext.server.service import Service
from qnext.server.settings import Settings

from .conftest import Live, serving
from .fake_engine import FakeEngine

PARSERS = ("h11", "httptools")
COMPAT, NATIVE = "/v1/files", "/api/v1/files"
LINE = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ol\xc3\xa1"}]}\n'


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=live.url + "/compatible-mode/v1", api_key=live.key, max_retries=0) as client:
        yield client


@pytest.fixture
def other(live: Live) -> httpx.Client:
    """Another key's client."""
    key = live.keys.create("other")[1]
    return httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {key}"}, timeout=10)


@pytest.fixture(autouse=True)
def base(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", live.url + "/api/v1")
    monkeypatch.setattr(dashscope, "api_key", live.key)


def clear(client: OpenAI) -> None:
    for file in client.files.list():
        client.files.delete(file.id)


def test_a_file_comes_back_as_it_was_sent(client: OpenAI, tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "Ünïcode 1.jsonl").write_bytes(content)
    file = client.files.create(file=tmp_path / "Ünïcode 1.jsonl", purpose="batch")
    assert file.id.startswith("file-batch-") and (file.bytes, file.object) == (len(content), "file")
    assert (file.filename, file.purpose, file.status) == ("Ünïcode 1.jsonl", "batch", "processed")
    assert client.files.retrieve(file.id) == file
    answer = client.files.content(file.id)
    assert answer.content == content
    assert "filename*=utf-8''%C3%9Cn%C3%AFcode%201.jsonl" in answer.response.headers["content-disposition"]
    assert client.files.delete(file.id).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {file.id}"):
            gone(file.id)


def test_lists_go_on_after_a_file(client: OpenAI) -> None:
    clear(client)
    made = [
        client.files.create(file=(f"{i}.jsonl", b"x"), purpose="file-extract" if i == 2 else "batch").id  # type: ignore[arg-type]
        for i in range(5)
    ]
    assert made[2].startswith("file-fe-")
    first = client.files.list(limit=2)
    assert [file.id for file in first.data] == made[:-3:-1] and first.has_more
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]  # page after page
    assert [file.id for file in client.files.list(order="asc", after=made[1])] == made[2:]
    assert [file.id for file in client.files.list(purpose="file-extract")] == [made[2]]
    with pytest.raises(openai.NotFoundError, match="No such File object: nothing"):
        client.files.list(after="nothing")
    for query, words in (
        ({"limit": 0}, r"Range of limit should be \[1, 10000\]"),
        ({"order": "up"}, "order"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            client.files.list(extra_query=query)
    clear(client)
    assert client.files.list().data == []


def test_the_native_sdk(live: Live, client: OpenAI, tmp_path: Path) -> None:
    clear(client)
    path = tmp_path / "train.jsonl"
    path.write_bytes(LINE)
    sent = dashscope.Files.upload(str(path), description="Olá!")
    assert sent.status_code == 200, sent
    (stored,) = sent.output["uploaded_files"]
    assert stored["name"] == "train.jsonl" and sent.output["failed_uploads"] == []
    got = dashscope.Files.get(stored["file_id"]).output
    assert (got["name"], got["description"], got["size"]) == ("train.jsonl", "Olá!", len(LINE))
    assert got["purpose"] == "fine-tune" and len(got["md5"]) == 32 and len(got["gmt_create"]) == 19
    assert httpx.get(got["url"], headers=live.auth).content == LINE
    listed = dashscope.Files.list(page=1, page_size=5).output
    assert (listed["total"], listed["page_no"], listed["page_size"]) == (1, 1, 5) and listed["files"] == [got]
    assert client.files.retrieve(stored["file_id"]).bytes == len(LINE)
    assert dashscope.Files.delete(stored["file_id"]).status_code == 200
    for gone in (dashscope.Files.get, dashscope.Files.delete):
        answer = gone(stored["file_id"])
        words = (answer.status_code, answer.code, answer.message)
        assert words == (400, "InvalidParameter", "File not found.")


def test_several_native_files_at_once(http: httpx.Client) -> None:
    parts = [("files", (name, text)) for name, text in (("a", b"1"), ("b", b""), ("c", b"3"))]
    data: Any = {"descriptions": ["first", "second"], "purpose": "batch"}
    answer = http.post(NATIVE, files=parts, data=data).json()["data"]
    assert [file["name"] for file in answer["uploaded_files"]] == ["a", "c"]
    failed = {"name": "b", "code": "InvalidParameter", "message": "the file 'b' is empty"}
    assert answer["failed_uploads"] == [failed]
    kept = [http.get(f"{NATIVE}/{file['file_id']}").json()["data"] for file in answer["uploaded_files"]]
    assert [file["description"] for file in kept] == ["first", ""] and kept[0]["purpose"] == "batch"


def test_nobody_finds_the_files_of_others(client: OpenAI, other: httpx.Client) -> None:
    file = client.files.create(file=("a.jsonl", b"x"), purpose="batch")
    for path in (f"{COMPAT}/{file.id}", f"{COMPAT}/{file.id}/content"):
        answer = other.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": f"No such File object: {file.id}",
            "type": "invalid_request_error",
            "param": "id",
            "code": "not_found",
        }
    assert other.delete(f"{COMPAT}/{file.id}").status_code == 404
    assert (
        other.get(f"{NATIVE}/{file.id}").status_code == other.delete(f"{NATIVE}/{file.id}").status_code == 400
    )
    assert other.get(COMPAT).json()["data"] == other.get(NATIVE).json()["data"]["files"] == []
    assert client.files.retrieve(file.id) == file
    other.close()


def form(*parts: str, end: str = "--b--\r\n") -> bytes:
    return "".join(f"--b\r\n{part}\r\n" for part in parts).encode() + end.encode()


FILE = 'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\nline'
PURPOSE = 'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch'
KIND = "multipart/form-data; boundary=b"
BAD_FORMS = {
    "no form": ("application/json", b"{}", "Content-Type: multipart/form-data"),
    "no boundary": ("multipart/form-data", form(FILE, PURPOSE), "with a boundary"),
    "no type": ("", form(FILE, PURPOSE), "Content-Type: multipart/form-data"),
    "nothing": (KIND, b"", "it breaks off"),
    "garbage": (KIND, b"\x00\xff" * 100, "the form cannot be read"),
    "another boundary": (KIND + "x", form(FILE, PURPOSE), "the form cannot be read"),
    "broken off": (KIND, form(PURPOSE, FILE, end="--b\r\nContent-Disp"), "it breaks off before its end"),
    "no purpose": (KIND, form(FILE), "'purpose' is missing"),
    "odd purpose": (KIND, form(FILE, PURPOSE + "es"), "'purpose' should be one of"),
    "a file as purpose": (
        KIND,
        form(FILE, FILE.replace('"file"', '"purpose"')),
        "'purpose' should be one of",
    ),
    "no file": (KIND, form(PURPOSE), "'file' is missing"),
    "a text as file": (KIND, form(PURPOSE, PURPOSE.replace("purpose", "file")), "'file' is missing"),
    "an empty file": (KIND, form(FILE.replace("line", ""), PURPOSE), "the file 'a.jsonl' is empty"),
    "a long field": (KIND, form(PURPOSE + "x" * 2**16, FILE), "maximum size"),
    "many fields": (KIND, form(*[PURPOSE] * 101), "Too many fields"),
    "a part without a name": (KIND, form("Content-Disposition: form-data\r\n\r\nx"), "must be provided"),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_a_bad_form_is_told_what_is_wrong(http: httpx.Client, name: str) -> None:
    kind, content, words = BAD_FORMS[name]
    answer = http.post(COMPAT, content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize(
    ("query", "name"), [("limit=", "limit"), ("limit=0", "limit"), ("order=", "order"), ("order=up", "order")]
)
def test_a_wrong_query_is_refused_by_name(http: httpx.Client, query: str, name: str) -> None:
    answer = http.get(f"{COMPAT}?{query}")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == name, answer.text


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        (r"C:\data\a.jsonl", "a.jsonl"),
        ("", "file"),
        ("a\x1b[31mb", "a[31mb"),
        ("x" * 400, "x" * 255),
        ("日本.jsonl", "日本.jsonl"),
    ],
)
def test_names_are_names_and_no_paths(http: httpx.Client, sent: str, kept: str) -> None:
    part = f'Content-Disposition: form-data; name="file"; filename="{sent}"\r\n\r\nline'
    answer = http.post(COMPAT, content=form(part, PURPOSE), headers={"Content-Type": KIND})
    assert answer.json()["filename"] == kept, answer.text
    assert http.get(f"{COMPAT}/{answer.json()['id']}/content").content == b"line"


@pytest.mark.parametrize("path", [COMPAT, NATIVE])
def test_the_key_comes_before_the_body(live: Live, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nContent-Type: {KIND}\r\n\r\n"
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).split(b" ")[1] == b"401"


def test_a_client_that_leaves_in_an_upload_leaves_nothing(live: Live, settings: Settings) -> None:
    folder = settings.home / "files"
    before = sorted(folder.iterdir()) if folder.exists() else []
    head = f"POST {COMPAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {live.key}\r\n"
    head += f"Content-Length: 9000000\r\nContent-Type: {KIND}\r\n\r\n--b\r\n{PURPOSE}\r\n--b\r\n{FILE}"
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"x" * 3_000_000)
    threading.Event().wait(0.3)
    assert (sorted(folder.iterdir()) if folder.exists() else []) == before
    assert httpx.get(live.url + "/healthz").status_code == 200


def test_limits(service: Service, engines: dict[str, FakeEngine], tmp_path: Path) -> None:
    limits = Settings(home=tmp_path, max_file_bytes=100_000, max_stored_bytes=150_000)
    with serving(service, engines, limits, "h11") as live, httpx.Client(base_url=live.url) as http:

        def send(size: int, path: str = COMPAT, **options: Any) -> httpx.Response:
            options |= {"files": {"files" if path == NATIVE else "file": ("a", b"x" * size)}}
            return http.post(path, headers=live.auth, data={"purpose": "batch"}, **options)

        for size in (100_001, 200_000, 2_000_000):
            answer = send(size)
            assert answer.status_code == 413 and "100000 bytes" in answer.json()["error"]["message"]
        native = send(2_000_000, NATIVE)
        assert native.status_code == 413 and native.json()["code"] == "BadRequest.TooLarge"
        (failed,) = send(100_001, NATIVE).json()["data"]["failed_uploads"]
        assert failed["code"] == "BadRequest.TooLarge"

        def untold() -> Iterator[bytes]:  # a body whose length nobody says
            yield form(PURPOSE, FILE, end="")[:-2]
            yield from [b"x" * 50_000] * 5

        answer = http.post(COMPAT, content=untold(), headers=live.auth | {"Content-Type": KIND})
        assert answer.status_code == 413
        first = send(100_000).json()
        full = send(50_001)
        assert full.status_code == 400 and "150000 bytes in all" in full.json()["error"]["message"]
        assert send(50_000).status_code == 200
        http.delete(f"{COMPAT}/{first['id']}", headers=live.auth)
        assert send(100_000).status_code == 200
        assert len(list((tmp_path / "files").iterdir())) == 2


def test_a_full_disk_is_told(
    live: Live, http: httpx.Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qnext.server.stored_files.os.fsync", full)
        answer = http.post(COMPAT, files={"file": b"x"}, data={"purpose": "batch"})
    assert answer.status_code == 503 and "no room" in answer.json()["error"]["message"]
    assert "28" not in json.dumps(answer.json()["error"]) and int(answer.headers["retry-after"]) >= 1
    assert not list((settings.home / "files").glob("*.part"))
