"""Expert parallelism: tokens travel to the processes that hold their experts, and the answers come back.

`mesh` puts `DealtExperts` in the place of a layer's `Experts`. Invariant: the answer is that of all experts
in one process, whatever was sent where; a process that gets no tokens takes part all the same.

Legend: T tokens of this process's row, k experts of each, H hidden, R copies of tokens that arrived here,
W processes that share the experts, F experts here.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from qnext.kernels.ops import Ops
from qnext.model.moe import Experts


class DealtExperts(Experts):
    """The experts of a layer, dealt out in order to the processes of one axis of the mesh."""

    def __init__(self, experts: Experts, axis: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self._axis, self._group = axis, axis.get_group()
        for name, weight in experts.named_parameters():
            # every process has all of it already: nothing is sent
            part = distribute_tensor(weight.detach(), axis, [Shard(0)], src_data_rank=None)
            setattr(self, name, nn.Parameter(part, requires_grad=weight.requires_grad))

    def forward(self, x_TH: Tensor, weights_Tk: Tensor, chosen_Tk: Tensor, ops: Ops) -> Tensor:
        """See `Ops.experts`."""
        gate_up, down = (_here(weight) for weight in (self.gate_up_proj, self.down_proj))
        here, processes = gate_up.shape[0], self._axis.size()
        tokens, picks = chosen_Tk.shape
        order = chosen_Tk.flatten().argsort(stable=True)  # by expert, and so by process
        sent = torch.bincount(chosen_Tk.flatten(), minlength=here * processes)
        arrived = torch.empty_like(sent)
        dist.all_to_all_single(arrived, sent, group=self._group)
        counts_WF = arrived.view(processes, here)
        to, back = sent.view(processes, here).sum(1).tolist(), counts_WF.sum(1).tolist()

        rows_RH = self._exchange(x_TH.index_select(0, order // picks), to, back)
        expert_R = (
            torch.arange(here, device=x_TH.device).repeat(processes).repeat_interleave(counts_WF.flatten())
        )
        if len(rows_RH):
            ones = torch.ones(len(rows_RH), 1, device=x_TH.device)
            rows_RH = ops.experts(rows_RH, ones, expert_R[:, None], gate_up, down)
        else:  # a gradient must come of it all the same: the others wait for it
            rows_RH = rows_RH + 0.0 * (gate_up.sum() + down.sum()).to(rows_RH.dtype)
        outs = self._exchange(rows_RH, back, to)

        restored = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        out_TkH = outs.index_select(0, restored).view(tokens, picks, -1)
        return (out_TkH.float() * weights_Tk.unsqueeze(-1)).sum(1).to(x_TH.dtype)

    def _exchange(self, rows: Tensor, to: list[int], back: list[int]) -> Tensor:
        """Send `to[w]` of the rows to process w, in order; returns `back[w]` rows of each, in order."""
        exchanged: Tensor = all_to_all_single_autograd(rows.contiguous(), back, to, self._group)
        return exchanged


def _here(weight: Tensor) -> Tensor:
    """The experts of this process; the gradient is of them alone."""
    return weight.to_local() if isinstance(weight, DTensor) else weight
