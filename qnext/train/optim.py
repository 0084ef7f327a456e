"""The optimiser: Muon for weight matrices, AdamW for everything else, over the named parameters of one model.

The trainer makes one and calls `step` once per training step. Invariant: a step depends on nothing but the
parameters, their gradients and `state_dict`, so that a resumed run takes the very same steps.

Shapes: B matrices of a batch, M rows, N columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from qnext.model.config import ModelConfig

from .mesh import Mesh, MeshSettings, joined, local, own
from .precision import product_dtype

# A quintic whose iteration pulls every singular value into about [0.7, 1.2] within five steps, with the
# coefficients that Muon was published with.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_EPS = 1e-8


@dataclass(frozen=True)
class OptimSettings:
    """Learning rates are per step at full scale; `weight_decay` is decoupled and multiplied by them."""

    muon_lr: float = 0.02
    momentum: float = 0.95
    adamw_lr: float = 3e-3
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0  # of the whole gradient's norm

    def __post_init__(self) -> None:
        for name in ("muon_lr", "adamw_lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), not {self.betas}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {self.momentum}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, but is {self.weight_decay}")


@dataclass
class _Matrix:
    """A parameter for Muon, its momentum, and where its logical matrices lie."""

    name: str
    parameter: nn.Parameter
    momentum: Tensor
    rows: list[int] = field(default_factory=list)  # how its rows split into matrices of their own

    def parts(self, tensor: Tensor) -> Sequence[Tensor]:
        """The matrices [B, M, N] of the parameter, or of a tensor like it, as views."""
        return torch.split(tensor.view(-1, *tensor.shape[-2:]), self.rows, dim=1)

    @property
    def is_cut(self) -> bool:
        """Whether its matrices lie in several processes, so that none can orthogonalise its part. Stacks are
        cut between matrices."""
        return isinstance(self.parameter, DTensor) and self.parameter.ndim == 2


class Optimizer:
    """Muon and AdamW in one: `step` reads `.grad` of the model's parameters and updates them in place."""

    def __init__(
        self, model: nn.Module, config: ModelConfig, settings: OptimSettings, mesh: Mesh | None = None
    ) -> None:
        self.settings = settings
        self._mesh = mesh or Mesh(MeshSettings(), None)
        self.steps = 0
        self._matrices: list[_Matrix] = []
        self._others: dict[str, nn.Parameter] = {}
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        for name, parameter in model.named_parameters():
            if is_matrix(name):
                rows = matrix_rows(name, parameter.shape[-2], config)
                self._matrices.append(_Matrix(name, parameter, torch.zeros_like(local(parameter)), rows))
            else:
                self._others[name] = parameter
                part = local(parameter)
                self._moments[name] = (torch.zeros_like(part), torch.zeros_like(part))

    @torch.no_grad()
    def step(self, lr_scale: float) -> float:
        """Clip, update every parameter that has a gradient, and drop the gradients.

        Returns the norm of the whole gradient before clipping. `lr_scale` multiplies both learning rates.
        """
        parameters = [m.parameter for m in self._matrices] + list(self._others.values())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = self._mesh.norm(gradients)
        scale = torch.clamp(self.settings.clip / (norm + 1e-6), max=1.0)
        if gradients:
            torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
        self.steps += 1
        self._muon(self.settings.muon_lr * lr_scale)
        self._adamw(self.settings.adamw_lr * lr_scale)
        for parameter in parameters:
            parameter.grad = None
        return float(norm)

    def _muon(self, lr: float) -> None:
        """All matrices of one shape go through Newton-Schulz together: few large batched products.

        Where a matrix is cut over processes, each makes the whole update and takes its own rows.
        """
        learning = [matrix for matrix in self._matrices if matrix.parameter.grad is not None]
        if not learning:
            return
        gradients = [local(grad) for matrix in learning if (grad := matrix.parameter.grad) is not None]
        momenta = [matrix.momentum for matrix in learning]
        torch._foreach_lerp_(momenta, gradients, 1 - self.settings.momentum)
        nesterov = torch._foreach_lerp(gradients, momenta, self.settings.momentum)
        groups: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        cut: list[tuple[_Matrix, Tensor]] = []
        for matrix, update in zip(learning, nesterov, strict=True):
            weight = local(matrix.parameter)
            if matrix.is_cut:
                update = joined(update, matrix.parameter)
                weight = torch.zeros_like(update)
                cut.append((matrix, weight))
            for target, part in zip(matrix.parts(weight), matrix.parts(update), strict=True):
                groups.setdefault((part.shape[1], part.shape[2]), []).append((target, part))
        decay = 1 - lr * self.settings.weight_decay
        for (rows, columns), members in groups.items():
            weights = [weight for weight, _ in members]
            updates = orthogonalise(torch.cat([part for _, part in members])).to(weights[0].dtype)
            scale = lr * max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(weights, decay)
            torch._foreach_sub_(weights, updates.split([len(weight) for weight in weights]), alpha=scale)
        for matrix, change in cut:
            local(matrix.parameter).mul_(decay).add_(own(change, matrix.parameter))

    def _adamw(self, lr: float) -> None:
        beta1, beta2 = self.settings.betas
        for decayed in (True, False):
            learning = [
                (local(parameter), local(parameter.grad), *self._moments[name])
                for name, parameter in self._others.items()
                if parameter.grad is not None and is_decayed(name) == decayed
            ]
            if not learning:
                continue
            weights, gradients, means, squares = (list(each) for each in zip(*learning, strict=True))
            torch._foreach_lerp_(means, gradients, 1 - beta1)
            torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - beta2)
            if decayed:
                torch._foreach_mul_(weights, 1 - lr * self.settings.weight_decay)
            denominators = torch._foreach_div(squares, 1 - beta2**self.steps)
            torch._foreach_sqrt_(denominators)
            torch._foreach_add_(denominators, _EPS)
            torch._foreach_addcdiv_(weights, means, denominators, value=-lr / (1 - beta1**self.steps))

    def state_dict(self) -> dict[str, Any]:
        """Whole tensors by name; on a mesh every process must call this."""
        return {
            "steps": self.steps,
            "momentum": {matrix.name: joined(matrix.momentum, matrix.parameter) for matrix in self._matrices},
            "moments": {
                name: tuple(joined(part, self._others[name]) for part in parts)
                for name, parts in self._moments.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the state is of a model with other parameters."""
        mine: dict[str, Any] = {
            "momentum": {matrix.name: matrix for matrix in self._matrices},
            "moments": self._moments,
        }
        for kind, table in mine.items():
            odd = sorted(table.keys() ^ state[kind].keys())
            if odd:
                raise ValueError(f"optimiser state does not fit the model: {', '.join(odd[:3])}")
        self.steps = state["steps"]
        for matrix in self._matrices:
            matrix.momentum.copy_(own(state["momentum"][matrix.name], matrix.parameter))
        for name, tensors in self._moments.items():
            for part, kept in zip(tensors, state["moments"][name], strict=True):
                part.copy_(own(kept, self._others[name]))


def orthogonalise(matrices: Tensor) -> Tensor:
    """[B, M, N] -> [B, M, N] with the same singular vectors and singular values near 1 (`product_dtype`)."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(product_dtype(x.device.type))
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def is_matrix(name: str) -> bool:
    """Whether Muon takes the parameter: the projections. Tables, routers, gates and vectors go to AdamW."""
    return name == "mtp.fc.weight" or (
        name.removesuffix(".weight").endswith("_proj") and not name.endswith("ba_proj.weight")
    )


def matrix_rows(name: str, rows: int, config: ModelConfig) -> list[int]:
    """How the rows of a fused projection split into the matrices it was fused from."""
    if "gate_up_proj" in name:
        return [rows // 2, rows // 2]
    if "qkvz_proj" in name:
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        values = config.linear_num_value_heads * config.linear_value_head_dim
        return [keys, keys, values, values]
    return [rows]


def is_decayed(name: str) -> bool:
    """Whether AdamW decays the parameter: not biases, decay rates and the one norm that rests at 1, not 0."""
    return not name.endswith((".bias", ".A_log", ".dt_bias", ".linear_attn.norm.weight"))
