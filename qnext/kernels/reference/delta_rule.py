"""The gated delta rule: a step form that is its definition, and a chunked form that is quick on long
sequences.

Per value head, with state S [C, U] and L2-normalised q, k (q scaled by C**-0.5):
    S <- exp(g) S;   S <- S + k (beta (v - S^T k))^T;   o = S^T q
Source: Yang et al., "Gated Delta Networks" (2024). All arithmetic is fp32.
Legend: T tokens, N sequences, M chunks of L tokens, K/V key and value heads, C/U their widths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import Row

Form = Callable[..., tuple[Tensor, Tensor]]
CHUNK = 64
STEP_LIMIT = 4  # sequences up to this length take the step form: a chunk would be mostly padding


def gated_delta_rule(
    q_TKC: Tensor, k_TKC: Tensor, v_TVU: Tensor, g_TV: Tensor, beta_TV: Tensor, row: Row, state: Tensor | None
) -> Tensor:
    """See `Ops.gated_delta_rule`. The form taken by a sequence depends on its own length alone."""
    with torch.autocast(q_TKC.device.type, enabled=False):
        q, k = _unit(q_TKC), _unit(k_TKC)
        inputs = (q * q.shape[-1] ** -0.5, k, v_TVU.float(), g_TV.float(), beta_TV.float())
        short = [n for n, length in enumerate(row.lengths) if length <= STEP_LIMIT]
        long = [n for n, length in enumerate(row.lengths) if length > STEP_LIMIT]
        if not long:
            return _run(delta_step, inputs, row, short, state)
        if not short:
            return _run(delta_chunk, inputs, row, long, state)
        out = torch.empty_like(inputs[2])
        for form, members in ((delta_step, short), (delta_chunk, long)):
            index = torch.cat([torch.arange(row.starts[n], row.starts[n] + row.lengths[n]) for n in members])
            index = index.to(out.device)
            picked = tuple(x.index_select(0, index) for x in inputs)
            out = out.index_copy(0, index, _run(form, picked, row, members, state))
        return out


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    unit: Tensor = x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)
    return unit


def _run(
    form: Form, inputs: tuple[Tensor, ...], row: Row, members: list[int], state: Tensor | None
) -> Tensor:
    """Apply one form to some sequences of the row, longest first, and put their last states back."""
    lengths = [row.lengths[n] for n in members]
    order = sorted(range(len(members)), key=lambda i: -lengths[i])
    v_heads, value_width, key_width = inputs[2].shape[1], inputs[2].shape[2], inputs[0].shape[2]
    slots = None
    if state is None:
        first = inputs[2].new_zeros(len(members), v_heads, key_width, value_width)
    else:
        assert row.slots is not None
        slots = row.slots[torch.tensor([members[i] for i in order], device=row.slots.device)]
        first = state[slots]
    out, last = form(*inputs, lengths, order, first)
    if state is not None:
        state[slots] = last
    return out


def delta_step(
    q_TKC: Tensor,
    k_TKC: Tensor,
    v_TVU: Tensor,
    g_TV: Tensor,
    beta_TV: Tensor,
    lengths: list[int],
    order: list[int],
    state_NVCU: Tensor,
) -> tuple[Tensor, Tensor]:
    """Token by token, all sequences at once. `order` lists sequences longest first, as `state` does."""
    repeat = v_TVU.shape[1] // q_TKC.shape[1]
    q, k = (x.repeat_interleave(repeat, 1) for x in (q_TKC, k_TKC))
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    outs, places, finished = [], [], []
    live = state_NVCU
    for t in range(lengths[order[0]]):
        active = [n for n in order if lengths[n] > t]
        finished.append(live[len(active) :])
        live = live[: len(active)]
        rows = torch.tensor([starts[n] + t for n in active], device=q.device)
        live = live * g_TV[rows].exp()[..., None, None]
        read = torch.einsum("nvcu,nvc->nvu", live, k[rows])
        write = (v_TVU[rows] - read) * beta_TV[rows][..., None]
        live = live + k[rows].unsqueeze(-1) * write.unsqueeze(-2)
        outs.append(torch.einsum("nvcu,nvc->nvu", live, q[rows]))
        places.append(rows)
    finished.append(live)
    return _restore(torch.cat(outs), torch.cat(places)), torch.cat(finished[::-1])


def delta_chunk(
    q_TKC: Tensor,
    k_TKC: Tensor,
    v_TVU: Tensor,
    g_TV: Tensor,
    beta_TV: Tensor,
    lengths: list[int],
    order: list[int],
    state_NVCU: Tensor,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Chunk by chunk: within a chunk all updates are solved at once, between chunks the state is carried."""
    index_ML, counts = _chunk_index(lengths, order, chunk)
    index_ML = index_ML.to(q_TKC.device)
    q, k, v, g, beta = (
        _gather(x, index_ML) for x in (q_TKC, k_TKC, v_TVU, g_TV, beta_TV)
    )  # [M, heads, L, ...]
    repeat = v.shape[1] // q.shape[1]
    # Sums in fp64: a token that forgets everything must not cost the differences after it their digits.
    sums_MVL = g.double().cumsum(-1)
    decay_MVL = sums_MVL.float()
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    gaps = (sums_MVL.unsqueeze(-1) - sums_MVL.unsqueeze(-2)).float()
    between = gaps.masked_fill(~causal, float("-inf")).exp()
    scores = (q @ k.mT).repeat_interleave(repeat, 1) * between
    system = (k @ k.mT).repeat_interleave(repeat, 1) * between * beta.unsqueeze(-1)
    solve: Tensor = UnitLowerInverse.apply(system.tril(-1))  # type: ignore[no-untyped-call]
    q, k = q.repeat_interleave(repeat, 1), k.repeat_interleave(repeat, 1)
    grown = decay_MVL.exp().unsqueeze(-1)
    values = solve @ (v * beta.unsqueeze(-1))
    reads = solve @ (k * (beta.unsqueeze(-1) * grown))
    q, k = q * grown, k * between[..., -1, :].unsqueeze(-1)
    outs, finished, live, at = [], [], state_NVCU, 0
    for count in counts:
        finished.append(live[count:])
        live = live[:count]
        part = slice(at, at + count)
        fresh = values[part] - reads[part] @ live
        outs.append(q[part] @ live + scores[part] @ fresh)
        live = live * grown[part, :, -1:] + k[part].mT @ fresh
        at += count
    finished.append(live)
    out = torch.cat(outs).transpose(1, 2).flatten(0, 1)
    places = index_ML.flatten()
    real = (places < v_TVU.shape[0]).nonzero()[:, 0]
    return _restore(out.index_select(0, real), places[real]), torch.cat(finished[::-1])


