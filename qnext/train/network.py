"""The network that a recipe starts from: a checkpoint's, or fresh weights of the recipe's shape.

The trainer builds it once. Invariant: vocabulary, token ids and lengths agree with tokenizer and data, or
it is refused in the recipe's own words.
"""

import contextlib
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from qnext.model.config import ModelConfig
from qnext.model.qwen3_next import Qwen3Next
from qnext.text.tokenizer import Tokenizer

from .precision import product_dtype
from .recipe import Recipe

# Fields of config.json and the tokenizer's names for them; as published, a text begins with the end token.
_CONFIG_TOKENS = {"bos_token_id": "pad_token", "eos_token_id": "eos_token", "pad_token_id": "pad_token"}


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> Qwen3Next:
    """The fp32 network a recipe starts from: the checkpoint `init`, or fresh weights of shape `model`."""
    ends = {field: tokenizer.special_tokens.get(name) for field, name in _CONFIG_TOKENS.items()}
    ids: dict[str, Any] = {field: tokenizer.control.get(token or "") for field, token in ends.items()}
    if recipe.init:
        model = Qwen3Next.from_pretrained(recipe.init, dtype=torch.float32)
        if model.config.vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"{recipe.tokenizer} has {tokenizer.vocab_size} tokens, the network of {recipe.init} only "
                f"{model.config.vocab_size}: give the tokenizer it was trained with"
            )
        if recipe.grow:
            try:
                model = recipe.grow.apply(model)
            except ValueError as error:
                raise ValueError(f"[grow] of the recipe, on {recipe.init}: {error}") from None
        model.config = replace(model.config, dtype="bfloat16", **ids)
        return model.train().requires_grad_(True)
    table = dict(recipe.model)
    layers = table.pop("mtp_layers", 1)
    try:
        config = ModelConfig.from_dict(
            {**table, **ids, "vocab_size": tokenizer.vocab_size}, mtp_layers=layers
        )
    except ValueError as error:
        raise ValueError(f"[model] of the recipe: {str(error).removeprefix('config.json: ')}") from None
    return Qwen3Next(config)


def freeze(model: Qwen3Next, learn: Sequence[str]) -> None:
    """Have the weights alone learn whose names fit one of the patterns `learn`; all, where there is none.
    Raises ValueError where a pattern fits nothing."""
    found = {name for name, _ in model.named_parameters()}
    for pattern in learn:
        if not fnmatch.filter(found, pattern):
            raise ValueError(f"learn: no weight's name fits {pattern!r}, names are like {min(found)!r}")
    for name, parameter in model.named_parameters():
        fits = any(fnmatch.fnmatchcase(name, pattern) for pattern in learn)
        parameter.requires_grad_(fits or not learn)


def check_length(recipe: Recipe, config: ModelConfig) -> None:
    """Raises ValueError where documents are cut too late for the network."""
    tables = {"data": recipe.data, **({"heldout.data": recipe.heldout.data} if recipe.heldout else {})}
    for name, spec in tables.items():
        if spec.max_length > config.max_position_embeddings:
            raise ValueError(
                f"{name}.max_length is {spec.max_length}, the network has "
                f"{config.max_position_embeddings} positions (max_position_embeddings): lower it"
            )


def check_device(recipe: Recipe) -> None:
    """Raises ValueError where the recipe's device is not there."""
    if recipe.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {recipe.device!r}, but torch finds no CUDA device here: set device=cpu")


def recompute_layers(model: Qwen3Next) -> None:
    """Have the trunk's layers keep their inputs alone, and compute again what the backward needs: activation
    checkpointing. Memory for activations falls to that of one layer, a step takes about a third longer."""
    for layer in model.layers:
        again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = again


def autocast(recipe: Recipe) -> torch.autocast:
    """Matrix products in the recipe's numbers, as far as the device has them."""
    kind = recipe.device.split(":")[0]
    half = recipe.dtype == "bfloat16" and product_dtype(kind) == torch.bfloat16
    return torch.autocast(kind, torch.bfloat16, enabled=half)


@contextlib.contextmanager
def quick_products(recipe: Recipe) -> Iterator[None]:
    """Beside products in bfloat16 those that stay in float32 (the delta rule's) need no more than TF32 has,
    on devices that have it."""
    before = torch.get_float32_matmul_precision()
    if recipe.dtype == "bfloat16" and recipe.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
