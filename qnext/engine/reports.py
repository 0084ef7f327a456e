"""Reports: log-probabilities of chosen tokens and of their rivals, for requests that asked.

Called by `steps` and `prompt_reports`. Invariant: they are the model's own, before penalties.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from qnext.kernels.cpu import totals as fast
from qnext.kernels.reference import drawing as plain
from qnext.kernels.select import packs

from .request import TokenLogprob
from .sampler import Row, bounded


def logprobs(logits_RV: Tensor, tokens: list[int], rows: Rows[Row]) -> list[TokenLogprob | None]:
    """Log-probabilities under the model itself, before penalties and (but for `tempered_logprobs`)
    temperature, for the rows that asked."""
    found: list[TokenLogprob | None] = [None] * len(tokens)
    asked = [(i, row.wish.logprobs) for i, row in enumerate(rows) if row.wish.logprobs is not None]
    if asked:
        where = [i for i, _ in asked]
        scores = logits_RV[where]
        if any(rows[i].sequence.request.tempered_logprobs for i in where):
            scores = scores / logits_RV.new_tensor([_heat(rows[i]) for i in where])[:, None]
        told = reports(scores, [tokens[i] for i in where], [count for _, count in asked])
        for i, report in zip(where, told, strict=True):
            found[i] = report
    return found


def _heat(row: Row) -> float:
    """What a row's scores are divided by before its log-probabilities are told."""
    return bounded(row.wish.temperature) if row.sequence.request.tempered_logprobs else 1.0


def reports(logits_RV: Tensor, tokens: list[int], counts: list[int]) -> list[TokenLogprob]:
    """The log-probability of each row's token, with so many of the row's likeliest."""
    scores = logits_RV.float()
    chosen = scores.gather(-1, torch.tensor(tokens, device=scores.device)[:, None])
    values, ids = plain.best(scores, min(max(1, *counts), scores.shape[1]))
    # The likeliest weighs 1, and all together so much.
    kernels = fast if packs(scores.device.type) else plain
    base = values[:, :1] + kernels.log_totals(scores, np.ones(len(tokens), np.float32))[:, None]
    chosen, values = chosen - base, values - base
    table = zip(tokens, counts, chosen[:, 0].tolist(), ids.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprob(token, value, tuple(zip(ids[:count], values[:count], strict=True)))
        for token, count, value, ids, values in table
    ]
