"""The gated delta rule over whole documents: all chunks of all documents at once, but for one product a
turn that carries states from chunk to chunk.

The kernel of flash-linear-attention takes its place where there is one (`fla_kernels`).
Legend: as in `reference.delta_rule`; M chunks of all documents, in order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..documents import Chunks, chunks, documents
from ..ops import DeltaCache, Row
from ..reference.delta_rule import CHUNK, unit, within
from ..rows import collect, spread
from .fla_kernels import library_for


def gated_delta_rule(
    q_TKC: Tensor,
    k_TKC: Tensor,
    v_TVU: Tensor,
    g_TV: Tensor,
    beta_TV: Tensor,
    row: Row,
    cache: DeltaCache | None,
) -> Tensor:
    """See `Ops.gated_delta_rule`."""
    if cache is not None:
        return reference.gated_delta_rule(q_TKC, k_TKC, v_TVU, g_TV, beta_TV, row, cache)
    with torch.autocast(q_TKC.device.type, enabled=False):
        if library := library_for(q_TKC):
            repeat = v_TVU.shape[1] // q_TKC.shape[1]
            q, k = (x.repeat_interleave(repeat, 1)[None] for x in (q_TKC, k_TKC))
            bounds = documents(row.lengths, q_TKC.device).bounds
            options = {"scale": q.shape[-1] ** -0.5, "use_qk_l2norm_in_kernel": True, "cu_seqlens": bounds}
            gates = {"g": g_TV.float()[None], "beta": beta_TV.float()[None]}
            found, _ = library.delta_rule(q, k, v_TVU[None], **gates, **options)
            return found[0].float()
        q = unit(q_TKC) * q_TKC.shape[-1] ** -0.5
        inputs = (q, unit(k_TKC), v_TVU.float(), g_TV.float(), beta_TV.float())
        laid = chunks(row.lengths, q.device, CHUNK)
        each = within(*(_lay(x, laid) for x in inputs))
        keys = (each.k * each.between[..., -1, :].unsqueeze(-1)).mT  # as they are at the chunk's end
        left = each.grown[..., -1:, :] * torch.eye(keys.shape[-2], device=q.device)
        states = _states(left - keys @ each.reads, keys @ each.values, laid.counts)
        fresh = each.values - each.reads @ states
        out = each.q @ states + each.scores @ fresh
        return collect(out.transpose(1, 2).flatten(0, 1), laid.order)


def _lay(x: Tensor, laid: Chunks) -> Tensor:
    """[T, heads, ...] -> [M, heads, L, ...]; past a document's end zeros, which change no state."""
    padded = torch.cat((x, x.new_zeros(1, *x.shape[1:])))
    places = torch.cat((laid.order, laid.order[-1:])).unsqueeze(1)  # the zeros' gradient is nobody's
    rows: Tensor = spread(padded, laid.rows.flatten(), places).unflatten(0, laid.rows.shape)
    return rows.transpose(1, 2)


def _states(carry_MVCC: Tensor, added_MVCU: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The state before each chunk [M, V, C, U], where a chunk makes carry @ S + added of S: one launch a
    turn, for all documents that still have a chunk."""
    heads = carry_MVCC.shape[1]
    carries = carry_MVCC.flatten(0, 1).split([count * heads for count in counts])
    additions = added_MVCU.flatten(0, 1).split([count * heads for count in counts])
    live = torch.zeros_like(additions[0])
    states = [live]
    for turn, count in enumerate(counts[1:]):
        live = torch.baddbmm(additions[turn], carries[turn], live)[: count * heads]
        states.append(live)
    return torch.cat(states).view_as(added_MVCU)
