"""Train what you serve: the trainer's log-probabilities are those that the engine reports."""

from __future__ import annotations

import torch
from torch import Tensor

from qnext.engine.config import EngineConfig
from qnext.engine.engine import Engine
from qnext.engine.request import Request, SamplingParams
from qnext.model.network import Network
from qnext.model.qwen3_next import Qwen3Next
from qnext.train.batch import Batch
from qnext.train.loss import log_probs, total

from ..engine.harness import whole
from ..model.packed_tiny import packed_pair
from ..model.tiny import tiny_model, token_ids

LENGTHS = (2, 5, 33, 64, 65, 150)


def trained(model: Qwen3Next, texts: list[Tensor]) -> list[Tensor]:
    """What the trainer gives each token after the first of each text, all texts in one row."""
    found = log_probs(model, torch.cat(texts), tuple(map(len, texts)))
    return [each[1:] for each in found.split(tuple(map(len, texts)))]


def served(network: Network, texts: list[Tensor]) -> list[Tensor]:
    """What the engine reports, all texts at once and in small pieces."""
    with Engine(network, EngineConfig(cache_bytes=16 << 20, step_tokens=48), checkpoint="tiny") as engine:
        streams = [
            engine.submit(Request(tuple(text.tolist()), SamplingParams(max_tokens=1, prompt_logprobs=0)))
            for text in texts
        ]
        return [
            torch.tensor([report.logprob for report in whole(stream).prompt_logprobs]) for stream in streams
        ]


def drawn(network: Network, count: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """An answer of `count` sampled tokens, what the engine said of each, and prompt and answer as a text."""
    prompt = token_ids(70)
    sampling = SamplingParams(max_tokens=count, logprobs=0, seed=3, ignore_eos=True)
    config = EngineConfig(cache_bytes=16 << 20, fixed_drafts=True)
    with Engine(network, config, checkpoint="tiny") as engine:
        output = whole(engine.submit(Request(tuple(prompt.tolist()), sampling)))
    answer = torch.tensor(output.token_ids)
    return answer, torch.tensor([each.logprob for each in output.logprobs]), [torch.cat((prompt, answer))]


@torch.no_grad()
def compare(network: Network, model: Qwen3Next) -> None:
    texts = [token_ids(length, seed=length) for length in LENGTHS]
    for found, wanted in zip(served(network, texts), trained(model, texts), strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 1e-4
    answer, told, text = drawn(network, 40)
    (wanted,) = trained(model, text)
    assert len(answer) == 40
    assert (told - wanted[-40:]).abs().max() <= 1e-4


def test_float32_log_probs_are_the_engines() -> None:
    """Prompts read in pieces, and answers drawn with drafts, against one row of whole texts."""
    model = tiny_model(initializer_range=0.1)
    compare(model, model)


def test_float32_log_probs_are_those_of_the_packed_network() -> None:
    network, model = packed_pair("float32", "exact", initializer_range=0.1)
    compare(network, model)


def test_log_probs_learn() -> None:
    """Their gradient is that of the loss."""
    model = tiny_model().requires_grad_(True)
    texts = [token_ids(length, seed=length) for length in (5, 1, 30)]
    ids, lengths = torch.cat(texts), tuple(map(len, texts))
    weights = torch.cat([(torch.arange(n) > 0).float() for n in lengths])
    (-log_probs(model, ids, lengths).sum()).backward()
    found = {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    model.zero_grad()
    total(model, Batch(ids, weights, lengths), denominator=1.0, mtp_weight=0.0, router_weight=0.0)[
        0
    ].backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-5, msg=name)
