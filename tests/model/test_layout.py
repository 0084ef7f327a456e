"""The layout covers every row of every parameter of the network, exactly once."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.model.config import ModelConfig
from qnext.model.layout import layout
from qnext.model.qwen3_next import Qwen3Next

from .checkpoints import tiny_config

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_key_value_heads",
    "linear_num_key_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "num_experts",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "intermediate_size",
    "decoder_sparse_step",
    "full_attention_interval",
)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    layers = draw(st.integers(1, 4))
    sizes = draw(st.fixed_dictionaries({name: st.integers(1, 4) for name in SIZES}))
    return ModelConfig.from_dict(
        tiny_config(
            **sizes,
            num_hidden_layers=layers,
            head_dim=2 * draw(st.integers(1, 4)),
            partial_rotary_factor=1.0,
            num_attention_heads=sizes["num_key_value_heads"] * draw(st.integers(1, 4)),
            linear_num_value_heads=sizes["linear_num_key_heads"] * draw(st.integers(1, 4)),
            num_experts_per_tok=1,
            mlp_only_layers=draw(st.lists(st.integers(0, layers - 1), max_size=2)),
            attention_bias=draw(st.booleans()),
            tie_word_embeddings=draw(st.booleans()),
        ),
        mtp_layers=draw(st.integers(0, 1)),
    )


@given(configs())
@settings(max_examples=30, deadline=None)
def test_every_row_once(config: ModelConfig) -> None:
    entries = layout(config)
    assert len({entry.name for entry in entries}) == len(entries)
    held: Counter[tuple[str, int]] = Counter()
    widths: dict[str, set[int]] = {}
    for entry in entries:
        width = entry.shape[-1] if len(entry.shape) > 1 else 1
        for run in entry.runs():
            held.update((run.parameter, run.first + row) for row in range(run.rows))
            widths.setdefault(run.parameter, set()).add(width)
    expected = {
        name: parameter.unsqueeze(-1) if parameter.ndim == 1 else parameter
        for name, parameter in Qwen3Next(config, device="meta").named_parameters()
    }
    assert widths == {name: {parameter.shape[-1]} for name, parameter in expected.items()}
    rows = {name: parameter.numel() // parameter.shape[-1] for name, parameter in expected.items()}
    assert held == Counter((name, row) for name, count in rows.items() for row in range(count))


def test_shapes_are_written_as_fields_of_the_config() -> None:
    entries = {entry.name: entry for entry in layout(ModelConfig.from_dict(tiny_config()))}
    convolution = entries["model.layers.0.linear_attn.conv1d.weight"]
    assert convolution.shape == (2 * 2 * 4 + 4 * 6, 1, 4)
    assert convolution.sizes[0] == (
        "2 * linear_num_key_heads * linear_key_head_dim + linear_num_value_heads * linear_value_head_dim"
    )
