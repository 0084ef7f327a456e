"""The arguments of the command line: what each verb takes.

Read by `cli`. Invariant: nothing here does anything, so that `qnext --help` is quick.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .version import VERSION

LONG = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
DTYPES = ("bfloat16", "float16", "float32")


def parser() -> argparse.ArgumentParser:
    """All verbs; `verb` names the one that was asked for."""
    top = argparse.ArgumentParser("qnext", description="Qwen3-Next on your own machine.")
    top.add_argument("--version", action="version", version=f"qnext {VERSION}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser("serve", help="answer the OpenAI and DashScope protocols over HTTP")
    verb.add_argument(
        "models", nargs="*", metavar="MODEL", help="checkpoint directories (default: all embedded)"
    )
    verb.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    verb.add_argument("--port", type=int, help="port to listen on (default 8000)")
    _add_engine(verb)

    verb = verbs.add_parser("chat", help="hold a conversation in the terminal")
    verb.add_argument(
        "model", nargs="?", default="tiny-instruct", help="embedded name or checkpoint directory"
    )
    verb.add_argument("--system", help="a system prompt")
    verb.add_argument("--temperature", type=float, help="0 for the likeliest answer")
    verb.add_argument("--max-tokens", type=int, default=512, help="longest answer (default 512)")
    verb.add_argument("--seed", type=int, help="for the same answers again")
    _add_engine(verb)

    verb = verbs.add_parser("warmup", help="compile the CPU kernels that a model needs")
    verb.add_argument(
        "model", nargs="?", default="tiny-instruct", help="embedded name or checkpoint directory"
    )
    _add_engine(verb)

    _add_train(verbs.add_parser("train", help="train a recipe, or plan it"))

    verb = verbs.add_parser("eval", help="put questions with known answers to models")
    _add_eval(verb)

    verb = verbs.add_parser("convert", help="rewrite a checkpoint in the published layout, or packed")
    verb.add_argument("source", help="checkpoint directory (bf16, fp16, fp32 or block-FP8)")
    verb.add_argument("target", help="directory to make")
    verb.add_argument("--dtype", type=_long, choices=DTYPES, help="default: the source's own")
    _add_packing(verb)

    verb = verbs.add_parser("info", help="what a checkpoint is and what it needs")
    verb.add_argument(
        "model", nargs="?", default="tiny-instruct", help="embedded name, directory or config.json"
    )

    verb = verbs.add_parser("keys", help="API keys of the server, and their limits")
    verb.add_argument("action", choices=("create", "set", "show", "list", "revoke"))
    verb.add_argument("key", nargs="?", help="create: a name for it; set, show, revoke: its number")
    _add_limits(verb)
    return top


def _add_train(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", help="a TOML file")
    verb.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that differ from the recipe's"
    )
    verb.add_argument(
        "--plan",
        action="store_true",
        help="print memory, speed, GPU hours and cost of a recipe, a checkpoint, qwen3-next-80b-a3b or "
        "qwen3-32b, and train nothing; key=value sets assumptions, such as gpus=64",
    )
    verb.add_argument(
        "--curve", action="store_true", help="draw the losses of a run, here and in curve.html; train nothing"
    )


def _add_eval(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("suite", choices=("embedded",), help="the gates that the embedded models must pass")
    verb.add_argument(
        "models", nargs="*", metavar="MODEL", help="checkpoint directories (default: all embedded)"
    )
    verb.add_argument("--data", type=Path, metavar="DIR", help="data folder, for the held-out stories")
    verb.add_argument("--questions", type=int, default=200, help="of each gate (default 200)")
    verb.add_argument("--seed", type=int, default=0, help="of the questions (default 0)")
    verb.add_argument("--json", action="store_true", help="a JSON line for each gate")


def _add_limits(verb: argparse.ArgumentParser) -> None:
    limits = verb.add_argument_group("limits", "a number, none (no limit), or default (the server's)")
    limits.add_argument("--rpm", metavar="N", help="requests a minute")
    limits.add_argument("--tpm", metavar="N", help="tokens a minute")
    limits.add_argument("--concurrency", metavar="N", help="answers at once")
    limits.add_argument("--free-tokens", metavar="N", help="free tokens a month and model")
    verb.add_argument("--balance", metavar="AMOUNT", help="prepaid money, such as 12.50; none to pay nothing")
    verb.add_argument("--top-up", metavar="AMOUNT", help="set: money to add to the balance")


def _long(word: str) -> str:
    """The long name of a kind of number, or a rule that ends in one."""
    pattern, equals, kind = word.rpartition("=")
    return pattern + equals + LONG.get(kind, kind)


def _add_packing(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--quantize",
        type=_long,
        choices=("int4", "int8", "bfloat16", "float32"),
        help="pack the weights as CPUs read them",
    )
    verb.add_argument(
        "--group", type=int, help="columns that share a scale: 32, 64 or 128 (default 64; int8: 128)"
    )
    verb.add_argument(
        "--keep",
        type=_long,
        action="append",
        metavar="PATTERN=KIND",
        help="matrices of another kind, as 'layers.0.*=int8'",
    )
    verb.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="text, or JSON lines, to fit the rounding to (int4)"
    )


def _add_engine(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", default="cpu", help="cpu or cuda")
    verb.add_argument("--dtype", type=_long, choices=DTYPES, help="default: the checkpoint's own")
    verb.add_argument(
        "--quantize", choices=("int4", "int8"), help="on a CPU: round the weights while they are read"
    )
    verb.add_argument(
        "--activations",
        choices=("int8", "exact"),
        default="int8",
        help="on a CPU: inputs of quantised weights rounded to 8 bits (default), or not",
    )
    verb.add_argument(
        "--kv-cache",
        choices=("auto", "int8"),
        default="auto",
        help="on a CPU: keys and values in 8 bits, in half the memory; default: as the weights' dtype",
    )
    verb.add_argument("--cache-gib", type=float, help="memory for caches in GiB, per model (default 4)")
    verb.add_argument("--max-sequences", type=int, help="answers computed at once (default 32)")
    verb.add_argument("--max-length", type=int, help="most tokens of prompt and answer together")
    verb.add_argument("--draft-tokens", type=int, help="most tokens guessed ahead, 0 for none (default 3)")
    verb.add_argument("--disk-cache", type=Path, metavar="DIR", help="keep computed prompts here too")
    verb.add_argument("--batch-invariant", action="store_true", help="the same bits whatever runs beside")
