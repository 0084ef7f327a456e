"""The documents: every command and program in them runs, every name in the walks exists, every link leads on.

Commands are run as they stand, but for what a test must replace: the port and key of the server, the
folder of the 80B checkpoint (an embedded one stands in), the data and the length of a training run.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qnext.models import locate

from .model.published import PUBLISHED
from .process import QNEXT, Server, start, stop
from .train.corpus import write_corpus

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
REAL = "/models/Qwen3-Next-80B-A3B-Instruct"


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of a language."""
    fence = re.compile(rf"^( *)```{language}\n(.*?)^\1```", re.M | re.S)
    return [
        (page.name, re.sub(rf"^{indent}", "", text, flags=re.M))
        for page in PAGES
        for indent, text in fence.findall(page.read_text("utf-8"))
    ]


COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for _, text in blocks("sh")
        for line in text.splitlines()
        if line.split("#")[0].strip()
    }
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    process, running = start([], tmp_path_factory.mktemp("home"))
    yield running
    stop(process)


def run_program(text: str, server: Server) -> str:
    text = text.replace("http://127.0.0.1:8000", server.base).replace("sk-…", server.key)
    done = subprocess.run([sys.executable, "-"], input=text, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "program", [text for _, text in blocks("python")], ids=lambda text: text.split("\n")[0]
)
def test_programs_run(program: str, server: Server) -> None:
    out = run_program(program, server)
    assert out.strip() or "print" not in program


def test_the_banner_is_true(server: Server) -> None:
    """All three calls that the server prints can be pasted as they stand."""
    _, curl, openai, dashscope = re.split(r"^# (?:curl|openai|dashscope).*$", server.banner, flags=re.M)
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=100)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]
    for program in (openai, dashscope):
        assert run_program(program, server).strip()
    for name in ("tiny-base", "tiny-instruct", "tiny-thinking", "qwen3-next-80b-a3b-thinking"):
        assert name in server.banner


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert (
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True).returncode == 0
        )
        return
    assert words[0] == "qnext", f"a command that no test knows how to run: {command}"
    real = tmp_path / Path(REAL).name
    if words[1] == "serve":
        shutil.copytree(locate("tiny-instruct"), real)
        process, running = start(
            [str(real) if word == REAL else word for word in words[2:]], tmp_path / "home"
        )
        stop(process)
        assert REAL not in words or "qwen3-next-80b-a3b-instruct" in running.banner
        return
    real.mkdir()
    (real / "config.json").write_text(json.dumps(PUBLISHED))
    words = [str(real) if word == REAL else word for word in words[1:]]
    if words[0] == "train":
        if "--plan" not in words:
            write_corpus(tmp_path / "data")
            words += ["schedule.steps=1", "schedule.accumulate=1", "data.tokens_per_batch=2048"]
            words += [f"output={tmp_path / 'run'}"]
        words = [str(ROOT / word) if word.startswith("recipes/") else word for word in words]
    if words[0] == "eval":
        write_corpus(tmp_path / "data")
        words += ["--questions", "1"]
    if words[0] in ("train", "convert"):
        (tmp_path / "qnext").symlink_to(ROOT / "qnext")
    done = subprocess.run(
        [QNEXT, *words],
        cwd=tmp_path,
        env=os.environ | {"QNEXT_HOME": str(tmp_path / "home")},
        input="Hello!\n",
        capture_output=True,
        text=True,
        timeout=250,
    )
    missed = words[0] == "eval" and "MISSED" in done.stdout  # a gate: the command itself is right
    assert done.returncode == missed, done.stderr


def test_info_in_the_readme_is_what_info_prints(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    printed = subprocess.run([QNEXT, "info", str(tmp_path)], capture_output=True, text=True).stdout
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = re.search(r"^ *```\n( *parameters .*?)^ *```", readme, re.M | re.S)
    assert shown
    for line in shown[1].strip().splitlines():
        assert line.strip() in printed


def test_names_in_the_walks_exist() -> None:
    names = re.findall(r"`(qnext(?:\.\w+)+)`", (ROOT / "docs" / "architecture.md").read_text("utf-8"))
    assert len(names) > 20
    for name in names:
        module, *rest = name.rsplit(".", 2)
        try:
            found = importlib.import_module(f"{module}.{rest[0]}")
            rest = rest[1:]
        except ModuleNotFoundError:
            found = importlib.import_module(module)
        for part in rest:
            assert hasattr(found, part), name
            found = getattr(found, part)


def test_links_and_paths_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        for path in re.findall(r"`((?:docs|tests|recipes|qnext|benchmarks)/[\w./-]*)`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
        for path in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (page.parent / path).exists(), f"{page.name}: {path}"
