"""The mesh: the processes of a training run, and which part of the network each of them holds.

The trainer opens one from the recipe's `[mesh]` table, the optimiser and checkpoints ask it for whole tensors
and own parts. Invariant: a run on any mesh takes the steps of a single process, within float error. Weights
are cut by FSDP2, experts dealt out as DTensors; a mesh of one process leaves everything as it is.

Every process reads its own rows, those that share experts too: the axes only say who holds which weights.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate

from qnext.model.config import ModelConfig
from qnext.model.moe import SparseMoE
from qnext.model.qwen3_next import Qwen3Next

from .dispatch import DealtExperts


@dataclass(frozen=True)
class MeshSettings:
    """How many processes a run has, as three factors: `replicate` whole copies of the weights, each cut over
    `shard` * `expert` processes; the experts of a layer are dealt out to `expert` of them, and tokens travel
    to their experts instead of experts to the tokens."""

    replicate: int = 1
    shard: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for name in ("replicate", "shard", "expert"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")

    @property
    def size(self) -> int:
        return self.replicate * self.shard * self.expert


class Mesh:
    """One process's view of the run's processes; `Mesh.open` makes it."""

    def __init__(self, settings: MeshSettings, devices: DeviceMesh | None) -> None:
        self.settings, self.size = settings, settings.size
        self._devices = devices
        self.rank = devices.get_rank() if devices else 0

    @classmethod
    @contextlib.contextmanager
    def open(cls, settings: MeshSettings, device: str) -> Iterator[Mesh]:
        """The mesh of the processes that `torchrun` started; they part when it is closed.

        Raises ValueError when their number is not the recipe's.
        """
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != settings.size:
            raise ValueError(
                f"the recipe's [mesh] has {settings.size} processes, {started} started: "
                f"torchrun --nproc-per-node {settings.size} -m qnext.cli train ..."
            )
        if settings.size == 1:
            yield cls(settings, None)
            return
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        try:
            shape = (settings.replicate, settings.shard * settings.expert)
            yield cls(
                settings, init_device_mesh(device.split(":")[0], shape, mesh_dim_names=("replicate", "cut"))
            )
        finally:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def place(self, model: Qwen3Next) -> None:
        """Leave only this process's part of the weights, which all processes have whole and alike."""
        if self._devices is None:
            return
        dealt = self._deal(model) if self.settings.expert > 1 else set()
        blocks = [*model.layers, *(model.mtp.layers if model.mtp else ())]
        for module in (*blocks, model.mtp, model):
            if module:
                fully_shard(module, mesh=self._axes(self._devices, "cut"), ignored_params=dealt)
        for module in model.modules():
            if isinstance(module, FSDPModule):  # losses are parts of a sum, so that gradients are too
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def _deal(self, model: Qwen3Next) -> set[nn.Parameter]:
        """Give each process of the `expert` axis its experts, and have tokens sent to them; returns those
        weights that no other process holds, which nobody needs to gather."""
        assert self._devices is not None
        count, size = model.config.num_experts, self.settings.expert
        if count == 0 or count % size:
            raise ValueError(f"mesh.expert is {size}: give a divisor of the {count} experts of a layer")
        shape = (self.settings.shard, size)
        devices = self._devices._unflatten("cut", shape, ("shard", "expert"))
        axis = devices["expert"]
        alone = set[nn.Parameter]()
        for module in list(model.modules()):
            if isinstance(module, SparseMoE):
                module.experts = DealtExperts(module.experts, axis)
                if self.settings.replicate * self.settings.shard > 1:
                    fully_shard(module.experts, mesh=self._axes(devices, "shard"))
                else:
                    alone.update(module.experts.parameters())
        return alone

    def _axes(self, devices: DeviceMesh, last: str) -> DeviceMesh:
        """Copies and what a copy is cut over; without the first where there is one copy."""
        return devices["replicate", last] if self.settings.replicate > 1 else devices[last]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every process's tensor, in place."""
        if self._devices is not None:
            there = tensor.to(self._device)  # the network's processes may be on another device
            dist.all_reduce(there)
            tensor.copy_(there)
        return tensor

    def agree(self, wish: bool) -> bool:
        """Whether any process wishes it: all get the same answer."""
        return bool(self.sum(torch.tensor(float(wish))) > 0)

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """The Euclidean norm of all these tensors together, each process's parts counted once."""
        if self._devices is None:
            return nn.utils.get_total_norm(tensors)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for tensor in tensors:
            assert isinstance(tensor, DTensor)
            cut = [axis for axis, place in enumerate(tensor.placements) if not isinstance(place, Replicate)]
            parts = 1
            for axis in cut:
                parts *= tensor.device_mesh.size(axis)
            total += local(tensor).double().square().sum() * parts / self.size
        return self.sum(total).sqrt().float()

    @property
    def _device(self) -> torch.device:
        assert self._devices is not None
        kind = self._devices.device_type
        return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


@dataclass
class Snapshot:
    """A network's weights, whole, to be written as a checkpoint."""

    config: ModelConfig
    tensors: dict[str, nn.Parameter]

    @classmethod
    def of(cls, model: Qwen3Next, dtype: torch.dtype | None = None) -> Snapshot:
        """Of a network that may be cut over many processes, which must all call this."""
        tensors = {}
        for name, weight in model.named_parameters():
            found = whole(weight.detach())
            tensors[name] = nn.Parameter(found.to(dtype or found.dtype), requires_grad=False)
        return cls(model.config, tensors)

    def blended(self, start: Qwen3Next, share: float, dtype: torch.dtype) -> Snapshot:
        """These weights with a share of those of a network of the same shape (WiSE-FT, Wortsman 2022)."""
        others = dict(start.named_parameters())
        tensors = {
            name: nn.Parameter(weight.cpu().lerp(others[name].detach(), share).to(dtype), requires_grad=False)
            for name, weight in self.tensors.items()
        }
        return Snapshot(self.config, tensors)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self.tensors.items())


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; a plain tensor is all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is cut, every process that holds a part must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor, the part that this process holds of `like`."""
    if not isinstance(like, DTensor):
        return tensor
    everywhere = DTensor.from_local(tensor, like.device_mesh, [Replicate()] * like.device_mesh.ndim)
    return everywhere.redistribute(placements=like.placements).to_local()


def joined(part: Tensor, like: Tensor) -> Tensor:
    """All of a tensor of which this process holds `part`, cut as `like` is."""
    if not isinstance(like, DTensor):
        return part
    cut = DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return cut.full_tensor()
