"""The optimiser: what goes where, against PyTorch's AdamW and a matrix-by-matrix Muon."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from qnext.model.qwen3_next import Qwen3Next
from qnext.train.optim import Optimizer, OptimSettings, is_decayed, is_matrix, matrix_rows, orthogonalise

from .toy import toy_model


def fill_gradients(model: Qwen3Next, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 0.01


@pytest.mark.parametrize("shape", [(3, 12, 40), (2, 40, 12), (1, 16, 16)])
def test_orthogonalise_keeps_directions_and_evens_out_sizes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-3, 1.0, 1e3])[: shape[0], None, None]
    result = orthogonalise(matrices).float()
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ result @ right.mT  # diagonal when the singular vectors are the same
    diagonal = inner.diagonal(dim1=1, dim2=2)
    assert ((diagonal > 0.5) & (diagonal < 1.3)).all()
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 0.05


def test_every_parameter_has_its_optimiser() -> None:
    model = toy_model(tie_word_embeddings=False, mlp_only_layers=[1], attention_bias=True)
    others = {name for name, _ in model.named_parameters() if not is_matrix(name)}
    endings = ("norm.weight", "norm_embedding.weight", "norm_hidden.weight", ".bias", "A_log", "dt_bias",
               "conv1d.weight", "ba_proj.weight", "mlp.gate.weight", "shared_expert_gate.weight",
               "embed_tokens.weight", "lm_head.weight")  # fmt: skip
    assert all(name.endswith(endings) for name in others)
    matrices = {name for name, _ in model.named_parameters()} - others
    assert all(model.get_parameter(name).ndim >= 2 for name in matrices)
    assert {name.split(".")[-2] for name in matrices if name.endswith(".weight")} == {
        "qkvz_proj", "out_proj", "q_proj", "gate_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj",
        "down_proj", "fc",
    }  # fmt: skip
    assert {name for name in others if not is_decayed(name)} == {
        name for name in others if name.endswith((".bias", "A_log", "dt_bias", "linear_attn.norm.weight"))
    }


def test_fused_projections_split_into_their_parts() -> None:
    config = toy_model().config  # keys 1 x 8, values 2 x 8
    assert matrix_rows("layers.0.linear_attn.qkvz_proj.weight", 48, config) == [8, 8, 16, 16]
    assert matrix_rows("layers.0.mlp.experts.gate_up_proj", 32, config) == [16, 16]
    assert matrix_rows("layers.1.self_attn.q_proj.weight", 16, config) == [16]


def slow_muon(
    weight: Tensor, momentum: Tensor, gradient: Tensor, rows: list[int], settings: OptimSettings, lr: float
) -> None:
    """One step for one parameter, one logical matrix after the other, in place."""
    momentum.mul_(settings.momentum).add_(gradient, alpha=1 - settings.momentum)
    update = (1 - settings.momentum) * gradient + settings.momentum * momentum
    first = 0
    for count in rows:
        part = slice(first, first + count)
        matrices = zip(weight.view(-1, *weight.shape[-2:]), update.view(-1, *weight.shape[-2:]), strict=True)
        for target, direction in matrices:
            scale = max(1.0, count / weight.shape[-1]) ** 0.5
            change = orthogonalise(direction[None, part])[0].float()
            target[part] = target[part] * (1 - lr * settings.weight_decay) - lr * scale * change
        first += count


def test_steps_equal_their_twins() -> None:
    settings = OptimSettings(muon_lr=0.05, adamw_lr=0.01, weight_decay=0.3, clip=1e9)
    model = toy_model()
    twin = copy.deepcopy(model)
    optimizer = Optimizer(model, model.config, settings)
    plain = {name: p for name, p in twin.named_parameters() if not is_matrix(name)}
    groups = [
        {"params": [p for name, p in plain.items() if is_decayed(name)], "weight_decay": 0.3},
        {"params": [p for name, p in plain.items() if not is_decayed(name)], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01 * 0.5, betas=(0.9, 0.95), eps=1e-8)
    momenta = {name: torch.zeros_like(p) for name, p in twin.named_parameters() if is_matrix(name)}
    for seed in range(3):
        fill_gradients(model, seed)
        fill_gradients(twin, seed)
        optimizer.step(0.5)
        adamw.step()
        with torch.no_grad():
            for name, momentum in momenta.items():
                weight = twin.get_parameter(name)
                assert weight.grad is not None
                rows = matrix_rows(name, weight.shape[-2], twin.config)
                slow_muon(weight, momentum, weight.grad, rows, settings, 0.05 * 0.5)
    for name, parameter in model.named_parameters():
        # a batched product may round its bf16 sums in another order than a single one
        tolerance = {"rtol": 1e-3, "atol": 2e-3} if is_matrix(name) else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(parameter, twin.get_parameter(name), **tolerance, msg=name)
        assert parameter.grad is None


def test_clip_scales_the_whole_gradient() -> None:
    model = toy_model()
    fill_gradients(model, 0)
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    clipped = Optimizer(model, model.config, OptimSettings(clip=float(expected) / 10))
    norm = clipped.step(1.0)
    assert norm == pytest.approx(float(expected), rel=1e-5)
    moments = clipped.state_dict()["moments"]["embed_tokens.weight"][0]
    fill_gradients(model, 0)
    gradient = model.embed_tokens.weight.grad
    torch.testing.assert_close(moments, gradient * 0.1 * 0.1, rtol=1e-3, atol=1e-9)


def test_parameters_without_gradient_stay() -> None:
    model = toy_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, model.config, OptimSettings())
    model.embed_tokens.weight.grad = torch.ones_like(model.embed_tokens.weight)
    optimizer.step(1.0)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"embed_tokens.weight"}


def test_state_goes_on_bit_for_bit() -> None:
    models = [toy_model(), toy_model()]
    optimizers = [Optimizer(model, model.config, OptimSettings()) for model in models]
    for seed in range(2):
        fill_gradients(models[0], seed)
        optimizers[0].step(1.0)
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip(models, optimizers, strict=True):
        fill_gradients(model, 2)
        optimizer.step(1.0)
    for name, parameter in models[0].named_parameters():
        assert torch.equal(parameter, models[1].get_parameter(name)), name


def test_state_of_another_network_is_refused() -> None:
    small, large = toy_model(mtp_layers=0), toy_model()
    state = Optimizer(small, small.config, OptimSettings()).state_dict()
    with pytest.raises(ValueError, match=r"does not fit the model: mtp\.fc"):
        Optimizer(large, large.config, OptimSettings()).load_state_dict(state)


@pytest.mark.parametrize(
    "wrong",
    [{"muon_lr": 0.0}, {"adamw_lr": -1.0}, {"clip": 0.0}, {"betas": (0.9,)}, {"betas": (0.9, 1.0)},
     {"momentum": 1.0}, {"weight_decay": -0.1}, {"muon_lr": float("nan")}],
)  # fmt: skip
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimSettings(**wrong)  # type: ignore[arg-type]
