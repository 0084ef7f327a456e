"""Checkpoints whose files are broken: missing, cut short, at odds with each other, or no safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from .checkpoints import INDEX, SHARDS, SINGLE, edit_header, edit_json, edit_tensors
from .corpus import GOOD, Corpus, Damage, assert_refused

A_LOG = "model.layers.0.linear_attn.A_log"
NORM = "model.norm.weight"

CORPUS = Corpus()


# The directory and its files


@CORPUS.broken("single", "no such checkpoint directory", "checkpoint")
def no_directory(path: Path) -> None:
    shutil.rmtree(path)


@CORPUS.broken("single", "no such checkpoint directory")
def a_file_instead_of_a_directory(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


@CORPUS.broken("single", "config.json", "missing")
def no_config(path: Path) -> None:
    (path / "config.json").unlink()


@CORPUS.broken("single", "config.json", "broken JSON")
def config_cut_short(path: Path) -> None:
    (path / "config.json").write_text((path / "config.json").read_text()[:50])


@CORPUS.broken("single", "config.json", "list", "JSON object")
def config_is_a_list(path: Path) -> None:
    (path / "config.json").write_text("[]")


@CORPUS.broken("single", SINGLE, INDEX, "missing")
def no_weights(path: Path) -> None:
    (path / SINGLE).unlink()


@CORPUS.broken("single", SINGLE, "only safetensors")
def only_pickled_weights(path: Path) -> None:
    (path / SINGLE).rename(path / "pytorch_model.bin")


@CORPUS.broken("sharded", INDEX, "missing", SHARDS[0])
def no_index(path: Path) -> None:
    (path / INDEX).unlink()


@CORPUS.broken("sharded", INDEX, "broken JSON")
def index_is_not_json(path: Path) -> None:
    (path / INDEX).write_text("{'weight_map'}")


@CORPUS.broken("sharded", INDEX, "weight_map")
def index_without_a_map(path: Path) -> None:
    edit_json(path / INDEX, lambda index: index.pop("weight_map"))


@CORPUS.broken("sharded", INDEX, SHARDS[1], "missing")
def shard_absent(path: Path) -> None:
    (path / SHARDS[1]).unlink()


@CORPUS.broken("sharded", INDEX, A_LOG, "file name")
def index_leaves_the_directory(path: Path) -> None:
    edit_json(path / INDEX, lambda index: index["weight_map"].update({A_LOG: "../other/model.safetensors"}))


@CORPUS.broken("sharded", INDEX, A_LOG, SHARDS[0], SHARDS[1])
def index_names_the_wrong_shard(path: Path) -> None:
    places = json.loads((path / INDEX).read_text())["weight_map"]
    other = SHARDS[1 - SHARDS.index(places[A_LOG])]
    edit_json(path / INDEX, lambda index: index["weight_map"].update({A_LOG: other}))


@CORPUS.broken("sharded", INDEX, "phantom.weight", SHARDS[0])
def index_lists_more(path: Path) -> None:
    edit_json(path / INDEX, lambda index: index["weight_map"].update({"phantom.weight": SHARDS[0]}))


@CORPUS.broken("sharded", INDEX, A_LOG, "model-0000", "weight_map")
def index_lists_less(path: Path) -> None:
    edit_json(path / INDEX, lambda index: index["weight_map"].pop(A_LOG))


@CORPUS.broken("sharded", A_LOG, *SHARDS)
def tensor_in_two_shards(path: Path) -> None:
    for shard in SHARDS:
        edit_tensors(path / shard, lambda tensors: tensors.update({A_LOG: torch.zeros(4)}))


@CORPUS.broken("sharded", "model-00003-of-00003.safetensors", INDEX)
def shard_that_the_index_does_not_name(path: Path) -> None:
    shutil.copy(path / SHARDS[0], path / "model-00003-of-00003.safetensors")


@CORPUS.broken("single", SHARDS[0], SINGLE)
def stale_shard_beside_the_only_file(path: Path) -> None:
    shutil.copy(path / SINGLE, path / SHARDS[0])


# The shards


@CORPUS.broken("sharded", SHARDS[1], "0 bytes")
def empty_shard(path: Path) -> None:
    (path / SHARDS[1]).write_bytes(b"")


@CORPUS.broken("sharded", SHARDS[1], "cut short", "ends at byte")
def shard_cut_short(path: Path) -> None:
    raw = (path / SHARDS[1]).read_bytes()
    (path / SHARDS[1]).write_bytes(raw[: len(raw) * 3 // 4])


@CORPUS.broken("single", SINGLE, "cut short")
def shard_cut_in_its_header(path: Path) -> None:
    (path / SINGLE).write_bytes((path / SINGLE).read_bytes()[:100])


@CORPUS.broken("single", SINGLE, "not a safetensors file")
def a_web_page_instead(path: Path) -> None:
    (path / SINGLE).write_text("<!doctype html><html>Not found</html>")


@CORPUS.broken("single", SINGLE, "not a safetensors file")
def a_pointer_instead(path: Path) -> None:
    (path / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 81744\n")


@CORPUS.broken("single", SINGLE, "header")
def header_length_beyond_the_file(path: Path) -> None:
    raw = (path / SINGLE).read_bytes()
    (path / SINGLE).write_bytes((1 << 60).to_bytes(8, "little") + raw[8:])


@CORPUS.broken("single", SINGLE, "JSON")
def header_is_garbage(path: Path) -> None:
    raw = bytearray((path / SINGLE).read_bytes())
    raw[8:16] = b"\xff\x00garbag"
    (path / SINGLE).write_bytes(raw)


@CORPUS.broken("single", SINGLE, "JSON")
def header_nested_without_end(path: Path) -> None:
    (path / SINGLE).write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)


@CORPUS.broken("single", SINGLE, "JSON object")
def header_is_a_list(path: Path) -> None:
    (path / SINGLE).write_bytes((2).to_bytes(8, "little") + b"[]")


@CORPUS.broken("single", SINGLE, "no tensors")
def no_tensors_at_all(path: Path) -> None:
    (path / SINGLE).write_bytes((2).to_bytes(8, "little") + b"{}")


@CORPUS.broken("single", SINGLE, "'twice'", "stands twice")
def tensor_twice_in_a_header(path: Path) -> None:
    text = b'{"twice":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"twice":{}}'
    (path / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))


@CORPUS.broken("single", SINGLE, NORM, "data_offsets")
def entry_without_offsets(path: Path) -> None:
    edit_header(path / SINGLE, lambda header: header[NORM].pop("data_offsets"))


@CORPUS.broken("single", SINGLE, NORM, "shape", "-1")
def negative_size(path: Path) -> None:
    edit_header(path / SINGLE, lambda header: header[NORM].update(shape=[-1]))


@CORPUS.broken("single", SINGLE, NORM, "data_offsets", "32 bytes", "64")
def offsets_do_not_match_dtype(path: Path) -> None:
    edit_header(path / SINGLE, lambda header: header[NORM].update(dtype="F32"))


@CORPUS.broken("single", SINGLE, NORM, "data_offsets")
def offsets_reversed(path: Path) -> None:
    edit_header(path / SINGLE, lambda header: header[NORM]["data_offsets"].reverse())


@CORPUS.broken("single", SINGLE, "overlaps")
def tensors_overlap(path: Path) -> None:
    edit_header(path / SINGLE, lambda header: header[NORM].update(data_offsets=[0, 32]))


@CORPUS.broken("single", SINGLE, "model.layers.0.linear_attn.conv1d.weight", "hole")
def hole_between_tensors(path: Path) -> None:
    edit_header(path / SINGLE, lambda header: header.pop(A_LOG))


@CORPUS.broken("single", SINGLE, "bytes after the last tensor")
def bytes_after_the_last_tensor(path: Path) -> None:
    with open(path / SINGLE, "ab") as file:
        file.write(bytes(10))


@CORPUS.broken("single", SINGLE, A_LOG, "I32")
def whole_numbers(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors.update({A_LOG: torch.zeros(4, dtype=torch.int32)}))


@CORPUS.broken("single", SINGLE, NORM, "Q9")
def unknown_dtype(path: Path) -> None:
    edit_header(path / SINGLE, lambda header: header[NORM].update(dtype="Q9"))


@pytest.mark.parametrize(("good", "damage", "needles"), CORPUS.cases)
def test_refused(tmp_path: Path, good: str, damage: Damage, needles: tuple[str, ...]) -> None:
    path = GOOD[good](tmp_path / "checkpoint")
    damage(path)
    assert_refused(path, needles)
