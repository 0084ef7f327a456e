"""Calibration: what it measures is what the matrices are given, and rounding by it costs less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qnext.kernels.packed import Packed, dequantise
from qnext.model.calibration import FLOOR, Calibration
from qnext.model.config import ModelConfig
from qnext.model.conversion import convert, pack_checkpoint
from qnext.model.packed_file import open_packed
from qnext.model.packed_layout import sections
from qnext.model.quant import Parts
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.scheme import Scheme
from qnext.models import locate

from .test_packed_file import assert_same
from .tiny import tiny_model, token_ids

TEXTS = [token_ids(count, seed=count).tolist() for count in (70, 30, 1)]
SCHEME = Scheme("int4", 64)


def measured(model: Qwen3Next, texts: list[list[int]]) -> dict[str, Tensor]:
    parameters = {name: weight.detach() for name, weight in model.named_parameters()}
    calibration, found = Calibration(model.config, texts, torch.float32), {}
    for _, parts in sections(model.config):
        names = {source for part in parts for source in part.sources}
        found |= calibration.importance(parts, {name: parameters[name] for name in names})
    return found


def given(model: Qwen3Next, module: str, ids: list[int]) -> Tensor:
    """Mean squares of what a linear module is given when the whole model reads one text, as importance."""
    seen: list[Tensor] = []
    hook = model.get_submodule(module).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    hidden = model(torch.tensor(ids))
    model.mtp_hidden(hidden, torch.tensor(ids).roll(-1))
    hook.remove()
    means = seen[0].square().mean(0)
    return means / means.mean() + FLOOR


def test_importance_is_what_the_matrices_are_given() -> None:
    model, ids = tiny_model(mlp_only_layers=(1,)), TEXTS[0]
    found = measured(model, [ids])
    for module, part in (
        ("layers.0.linear_attn.qkvz_proj", "layers.0.linear_attn.qkvz_proj"),
        ("layers.2.linear_attn.out_proj", "layers.2.linear_attn.out_proj"),
        ("layers.3.self_attn.v_proj", "layers.3.self_attn.qgkv_proj"),
        ("layers.3.mlp.gate", "layers.3.mlp.router"),
        ("mtp.fc", "mtp.fc"),
        ("mtp.layers.0.self_attn.o_proj", "mtp.layers.0.self_attn.o_proj"),
    ):
        torch.testing.assert_close(found[part][0], given(model, module, ids), rtol=1e-3, atol=1e-5)
    assert found["layers.3.mlp.experts.gate_up_proj"].shape == (8, 48)
    assert found["layers.3.mlp.experts.down_proj"].shape == (8, 20)
    assert found["layers.1.mlp.gate_up_proj"].shape == (1, 48)
    packed = {part.name for _, parts in sections(model.config) for part in parts if part.packed}
    assert found.keys() == packed
    assert all(each.isfinite().all() and (each > 0).all() for each in found.values())


def test_an_expert_nobody_chose_is_judged_by_the_usual_input() -> None:
    model = tiny_model()
    model.layers[0].mlp.gate.weight[5] = -100 * model.layers[0].mlp.gate.weight[:5].mean(0)
    found = measured(model, [[3, 4]])
    experts = found["layers.0.mlp.experts.down_proj"]
    assert experts.isfinite().all()
    unseen = (experts - experts.mean(-1, keepdim=True)).abs().amax(-1) < 1e-5
    assert unseen.any() and not unseen.all()


def test_texts_are_checked() -> None:
    config = ModelConfig(vocab_size=10, num_hidden_layers=4)
    for texts in ([], [[]], [[3]], [[3, 10]], [[3, -1]]):
        with pytest.raises(ValueError, match="calibration text is"):
            Calibration(config, texts, torch.float32)


def logits(config: ModelConfig, packed: Parts, ids: Tensor) -> Tensor:
    model = Qwen3Next.from_packed(config, packed)
    return model.logits(model(ids))


def test_calibrated_costs_less_than_nearest(tmp_path: Path) -> None:
    source = locate("tiny-instruct")
    model = Qwen3Next.from_pretrained(source, dtype=torch.float32)
    words = torch.randint(0, 4000, (8, 96), generator=torch.Generator().manual_seed(1))
    texts, unseen = words[:6].tolist(), words[6:].flatten()
    config, nearest = pack_checkpoint(source, SCHEME)
    _, calibrated = pack_checkpoint(source, SCHEME, texts=texts)
    weights, importance = dict(model.named_parameters()), measured(model, texts)
    for name, parameter in (
        ("layers.1.linear_attn.qkvz_proj", "layers.1.linear_attn.qkvz_proj.weight"),
        ("layers.2.mlp.experts.down_proj", "layers.2.mlp.experts.down_proj"),
        ("lm_head", "embed_tokens.weight"),
    ):
        costs = []
        for each in (nearest[name], calibrated[name]):
            assert isinstance(each, Packed)
            misses = (dequantise(each) - weights[parameter]).square()
            costs.append(
                float((misses * (importance[name] if misses.ndim == 2 else importance[name][:, None])).sum())
            )
        assert costs[1] < 0.95 * costs[0], name
    exact = model.logits(model(unseen))
    errors = [float((logits(config, each, unseen) - exact).norm()) for each in (nearest, calibrated)]
    assert errors[1] < errors[0]
    convert(source, tmp_path / "x", SCHEME, texts=texts)
    assert_same(open_packed(tmp_path / "x").parts, calibrated)
