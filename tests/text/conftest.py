"""Small checkpoints' text files: a byte-level BPE trained here, Qwen3's added tokens, our own templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from qnext.text.chat import Chat
from qnext.text.events import Event, Finish, ReasoningDelta, ToolCallDelta, joined
from qnext.text.parser import OutputParser
from qnext.text.tokenizer import Tokenizer

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
PATTERN += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL += [
    f"<|{what}_{end}|>" for what in ("object_ref", "box", "quad", "vision") for end in ("start", "end")
]
SPECIAL += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
NOT_SPECIAL = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
]
NOT_SPECIAL += ["<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"]

CORPUS = [
    "Once upon a time there was a little fox who wanted to know why the sky is blue.",
    "The weather in Paris is sunny today, and tomorrow it will rain. What is the weather in Berlin?",
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}',
    "def think(thing):\n    if thing < 3:\n        return [thing, None]\n    return tool_call(thing)\n",
    "Être ou ne pas être, c'est la question. Größer, schöner, weiter: übermorgen fährt der Zug nach Köln.",
    "今天天气很好，我们去公园散步吧。明天会下雨吗？",
    "Сегодня хорошая погода, и мы пойдём гулять в парк.",
    "👍🏽 emoji 🎉🎉 and 👩‍👩‍👧 families",
]


@pytest.fixture(scope="session")
def backend() -> Backend:
    """The tokenizers library's own object, added tokens included."""
    tokenizer = Backend(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in NOT_SPECIAL])
    return tokenizer


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    """The sources of our own templates by name."""
    folder = Path(__file__).parents[2] / "qnext" / "text" / "templates"
    return {file.stem: file.read_text(encoding="utf-8") for file in folder.glob("*.jinja")}


@pytest.fixture(scope="session")
def checkpoint(
    backend: Backend, templates: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Makes the directory of a checkpoint (text files only): "instruct", "thinking" or "base"."""

    def make(variant: str) -> Path:
        folder = tmp_path_factory.mktemp(variant)
        backend.save(str(folder / "tokenizer.json"))
        eos = "<|endoftext|>" if variant == "base" else "<|im_end|>"
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": eos,
            "pad_token": "<|endoftext|>",
        }
        if variant != "base":
            config["chat_template"] = templates[variant]
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        ends = [backend.token_to_id("<|im_end|>"), backend.token_to_id("<|endoftext|>")]
        generation = {"eos_token_id": ends[1] if variant == "base" else ends, "temperature": 0.7, "top_k": 20}
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Callable[[str], Path]) -> Tokenizer:
    return Tokenizer.from_pretrained(checkpoint("base"))


@pytest.fixture(scope="session")
def chats(checkpoint: Callable[[str], Path]) -> dict[str, Chat]:
    return {
        variant: Chat.from_pretrained(checkpoint(variant)) for variant in ("instruct", "thinking", "base")
    }


def numbered() -> Callable[[], str]:
    """Call ids that are the same in every run."""
    numbers = count()
    return lambda: f"call_{next(numbers)}"


@pytest.fixture(scope="session")
def make(tokenizer: Tokenizer) -> Callable[..., OutputParser]:
    """Makes parsers whose calls are numbered."""
    return lambda **options: OutputParser(tokenizer, new_id=numbered(), **options)


@pytest.fixture(scope="session")
def shown() -> Callable[[list[Event]], Iterator[Any]]:
    """What events show: ("reasoning" | "content", text), calls, and the reason; neighbours joined."""

    def show(events: list[Event]) -> Iterator[Any]:
        for event in joined(events):
            if isinstance(event, ToolCallDelta):
                yield event.call
            elif isinstance(event, Finish):
                yield event.reason
            else:
                yield ("reasoning" if isinstance(event, ReasoningDelta) else "content", event.text)

    return show
