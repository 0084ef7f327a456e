"""Mixture: rows of one length, shares as weighted, and the same rows whether or not the run was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import qnext
from qnext.text.tokenizer import Tokenizer
from qnext.train.mixture import DataSpec, Part, open_source

TOKENIZER = Path(qnext.__file__).parent / "models" / "tiny-base"
STORY = "Once upon a time, there was a {} cat. " + "The cat liked to play with a ball in the park. " * 5


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "stories.txt").write_text("\n".join(STORY.format(i).strip() for i in range(30)))
    rows = [
        {"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i}!"}]}
        for i in range(10)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def spec(root: Path, *parts: Part, **settings: object) -> DataSpec:
    given = {
        "root": str(root),
        "tokens_per_batch": 600,
        "max_length": 300,
        "template": "instruct",
        **settings,
    }
    return DataSpec(parts or (Part("stories", 0.5, "stories.txt"), Part("chat", 0.5)), **given)  # type: ignore[arg-type]


def test_rows_are_full_and_documents_whole(root: Path) -> None:
    source = open_source(spec(root), TOKENIZER, 1)
    tokenizer = Tokenizer.from_pretrained(TOKENIZER)
    for _ in range(10):
        batch = source.next()
        assert len(batch.ids) == len(batch.weights) == sum(batch.lengths) == 600
        assert batch.ids.dtype == torch.int64 and batch.weights.dtype == torch.float32
        documents = batch.ids.split(batch.lengths)
        for document, weights in zip(documents[:-1], batch.weights.split(batch.lengths), strict=False):
            text = tokenizer.decode(document.tolist(), skip_control=False)
            assert weights[0] == 0 and weights.any()
            assert text.startswith(("Once upon", "<|im_start|>"))
            assert text.endswith(("park.<|endoftext|>", "<|im_end|>\n")) or len(document) == 300


def test_shares_follow_the_weights(root: Path) -> None:
    source = open_source(spec(root, Part("stories", 3, "stories.txt"), Part("chat", 1)), TOKENIZER, 1)
    for _ in range(20):
        source.next()
    stories, chat = source.state_dict()["served"]
    assert 2.5 < stories / chat < 3.5


def test_resuming_gives_the_same_rows(root: Path) -> None:
    parts = (Part("stories", 1, "stories.txt"), Part("chat", 2), Part("conversations", 1, "chat.jsonl"))
    source = open_source(spec(root, *parts), TOKENIZER, 5)
    for _ in range(7):
        source.next()
    state = json.loads(json.dumps(source.state_dict()))
    resumed = open_source(spec(root, *parts), TOKENIZER, 5)
    resumed.load_state_dict(state)
    for _ in range(20):
        one, other = source.next(), resumed.next()
        assert torch.equal(one.ids, other.ids) and torch.equal(one.weights, other.weights)
        assert one.lengths == other.lengths


def test_seeds_differ(root: Path) -> None:
    rows = [open_source(spec(root), TOKENIZER, seed).next().ids for seed in (1, 1, 2)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_every_pass_reads_all_documents_in_its_own_order(root: Path) -> None:
    source = open_source(spec(root, Part("conversations", 1, "chat.jsonl")), TOKENIZER, 3)
    tokenizer = Tokenizer.from_pretrained(TOKENIZER)
    batch = source.next()
    texts = [tokenizer.decode(document.tolist()) for document in batch.ids.split(batch.lengths)]
    said = [text.split("Say ")[1].split("\n")[0] for text in texts if "Say" in text]
    numbers = [str(number) for number in range(10)]
    assert sorted(said[:10]) == sorted(said[10:20]) == numbers and said[:10] != said[10:20]


def test_long_conversations_are_cut_and_padding_has_no_weight(root: Path) -> None:
    source = open_source(
        spec(root, Part("chat", 1, family="story"), tokens_per_batch=100, max_length=60), TOKENIZER, 1
    )
    for _ in range(20):
        batch = source.next()
        assert sum(batch.lengths) == 100
        rows = batch.ids.split(batch.lengths)
        assert all(
            len(row) <= 60
            for row, weight in zip(rows, batch.weights.split(batch.lengths), strict=True)
            if weight.any()
        )


def test_thinking_chat_reasons(root: Path) -> None:
    source = open_source(spec(root, Part("chat", 1), template="thinking"), TOKENIZER, 1)
    batch = source.next()
    close = Tokenizer.from_pretrained(TOKENIZER).control["</think>"]
    assert (batch.ids[batch.weights > 0] == close).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "poems"}, "kind 'poems' is unknown"),
        ({"weight": 0.0}, "weight is 0.0"),
        ({"kind": "stories"}, "path is missing"),
        ({"family": "poems"}, "family 'poems' is unknown"),
    ],
)
def test_nonsense_parts_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Part(**{"kind": "chat", "weight": 1.0, **values})  # type: ignore[arg-type]


def test_nonsense_specs_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="parts is empty"):
        DataSpec(())
    with pytest.raises(ValueError, match="max_length is 700"):
        spec(root, max_length=700)
    with pytest.raises(ValueError, match="no chat template"):
        open_source(spec(root, template=""), TOKENIZER, 1)


def test_another_number_of_parts_cannot_be_resumed(root: Path) -> None:
    state = open_source(spec(root, Part("chat", 1)), TOKENIZER, 1).state_dict()
    with pytest.raises(ValueError, match="made with 1 data parts"):
        open_source(spec(root), TOKENIZER, 1).load_state_dict(state)


def test_a_long_conversation_of_a_file_is_refused_at_the_start(root: Path) -> None:
    part = Part("conversations", 1, "chat.jsonl")
    with pytest.raises(ValueError, match=r"chat\.jsonl, line 1: \d+ tokens, data\.max_length is 14"):
        open_source(spec(root, part, max_length=14), TOKENIZER, 1)
    batch = open_source(spec(root, part, max_length=14, too_long="cut"), TOKENIZER, 1).next()
    assert max(batch.lengths) == 14


def test_conversations_that_are_all_cut_before_their_answers_are_refused(root: Path) -> None:
    (root / "long.jsonl").write_text(
        json.dumps(
            {"messages": [{"role": "user", "content": "one " * 400}, {"role": "assistant", "content": "1"}]}
        )
    )
    given = spec(root, Part("conversations", 1, "long.jsonl"), max_length=50, too_long="cut")
    with pytest.raises(
        ValueError, match=r"part 1 \(conversations\).*no answer within data.max_length \(50\)"
    ):
        open_source(given, TOKENIZER, 1).next()
