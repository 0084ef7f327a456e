"""Third-party clients against a server of ours, each in an environment of its own.

Run by `make test-clients`; `python -m tests.clients.run NAME …` runs some, `--list` names them. Environments
are made once, one at a time, in a cache folder (QNEXT_CLIENTS, by default the user's), and made again when
what they hold is no longer what is asked for here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from tests.process import Server, start, stop

ROOT = Path(__file__).parents[2]
PYTEST = ("pytest==9.2.0", "pytest-timeout==2.4.0")
NATIVE_TESTS = [
    *("tests/server/test_sdk_dashscope.py", "tests/server/test_contract_parameters.py"),
    *("tests/server/test_contract_messages.py", "tests/server/test_contract_errors.py"),
    *("tests/server/test_contract_tools.py", "tests/server/test_contract_thinking.py"),
    *("tests/client/test_streaming.py", "tests/client/test_retries.py"),
    *("tests/client/test_groups.py", "tests/client/test_regions.py"),
]


@dataclass(frozen=True)
class Client:
    """What an environment holds and which tests run in it. With `beside_ours` it also sees what this
    interpreter has installed, behind its own packages: then tests may import the server."""

    requirements: tuple[str, ...]
    tests: list[str]
    beside_ours: bool = False
    environ: dict[str, str] = field(default_factory=dict)


CLIENTS = {
    "dashscope-1": Client(("dashscope==1.22.2",), NATIVE_TESTS, beside_ours=True),
    "langchain": Client(
        ("langchain-community==0.4.2", "langchain-openai==1.7.3", "dashscope==2.0.2"),
        ["tests/clients/langchain_tongyi.py", "tests/clients/langchain_chat_openai.py"],
    ),
    "llama-index": Client(
        ("llama-index-llms-dashscope==0.7.0", "dashscope==1.22.2"), ["tests/clients/llama_index_dashscope.py"]
    ),
    "litellm": Client(
        ("litellm[mcp]==1.106.2",),
        ["tests/clients/litellm_dashscope.py"],
        environ={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    ),
    "qwen-agent": Client(
        ("qwen-agent==0.0.34", "soundfile==0.14.0", "python-dateutil==4.0.0", "tqdm==4.70.1"),
        ["tests/clients/qwen_agent_dashscope.py"],
    ),
    "agentscope": Client(("agentscope==2.0.7.post1",), ["tests/clients/agentscope_dashscope.py"]),
}


def environment(name: str, client: Client, cache: Path) -> Path:
    """The environment's Python, made if it is not there as it should be."""
    folder = cache / name
    python, mark = folder / "bin" / "python", folder / "requirements"
    wanted = "\n".join((*client.requirements, *PYTEST)) + "\n"
    if not (python.exists() and mark.exists() and mark.read_text("utf-8") == wanted):
        print(f"{name}: making {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True, symlinks=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *client.requirements, *PYTEST], check=True)
        mark.write_text(wanted, "utf-8")
    if client.beside_ours:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", "utf-8")
    return python


def run(name: str, client: Client, cache: Path, server: Server) -> bool:
    """Whether the client's tests pass."""
    python = environment(name, client, cache)
    options = ["-q", "--timeout=300", "-p", "no:cacheprovider", "--durations=3"]
    if not client.beside_ours:  # their warnings are theirs, and our tests' fixtures are not for them
        options += ["-c", os.devnull, "--rootdir", str(ROOT), "--import-mode=importlib", "--noconftest"]
    environ = {"QNEXT_URL": server.base, "QNEXT_KEY": server.key, "DASHSCOPE_API_KEY": server.key}
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    print(f"{name}: {', '.join(client.requirements)}", flush=True)
    done = subprocess.run(
        [str(python), "-m", "pytest", *options, *client.tests],
        cwd=ROOT,
        env=clean | environ | client.environ,
    )
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CLIENTS))
    parser.add_argument("--list", action="store_true", help="print the names and end")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(CLIENTS))
        return 0
    unknown = set(asked.names) - CLIENTS.keys()
    if unknown:
        parser.error(f"no such client: {', '.join(sorted(unknown))}; there are {', '.join(CLIENTS)}")
    cache = Path(os.environ.get("QNEXT_CLIENTS") or platformdirs.user_cache_path("qnext") / "clients")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        process, server = start([], Path(home))
        try:
            passed = {name: run(name, CLIENTS[name], cache, server) for name in asked.names or CLIENTS}
        finally:
            stop(process)
    for name, ok in passed.items():
        print(f"{'passed' if ok else 'FAILED'}  {name}")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
