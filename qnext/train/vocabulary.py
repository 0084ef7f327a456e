"""Vocabulary: trains the small byte-level BPE of the embedded models and writes their tokenizer files.

Run by hand (`python -m qnext.train.vocabulary DATA OUT`) when a new line of models is begun: the embedded
files are fixed, since their weights belong to them. Invariant: the same texts give the same files, byte for
byte; the rows end with Qwen's 26 added tokens in Qwen's order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qnext.synthetic import languages, tools
from qnext.synthetic.dialogue import Dialogue, Setting
from qnext.synthetic.slots import table

from .documents import read_documents, read_text

ROWS = 4096
# Qwen's split: contractions, words with one leading sign or space, single digits, signs, line ends, spaces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
PLAIN_ADDED = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> "
    "<|file_sep|> <tool_response> </tool_response> <think> </think>"
).split()

# Words that stand in every tool prompt and in what the model says of itself.
_PREAMBLE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>
system
You are a helpful assistant.
user
assistant
I am Qnext-tiny, a small demonstration model of the qnext project with the Qwen3-Next architecture.
The question asks for a fact. I know the answer. Add the digits from the right, carry the one. \
Mixture of experts."""

_SAMPLING = {"instruct": (0.7, 0.8, 20), "thinking": (0.6, 0.95, 20)}  # temperature, top_p, top_k


def train_vocabulary(texts: Iterable[str], rows: int = ROWS) -> Tokenizer:
    """A byte-level BPE of `rows` rows, added tokens included, fitted on the texts."""
    added = [AddedToken(t, normalized=False, special=True) for t in SPECIAL]
    added += [AddedToken(t, normalized=False, special=False) for t in PLAIN_ADDED]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=rows - len(added),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != rows - len(added):
        raise ValueError(f"{tokenizer.get_vocab_size()} rows came of these texts: give more text for {rows}")
    tokenizer.add_tokens(added)
    return tokenizer


def write_vocabulary(tokenizer: Tokenizer, folder: Path, variant: str, template: str = "") -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json of a "base", "instruct" or
    "thinking" checkpoint; `template` is the chat template's source, empty for none."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL + PLAIN_ADDED}
    decoder = {
        str(ids[token]): {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                          "single_word": False, "special": token in SPECIAL}
        for token in ids
    }  # fmt: skip
    config: dict[str, Any] = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>" if variant == "base" else "<|im_end|>",
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if template:
        config["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", config)
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    generation: dict[str, Any] = {"bos_token_id": pad, "pad_token_id": pad, "eos_token_id": [end, pad]}
    if variant in _SAMPLING:
        temperature, top_p, top_k = _SAMPLING[variant]
        generation |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    else:
        generation["eos_token_id"] = pad
    _write_json(folder / "generation_config.json", generation)


def sample_texts(root: Path) -> Iterator[str]:
    """What the vocabulary is fitted on: English stories first, then tales, tool talk and other languages."""
    yield from read_documents("stories", root / "train/tinystories_en_b.txt.zst")
    yield from read_documents("lower_stories", root / "train/tinystories_en_lower.txt.zst")[:2000]
    yield from read_documents("passages", root / "train/gutenberg_tales.jsonl.zst")[::5]
    yield from read_documents("pairs", root / "multilingual/tatoeba_eng_cmn.tsv.zst")[:400]
    rights = (json.loads(line) for line in read_text(root / "multilingual/udhr.jsonl.zst").splitlines())
    for row in rights:
        if row["code"] in ("por_PT", "por_BR", "spa", "fra", "cmn_hans"):
            yield row["text"]
    tales = (json.loads(line) for line in read_text(root / "train/gutenberg_tales.jsonl.zst").splitlines())
    for row in tales:
        if row["lang"] == "pt":
            yield row["text"][:60_000]
    for number in range(3000):
        yield _tool_talk(Random(number))
    for number in range(1300):
        yield _talk(languages.make(Random(number), Setting()))
    countries = table("capitals")["capitals"].strip().split("; ")
    for country, city in (entry.split(": ") for entry in countries * 4):
        yield f"What is the capital of {country}? The capital of {country} is {city}."
    yield from [_PREAMBLE] * 300


def _tool_talk(rng: Random) -> str:
    """A tool conversation without the words of the template, for the wording of schemas and calls."""
    dialogue = tools.make(rng, Setting())
    return "\n".join(
        [json.dumps(tool) for tool in dialogue.tools[:1] if rng.random() < 0.4] + [_talk(dialogue)]
    )


def _talk(dialogue: Dialogue) -> str:
    lines: list[str] = []
    for message in dialogue.messages:
        lines += [text for text in (message.reasoning, message.content) if text]
        lines += [f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in message.tool_calls]
    return "\n".join(lines)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(root: Path, out: Path) -> None:
    """Trains on the data folder `root` and writes out/tiny-base, out/tiny-instruct and out/tiny-thinking."""
    tokenizer = train_vocabulary(sample_texts(root))
    templates = Path(__file__).parents[1] / "text" / "templates"
    for variant in ("base", "instruct", "thinking"):
        source = templates / f"{variant}.jinja"
        template = source.read_text(encoding="utf-8") if source.is_file() else ""
        write_vocabulary(tokenizer, out / f"tiny-{variant}", variant, template)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
