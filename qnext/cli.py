"""The command line: a table of verbs, and the one place where all parts of qnext are put together.

Invariant: an error of the user's making is one line on stderr and exit code 2, never a traceback. Parts are
imported inside the verbs, so that `qnext keys` does not wait for torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from .arguments import parser
from .version import VERSION

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from .engine.config import EngineConfig
    from .llm import LLM
    from .server.service import Served

Options = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        return _VERBS[options.verb](options) or 0
    except ValueError as error:
        print(f"qnext {options.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _engine_config(options: Options) -> EngineConfig:
    from .engine.config import EngineConfig

    names = ("max_sequences", "max_length", "draft_tokens", "disk_cache", "batch_invariant")
    given = {name: getattr(options, name) for name in names} | {"rehearse": True}
    if options.cache_gib is not None:
        given["cache_bytes"] = int(options.cache_gib * 2**30)
    return EngineConfig(**{name: value for name, value in given.items() if value is not None})


def _device(name: str) -> str:
    import torch

    if name != "cpu" and not (name.split(":")[0] == "cuda" and torch.cuda.is_available()):
        raise ValueError(f"--device {name}: this machine has no such device; give cpu")
    return name


def serve(options: Options) -> None:
    """Load the models, make the first key, print what to do next, serve until stopped."""
    from .kernels.select import must_compile
    from .server.admission import Admission
    from .server.app import create_app
    from .server.keys import Keys
    from .server.lifecycle import Lifecycle
    from .server.run import check_port, serve
    from .server.service import Service
    from .server.settings import Settings
    from .server.store import open_store
    from .server.welcome import greet

    settings = Settings.from_env()
    given = {name: getattr(options, name) for name in ("host", "port") if getattr(options, name) is not None}
    settings = replace(settings, **given)
    check_port(settings.host, settings.port)
    store, compiles = open_store(settings.home), must_compile(options.device)
    keys, admission = Keys(store), Admission(store, settings)
    console = _console()
    with closing(admission), ExitStack() as engines:
        models = {}
        for name, path in _named_models(options.models).items():
            models[name] = _load(name, path, options, engines)
        lowered = {name.lower(): name for name in models if name.lower() != name}
        settings = replace(settings, aliases={**settings.aliases, **lowered})
        service, lifecycle = Service(models, settings), Lifecycle()
        app = create_app(service, keys, admission, settings, lifecycle)
        console.print(f"[bold]qnext {VERSION}[/]", end=" ")
        greet(console, settings, list(models), keys.first())
        if compiles:
            console.print("Kernels are compiled for this machine now, once: answers begin in about a minute.")
        serve(app, settings, lifecycle, service.end_all)


def _named_models(models: Sequence[str]) -> dict[str, Path]:
    """Names to folders; a directory is served under its own name. Raises ValueError on two of one name."""
    from .models import EMBEDDED, locate

    found: dict[str, Path] = {}
    for model in models or sorted(EMBEDDED, key=lambda name: name != "tiny-instruct"):
        path = locate(model)
        name = path.resolve().name
        if name in found:
            raise ValueError(f"two models are named {name}: rename one of the directories")
        found[name] = path
    return found


def _load(name: str, path: Path, options: Options, engines: ExitStack) -> Served:
    from .engine.engine import Engine, fingerprint
    from .model.network import load_network
    from .server.service import Served
    from .terminal import byte_bar
    from .text.chat import Chat

    config, dtype, device = _engine_config(options), _dtype(options.dtype), _device(options.device)
    chat = Chat.from_pretrained(path)
    with byte_bar(_console(), f"loading {name}") as progress:
        model = load_network(
            path,
            dtype=dtype,
            device=device,
            quantize=options.quantize,
            activations=options.activations,
            kv_cache=options.kv_cache,
            progress=progress,
        )
    own = fingerprint(path, dtype, options.quantize, options.activations, options.kv_cache)
    engine = engines.enter_context(Engine(model, config, checkpoint=own))
    created = int((path / "config.json").stat().st_mtime)
    return Served(name, engine, chat, engine.max_length, created)


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    dtype: torch.dtype | None = getattr(torch, name) if name else None
    return dtype


def _llm(options: Options) -> LLM:
    from .llm import LLM

    return LLM(
        options.model,
        engine=_engine_config(options),
        dtype=_dtype(options.dtype),
        device=_device(options.device),
        quantize=options.quantize,
        activations=options.activations,
        kv_cache=options.kv_cache,
    )


def chat(options: Options) -> None:
    """A conversation in the terminal."""
    from .engine.request import SamplingParams
    from .terminal import converse

    with _llm(options) as llm:
        wishes = dict(llm.recommended, max_tokens=options.max_tokens, seed=options.seed)
        if options.temperature is not None:
            wishes["temperature"] = options.temperature
        converse(llm, SamplingParams(**wishes), options.system, _console(sys.stdout))


def warmup(options: Options) -> None:
    """Compile the kernels that a model needs on this machine, by answering once."""
    from .engine.request import SamplingParams
    from .kernels.cpu.jit import folder

    begun = time.perf_counter()
    with _llm(options) as llm:
        llm.generate([[1] * 200, [1]], SamplingParams(max_tokens=8))
    seconds = time.perf_counter() - begun
    _console(sys.stdout).print(f"{options.model} answered after {seconds:.1f} s; kernels are in {folder()}")


def train(options: Options) -> None:
    """Train a recipe, with a progress bar; a run that was stopped goes on. Or plan it, or draw its losses."""
    from .actor import EngineActor
    from .train.curve import draw
    from .train.planner import plan
    from .train.recipe import Recipe
    from .train.trainer import train

    if options.plan:
        return print(
            "\n".join(f"{label:<12}{text}" for label, text in plan(options.recipe, options.overrides))
        )
    leads = os.environ.get("RANK", "0") == "0"
    run = not options.curve and train(options.recipe, options.overrides, _console(), EngineActor.open)
    if (options.curve or run) and leads:
        recipe = Recipe.load(options.recipe, options.overrides)
        print(draw(recipe.output, recipe.name))


def evaluate(options: Options) -> int:
    """Examine models; 1 if one of them misses a gate."""
    from .evals.embedded import examine
    from .evals.report import HEAD, json_line, line
    from .examinee import subject
    from .llm import LLM
    from .models import EMBEDDED
    from .train.documents import read_told_stories

    stories = read_told_stories(options.data / "train", heldout=True) if options.data else ()
    show, passed = (json_line if options.json else line), True
    if not options.json:
        print(HEAD)
    answering = [model for model in EMBEDDED if options.data or model != "tiny-base"]  # a loss needs data
    for model in options.models or answering:
        with LLM(model) as llm:
            name = Path(model).resolve().name
            for result in examine(subject(llm, name), stories, options.questions, options.seed):
                print(show(name, result), flush=True)
                passed &= result.passed
    return 0 if passed else 1


def convert(options: Options) -> None:
    """Read a checkpoint, whole and strictly, and write it in the published layout, or packed."""
    from .model.qwen3_next import Qwen3Next
    from .models import locate
    from .terminal import byte_bar

    source, target = locate(options.source), Path(options.target)
    if options.quantize:
        return _pack(options, source, target)
    if options.group or options.keep or options.calibrate:
        raise ValueError("--group, --keep and --calibrate are for packed weights: give --quantize too")
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} exists and is not empty: give a new directory")
    console = _console()
    with byte_bar(console, f"reading {source}") as progress:
        model = Qwen3Next.from_pretrained(source, dtype=_dtype(options.dtype), progress=progress)
    with console.status(f"writing {target} …"):
        model.save_pretrained(target, source=source)
    console.print(f"{target}: {model.config.dtype} checkpoint written")


def _pack(options: Options, source: Path, target: Path) -> None:
    from .model.conversion import convert
    from .model.scheme import Scheme
    from .terminal import byte_bar
    from .text.samples import read_samples

    if options.dtype:
        raise ValueError("--dtype is for weights that are not packed: --quantize decides it")
    scheme = Scheme.parse(options.quantize, options.group, options.keep or ())
    texts = read_samples(options.calibrate, source) if options.calibrate else None
    console = _console()
    with byte_bar(console, f"packing {source}") as progress:
        convert(source, target, scheme, texts=texts, progress=progress)
    fitted = ", calibrated" if texts else ""
    console.print(f"{target}: packed as {scheme.describe()}{fitted}", soft_wrap=True)


def info(options: Options) -> None:
    """Architecture, parameters, bytes and the backend of a checkpoint or of a bare config.json."""
    from .kernels.select import backend_names
    from .model.summary import inspect
    from .models import EMBEDDED, locate

    path = locate(options.model) if options.model in EMBEDDED else Path(options.model)
    for label, text in [*inspect(path), ("backend", ", ".join(backend_names("cpu")))]:
        print(f"{label:<13}{text}")


def keys(options: Options) -> None:
    """Make, change, show, list or revoke API keys."""
    from .server.key_desk import KeyDesk
    from .server.settings import Settings

    KeyDesk(Settings.from_env()).serve(options)


def _console(stream: TextIO | None = None) -> Console:
    from rich.console import Console

    return Console(file=stream, stderr=stream is None)


_VERBS: dict[str, Callable[[Options], int | None]] = {
    "serve": serve,
    "chat": chat,
    "warmup": warmup,
    "train": train,
    "eval": evaluate,
    "convert": convert,
    "info": info,
    "keys": keys,
}


if __name__ == "__main__":
    sys.exit(main())
