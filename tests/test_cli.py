"""The command line: what each verb prints, and that every mistake is one line and exit code 2."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qnext import LLM, SamplingParams
from qnext.cli import main
from qnext.models import locate

from .model.published import PUBLISHED
from .train.corpus import write_corpus


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QNEXT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_info_of_the_published_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for fact in (
        "79.67 B trunk + 1.65 B MTP",
        "3.56 B a token",
        "24 KiB a token",
        "72 MiB a sequence in float32",
        "36 Gated DeltaNet, 12 gated attention",
        "262,144 tokens",
    ):
        assert fact in out
    assert main(["info", str(tmp_path / "config.json")]) == 0


def test_info_of_an_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "6 Gated DeltaNet, 2 gated attention" in capsys.readouterr().out


def test_keys_are_made_listed_and_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "laptop"]) == 0
    secret = capsys.readouterr().out.split()[-1]
    assert secret.startswith("sk-")
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert secret[-4:] in listed and "laptop" in listed and "valid" in listed and secret not in listed
    assert main(["keys", "revoke", "1"]) == 0
    capsys.readouterr()
    main(["keys", "list"])
    assert "revoked" in capsys.readouterr().out


def test_convert_changes_the_dtype_and_refuses_a_full_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "converted"
    assert main(["convert", "tiny-instruct", str(target), "--dtype", "float32"]) == 0
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "float32"
    assert (target / "tokenizer.json").is_file() and (target / "generation_config.json").is_file()
    assert main(["convert", "tiny-instruct", str(target)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_convert_packs_and_info_tells_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, target = tmp_path / "story.txt", str(tmp_path / "packed")
    text.write_text("Once upon a time there was a fox. The fox was small and red. " * 20)
    choice = ["--quantize", "int4", "--group", "32", "--keep", "lm_head=int8", "--calibrate", str(text)]
    assert main(["convert", "tiny-instruct", target, *choice]) == 0
    assert "packed as int4, group 32, lm_head in int8, calibrated" in capsys.readouterr().err
    assert main(["info", target]) == 0
    out = capsys.readouterr().out
    assert "quantised    int4, group 32, lm_head in int8" in out
    assert "MiB: " in out and "in int4, " in out and "in float32" in out and "6 Gated DeltaNet" in out


def test_eval_prints_a_line_for_each_gate_and_exits_1_when_one_is_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path)
    arguments = ["eval", "embedded", "tiny-base", "--data", str(tmp_path), "--questions", "3"]
    code = main(arguments)
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "model" and row.startswith("tiny-base       held-out story loss")
    assert (code, "MISSED" in row) in ((0, False), (1, True))
    assert main([*arguments, "--json"]) == code
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert found["count"] == 3 and found["passed"] is (code == 0) and found["low"] < found["high"]


def test_a_plan_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--plan", "qwen3-next-80b-a3b", "gpus=2048"]) == 0
    out = capsys.readouterr().out
    assert "GPU hours" in out and "days on 2,048" in out and "published 9.3%" in out


def test_reinforcement_from_its_recipe_to_a_model_that_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["schedule.steps=2", "schedule.warmup_steps=1", "rl.prompts=2", "rl.group=2", "rl.max_tokens=6"]
    small += ["heldout.batches=1", "heldout.data.tokens_per_batch=200", "data.tokens_per_batch=400"]
    places = [f"init={locate('tiny-thinking')}", f"output={tmp_path / 'run'}"]
    assert main(["train", "recipes/tiny-rl.toml", *small, *places]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "reward" in line]
    assert [line["step"] for line in steps] == [1, 2]
    capsys.readouterr()
    with LLM(tmp_path / "run" / "model") as llm:
        answer = llm.chat([{"role": "user", "content": "1+1?"}], SamplingParams(max_tokens=3))
        assert answer.text or answer.reasoning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "tiny-base", "x", "--group", "32"], "give --quantize too"),
        (["convert", "tiny-base", "x", "--quantize", "int4", "--group", "48"], "group is 48: use one of 32"),
        (
            ["convert", "tiny-base", "x", "--quantize", "int4", "--keep", "int8"],
            "rule 'int8' is not PATTERN=KIND",
        ),
        (
            ["convert", "tiny-base", "x", "--quantize", "int4", "--keep", "head=int8"],
            "rule 'head' fits no matrix",
        ),
        (
            ["convert", "tiny-base", "x", "--quantize", "int8", "--dtype", "float32"],
            "--dtype is for weights that",
        ),
        (["convert", "tiny-base", "x", "--quantize", "int4", "--calibrate", "y"], "y: no such file"),
        (["serve", "no-such-model"], "no model 'no-such-model'"),
        (["serve", "tiny-base", "tiny-base"], "two models are named tiny-base"),
        (["serve", "--max-sequences", "0"], "max_sequences is 0"),
        (["serve", "--host", "no.such.host.invalid"], "give an address"),
        (["chat", "no-such-model"], "no model 'no-such-model'"),
        (["chat", "tiny-base"], "base model"),
        (["chat", "--temperature", "-1"], "temperature is -1"),
        (["chat", "--device", "tpu"], "--device tpu"),
        (["info", "no-such-model"], "no-such-model"),
        (["train", "no-such-recipe.toml"], "no-such-recipe.toml: no such file"),
        (["train", "--curve", "recipes/tiny-base.toml", "output=/nowhere/run"], "has no metrics yet"),
        (["train", "--plan", "qwen3-32b", "gpu=8"], "unknown key 'gpu'"),
        (["train", "--plan", "no-such-model"], "no-such-model"),
        (["convert", "no-such-model", "target"], "no model 'no-such-model'"),
        (["eval", "embedded", "no-such-model"], "no model 'no-such-model'"),
        (["eval", "embedded", "tiny-base"], "give --data"),
        (["eval", "embedded", "tiny-instruct", "--questions", "0"], "questions is 0"),
        (["eval", "embedded", "--data", "no-such-folder"], "set data.root to the folder"),
        (["keys", "revoke"], "revoke needs the number"),
        (["keys", "revoke", "99"], "key 99"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err and err.startswith(f"qnext {arguments[0]}: ")


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err


def test_chat_holds_a_conversation_from_a_pipe() -> None:
    command = [sys.executable, "-m", "qnext.cli", "chat", "--temperature", "0", "--max-tokens", "12"]
    done = subprocess.run(command, input="Hello!\nThank you.\n", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    assert len([line for line in done.stdout.splitlines() if line.strip()]) >= 3
