"""The gated delta rule: a step form that is its definition, and a chunked form that is quick on long
sequences.

Per value head, with state S [C, U] and L2-normalised q, k (q scaled by C**-0.5):
    S <- exp(g) S;   S <- S + k (beta (v - S^T k))^T;   o = S^T q
Source: Yang et al., "Gated Delta Networks" (2024). All arithmetic is fp32.
Legend: T tokens, N sequences, M chunks of L tokens, K/V key and value heads, C/U their widths.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import DeltaCache, Row, Window

CHUNK = 64
WINDOW = 16  # drafted windows, replayed tokens included, take one small chunk where they fit
STEP_LIMIT = 4  # sequences up to this length take the step form: a chunk would be mostly padding

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def gated_delta_rule(
    q_TKC: Tensor,
    k_TKC: Tensor,
    v_TVU: Tensor,
    g_TV: Tensor,
    beta_TV: Tensor,
    row: Row,
    cache: DeltaCache | None,
) -> Tensor:
    """See `Ops.gated_delta_rule`. The form taken by a sequence depends on its own part of the row alone."""
    with torch.autocast(q_TKC.device.type, enabled=False):
        window = row.window if cache is not None else None
        inputs: Inputs = (q_TKC, k_TKC, v_TVU, g_TV.float(), beta_TV.float())
        lengths = row.lengths
        if window is not None and cache is not None:
            extended, lengths = _replay(inputs, window, cache), window.lengths
            _remember(inputs, window, cache)
            inputs = extended
        q, k = unit(inputs[0]), unit(inputs[1])
        inputs = (q * q.shape[-1] ** -0.5, k, inputs[2].float(), *inputs[3:])
        out = _all_forms(inputs, lengths, row, None if cache is None else cache.state)
        return out if window is None else out.index_select(0, window.own)


def _replay(inputs: Inputs, window: Window, cache: DeltaCache) -> Inputs:
    """The row with each sequence's accepted drafts, as they were remembered, put before its own tokens. Their
    queries do not matter: nobody reads their outputs."""
    slots, places = window.replayed
    gates = cache.gates[slots, places].unbind(1)
    k = cache.k[slots, places]
    old = (k, k, cache.v[slots, places], *gates)
    q, k, v, g, beta = (
        torch.cat((fresh, before.to(fresh.dtype))).index_select(0, window.index)
        for fresh, before in zip(inputs, old, strict=True)
    )
    return q, k, v, g, beta


def _remember(inputs: Inputs, window: Window, cache: DeltaCache) -> None:
    """Keep the inputs of the drafted tokens: the state will take in those that are accepted."""
    (slots, places), rows = window.drafted
    cache.k[slots, places] = inputs[1][rows].to(cache.k.dtype)
    cache.v[slots, places] = inputs[2][rows].to(cache.v.dtype)
    cache.gates[slots, places] = torch.stack((inputs[3][rows], inputs[4][rows]), 1)


def _all_forms(inputs: Inputs, lengths: tuple[int, ...], row: Row, state: Tensor | None) -> Tensor:
    """Each sequence by the form that suits it -> outputs in the order of the row."""
    starts = list(accumulate(lengths, initial=0))
    groups: dict[int, list[int]] = {}
    saving = {n for n, _, _ in row.saves}
    for n, length in enumerate(lengths):
        plain = n not in saving and not row.drafts[n] and not row.replays[n]
        form = 0 if plain and length <= STEP_LIMIT else WINDOW if length <= WINDOW else CHUNK
        groups.setdefault(form, []).append(n)
    if len(groups) == 1:
        ((form, members),) = groups.items()
        return _run(form, inputs, lengths, row, members, state)
    out = torch.empty_like(inputs[2])
    for form, members in groups.items():
        index = torch.cat([torch.arange(starts[n], starts[n + 1]) for n in members]).to(out.device)
        q, k, v, g, beta = (x.index_select(0, index) for x in inputs)
        found = _run(form, (q, k, v, g, beta), lengths, row, members, state)
        out = out.index_copy(0, index, found)
    return out


def unit(x: Tensor) -> Tensor:
    """x of length 1 in its last dimension, in fp32."""
    x = x.float()
    normed: Tensor = x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)
    return normed


def _run(
    form: int,
    inputs: Inputs,
    all_lengths: tuple[int, ...],
    row: Row,
    members: list[int],
    state: Tensor | None,
) -> Tensor:
    """Apply one form to some sequences of the row, and put their last states back."""
    lengths = [all_lengths[n] for n in members]
    cuts = [sorted({row.replays[n] + count for m, count, _ in row.saves if m == n}) for n in members]
    pieces = [len(_pieces(length, cut, form or 1)) for length, cut in zip(lengths, cuts, strict=True)]
    order = sorted(range(len(members)), key=lambda i: -pieces[i])
    v_heads, value_width, key_width = inputs[2].shape[1], inputs[2].shape[2], inputs[0].shape[2]
    slots = None
    if state is None:
        first = inputs[2].new_zeros(len(members), v_heads, key_width, value_width)
    else:
        assert row.slots is not None
        slots = row.slots[torch.tensor([members[i] for i in order], device=row.slots.device)]
        first = state[slots]
    if form == 0:
        out, last = delta_step(*inputs, lengths, order, first)
    else:
        kept = [lengths[i] - row.drafts[n] for i, n in enumerate(members)]
        out, last, saved = delta_chunk(*inputs, lengths, order, first, form, kept, cuts)
        if state is not None:
            for n, count, slot in row.saves:
                if n in members:
                    state[slot] = saved[members.index(n), row.replays[n] + count]
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
    kept: list[int] | None = None,
    cuts: list[list[int]] | None = None,
) -> tuple[Tensor, Tensor, dict[tuple[int, int], Tensor]]:
    """Chunk by chunk: within a chunk all updates are solved at once, between chunks the state is carried.

    `order` lists sequences by falling number of chunks. The last state holds the first `kept[n]` tokens of
    sequence n; those after them must lie in its last chunk. The third result is the states after each cut.
    """
    cuts = cuts or [[] for _ in lengths]
    index_ML, counts = _chunk_index(lengths, order, chunk, cuts)
    index_ML = index_ML.to(q_TKC.device)
    q, k, v, g, beta = (
        gather(x, index_ML) for x in (q_TKC, k_TKC, v_TVU, g_TV, beta_TV)
    )  # [M, heads, L, ...]
    q, k, grown, between, scores, values, reads = within(q, k, v, g, beta)
    if kept is None or kept == lengths:
        k, left = k * between[..., -1, :].unsqueeze(-1), grown[..., -1:, :]
    else:  # a chunk's last kept token, not its last, is where the state goes on
        ends = _ends(lengths, order, counts, chunk, kept, cuts).to(q.device)[:, None, None, None]
        at_end = between.gather(2, ends.expand(-1, between.shape[1], 1, chunk))
        k, left = k * at_end.mT, grown.gather(2, ends.expand(-1, grown.shape[1], 1, 1))
    outs, finished, live, at = [], [], state_NVCU, 0
    saved: dict[tuple[int, int], Tensor] = {}
    for turn, count in enumerate(counts):
        finished.append(live[count:])
        live = live[:count]
        part = slice(at, at + count)
        fresh = values[part] - reads[part] @ live
        outs.append(q[part] @ live + scores[part] @ fresh)
        live = live * left[part] + k[part].mT @ fresh
        at += count
        for place, n in enumerate(order[:count]):
            if cuts[n] and (end := _pieces(lengths[n], cuts[n], chunk)[turn][1]) in cuts[n]:
                saved[n, end] = live[place]
    finished.append(live)
    out = torch.cat(outs).transpose(1, 2).flatten(0, 1)
    places = index_ML.flatten()
    real = (places < v_TVU.shape[0]).nonzero()[:, 0]
    return _restore(out.index_select(0, real), places[real]), torch.cat(finished[::-1]), saved


class Within(NamedTuple):
    """What chunks do by themselves: queries [M, V, L, C] grown as the state at each token has, keys, what is
    left of a state and of earlier tokens (see `_decays`), scores of earlier tokens [M, V, L, L], and the
    tokens' values [M, V, L, U] as far as no state is known, less what they read of it by `reads`
    [M, V, L, C]."""

    q: Tensor
    k: Tensor
    grown: Tensor
    between: Tensor
    scores: Tensor
    values: Tensor
    reads: Tensor


def within(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Within:
    """Solves the updates inside of each chunk: q, k [M, K, L, C], v [M, V, L, U], g, beta [M, V, L]."""
    repeat = v.shape[1] // q.shape[1]
    grown, between = _decays(g)
    scores = (q @ k.mT).repeat_interleave(repeat, 1) * between
    system = (k @ k.mT).repeat_interleave(repeat, 1) * between * beta.unsqueeze(-1)
    solve: Tensor = UnitLowerInverse.apply(system.tril(-1))  # type: ignore[no-untyped-call]
    q, k = q.repeat_interleave(repeat, 1), k.repeat_interleave(repeat, 1)
    values = solve @ (v * beta.unsqueeze(-1))
    reads = solve @ (k * (beta.unsqueeze(-1) * grown))
    return Within(q * grown, k, grown, between, scores, values, reads)


def _decays(g_MVL: Tensor) -> tuple[Tensor, Tensor]:
    """What is left at each token of what was there before its chunk [M, V, L, 1], and of what each earlier
    token of the chunk added [M, V, L, L]."""
    # Sums in fp64: a token that forgets everything must not cost the differences after it their digits.
    sums = g_MVL.double().cumsum(-1)
    causal = torch.ones(2 * g_MVL.shape[-1:], dtype=torch.bool, device=g_MVL.device).tril()
    gaps = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).float()
    return sums.float().exp().unsqueeze(-1), gaps.masked_fill(~causal, float("-inf")).exp()


def _pieces(length: int, cuts: list[int], chunk: int) -> list[tuple[int, int]]:
    """Where a sequence's chunks begin and end: at most `chunk` tokens each, and none across a cut."""
    edges = [0, *cuts, length]
    return [
        (begin, min(begin + chunk, high))
        for low, high in pairwise(edges)
        for begin in range(low, high, chunk)
    ]