def _chunk_index(lengths: list[int], order: list[int], chunk: int) -> tuple[Tensor, list[int]]:
    """Row numbers of the tokens of each chunk [M, L] (past a sequence's end: T), and sequences per round.

    Chunks are ordered round by round: the first chunk of every sequence, longest sequence first, then the
    second of those that have one, ... so that the sequences still running are a leading block of each round.
    """
    total = sum(lengths)
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    rows, counts = [], []
    for begin in range(0, lengths[order[0]], chunk):
        active = [n for n in order if lengths[n] > begin]
        counts.append(len(active))
        for n in active:
            offsets = torch.arange(begin, begin + chunk)
            rows.append(torch.where(offsets < lengths[n], starts[n] + offsets, total))
    return torch.stack(rows), counts


def _gather(x: Tensor, index_ML: Tensor) -> Tensor:
    """[T, heads, ...] -> [M, heads, L, ...]; past a sequence's end zeros, which change no state."""
    padded = torch.cat((x, x.new_zeros(1, *x.shape[1:])))
    picked: Tensor = padded.index_select(0, index_ML.flatten()).unflatten(0, index_ML.shape)
    return picked.transpose(1, 2)


def _restore(values: Tensor, places: Tensor) -> Tensor:
    """Undo a permutation: row i of `values` belongs at row `places[i]`."""
    back = torch.empty_like(places).scatter_(0, places, torch.arange(len(places), device=places.device))
    return values.index_select(0, back)


class UnitLowerInverse(torch.autograd.Function):
    """(I + A)^-1 of strictly lower triangular A [..., L, L], L a power of two times 8.

    8 x 8 blocks by the finite series (I - A)(I + A^2)(I + A^4), whose terms stay small; pairs of blocks are
    then merged. Unlike one series for all of L this cannot overflow, and it is quicker than a triangular
    solve.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        size, block = a.shape[-1], 8
        flat = a.reshape(-1, size, size)
        identity = torch.eye(block, dtype=a.dtype, device=a.device)
        power = -_diagonal_blocks(flat, block)
        inverse = identity + power
        for _ in range(2):
            power = power @ power
            inverse = inverse + inverse @ power
        while block < size:
            below = _diagonal_blocks(flat, 2 * block)[..., block:, :block]
            upper, lower = inverse[:, 0::2], inverse[:, 1::2]
            corner = -lower @ below @ upper
            top = torch.cat((upper, torch.zeros_like(upper)), -1)
            inverse = torch.cat((top, torch.cat((corner, lower), -1)), -2)
            block *= 2
        result = inverse.reshape(a.shape)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        slope: Tensor = -(inverse.mT @ grads[0] @ inverse.mT).tril(-1)
        return slope


def _diagonal_blocks(a_BLL: Tensor, block: int) -> Tensor:
    """[B, L, L] -> its diagonal blocks [B, L / block, block, block]."""
    batch, size, _ = a_BLL.shape
    tiles = a_BLL.view(batch, size // block, block, size // block, block)
    return tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
