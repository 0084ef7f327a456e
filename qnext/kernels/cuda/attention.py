"""Attention of whole documents, those of similar length at once."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import reference
from ..documents import by_group, documents
from ..ops import Row


def attention(
    q_TQD: Tensor, k_TGD: Tensor, v_TGD: Tensor, row: Row, cache: tuple[Tensor, Tensor] | None, scale: float
) -> Tensor:
    """See `Ops.attention`."""
    if cache is not None:
        return reference.attention(q_TQD, k_TGD, v_TGD, row, cache, scale)
    # not cuDNN: it prepares itself anew, for 12 ms, for every shape, and here each row has others
    known = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    repeat = q_TQD.shape[1] // k_TGD.shape[1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            x.transpose(1, 2) for x in (q, k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2))
        )
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)

    with known:
        return by_group((q_TQD, k_TGD, v_TGD), documents(row.lengths, q_TQD.device), attend)