def _chunk_index(
    lengths: list[int], order: list[int], chunk: int, cuts: list[list[int]]
) -> tuple[Tensor, list[int]]:
    """Row numbers of the tokens of each chunk [M, L] (past its end: T), and sequences per round.

    Chunks are ordered round by round: the first chunk of every sequence, in `order`, then the second of those
    that have one, ... so that the sequences still running are a leading block of each round.
    """
    total = sum(lengths)
    starts = list(accumulate(lengths, initial=0))
    pieces = {n: _pieces(lengths[n], cuts[n], chunk) for n in order}
    rows, counts = [], []
    for turn in range(len(pieces[order[0]])):
        active = [n for n in order if len(pieces[n]) > turn]
        counts.append(len(active))
        for n in active:
            begin, end = pieces[n][turn]
            offsets = torch.arange(begin, begin + chunk)
            rows.append(torch.where(offsets < end, starts[n] + offsets, total))
    return torch.stack(rows), counts


def _ends(
    lengths: list[int],
    order: list[int],
    counts: list[int],
    chunk: int,
    kept: list[int],
    cuts: list[list[int]],
) -> Tensor:
    """The last kept token of each chunk [M], counted within the chunk (padding changes no state: kept)."""
    ends = []
    for turn, count in enumerate(counts):
        for n in order[:count]:
            begin, end = _pieces(lengths[n], cuts[n], chunk)[turn]
            assert kept[n] > begin, "drafts lie in more than their sequence's last chunk"
            ends.append(chunk - 1 if kept[n] >= end else kept[n] - begin - 1)
    return torch.tensor(ends)


def gather(x: Tensor, index_ML: Tensor) -> Tensor:
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
