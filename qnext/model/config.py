"""The shape of a Qwen3-Next network, as its `config.json` states it.

Read by every layer, by `weights` and by `engine`. Invariant: a `ModelConfig` that exists is legal; nothing
found at run time is written back. Both spellings of the format are read: flat `rope_theta` / `rope_scaling` /
`full_attention_interval` (the published files) and nested `rope_parameters` / `layer_types` (newer writers).
Absent fields take the values that `transformers` gives them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from .rope_scaling import Yarn

LayerType = Literal["linear_attention", "full_attention"]

# Fields of config.json that say nothing about the arithmetic of this network.
INERT_FIELDS = frozenset(
    "architectures model_type transformers_version torch_dtype _name_or_path use_cache attention_dropout "
    "hidden_act output_router_logits output_attentions output_hidden_states return_dict "
    "return_dict_in_generate chunk_size_feed_forward is_encoder_decoder is_decoder id2label label2id "
    "problem_type quantization_config use_sliding_window max_window_layers sliding_window auto_map "
    "_attn_implementation attn_implementation rope_parameters full_attention_interval use_return_dict "
    "torchscript use_bfloat16 add_cross_attention cross_attention_hidden_size tie_encoder_decoder "
    "finetuning_task prefix sep_token_id decoder_start_token_id task_specific_params tokenizer_class "
    "output_scores num_labels unsloth_version unsloth_fixed num_nextn_predict_layers "
    "mtp_num_hidden_layers _experts_implementation".split()
)
# What the inert fields may say: other values would change the arithmetic.
FIXED_VALUES: dict[str, tuple[Any, ...]] = {
    "model_type": ("qwen3_next",),
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
}
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of the network. `mtp_normed_input` is ours: whether the MTP head was trained on
    hidden states after the final norm (the published file does not say; readers differ). Raises ValueError,
    naming the field, on a value that cannot be built.
    """

    vocab_size: int = 151936
    hidden_size: int = 2048
    num_hidden_layers: int = 48
    layer_types: tuple[LayerType, ...] = ()
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 256
    attention_bias: bool = False
    partial_rotary_factor: float = 0.25
    rope_theta: float = 10000.0
    rope_scaling: Yarn | None = None
    max_position_embeddings: int = 32768
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_conv_kernel_dim: int = 4
    num_experts: int = 512
    num_experts_per_tok: int = 10
    norm_topk_prob: bool = True
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    intermediate_size: int = 5632
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    router_aux_loss_coef: float = 0.001
    tie_word_embeddings: bool = False
    dtype: str = "bfloat16"
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    mtp_layers: int = 1
    mtp_normed_input: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, tuple(value) if isinstance(value, list) else value)
        self._check_types()
        if not self.layer_types:
            object.__setattr__(self, "layer_types", layer_pattern(self.num_hidden_layers, 4))
        self._check_sizes()
        self._check_layers()

    def _check_types(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                _require(type(value) is int, f"{field.name} is {value!r}: give a whole number")
            elif field.type == "float":
                finite = type(value) in (int, float) and math.isfinite(value)
                _require(finite, f"{field.name} is {value!r}: give a number")
            elif field.type == "bool":
                _require(type(value) is bool, f"{field.name} is {value!r}: give true or false")
            elif field.type.startswith("tuple"):
                _require(type(value) is tuple, f"{field.name} is {value!r}: give a list")
            elif field.name.endswith("_token_id"):
                many = type(value) is tuple and field.name == "eos_token_id"
                legal = value is None or all(type(i) is int and i >= 0 for i in (value if many else (value,)))
                _require(legal, f"{field.name} is {value!r}: give a token id")

    def _check_sizes(self) -> None:
        may_be_zero = {"num_experts", "mtp_layers"}
        for field in fields(self):
            if field.type == "int" and field.name not in may_be_zero:
                value = getattr(self, field.name)
                _require(value >= 1, f"{field.name} is {value}: give 1 or more")
        for many, few in (
            ("num_attention_heads", "num_key_value_heads"),
            ("linear_num_value_heads", "linear_num_key_heads"),
        ):
            a, b = getattr(self, many), getattr(self, few)
            _require(a % b == 0, f"{many} is {a}, not a multiple of {few} {b}")
        _require(self.num_experts >= 0, f"num_experts is {self.num_experts}: give 0 (dense) or more")
        _require(
            self.num_experts == 0 or self.num_experts_per_tok <= self.num_experts,
            f"num_experts_per_tok is {self.num_experts_per_tok}, more than num_experts {self.num_experts}",
        )
        _require(
            0 < self.partial_rotary_factor <= 1,
            f"partial_rotary_factor is {self.partial_rotary_factor}: (0, 1]",
        )
        _require(
            self.rotary_dim <= self.head_dim,
            f"head_dim {self.head_dim} is odd and wholly rotary: make it even",
        )
        _require(self.rope_theta > 1, f"rope_theta is {self.rope_theta}: give more than 1")
        _require(self.rms_norm_eps > 0, f"rms_norm_eps is {self.rms_norm_eps}: give more than 0")
        for name in ("initializer_range", "router_aux_loss_coef"):
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: give 0 or more")
        _require(self.dtype in DTYPES, f"dtype is {self.dtype!r}: give one of {', '.join(DTYPES)}")
        _require(self.mtp_layers in (0, 1), f"mtp_layers is {self.mtp_layers}: 0 or 1 is supported")

    def _check_layers(self) -> None:
        count = self.num_hidden_layers
        _require(
            len(self.layer_types) == count,
            f"layer_types names {len(self.layer_types)} layers, num_hidden_layers is {count}",
        )
        for index, kind in enumerate(self.layer_types):
            _require(
                kind in ("linear_attention", "full_attention"),
                f"layer_types[{index}] is {kind!r}: give 'linear_attention' or 'full_attention'",
            )
        for index in self.mlp_only_layers:
            _require(
                type(index) is int and 0 <= index < count,
                f"mlp_only_layers names layer {index!r} of {count} layers",
            )

    @property
    def rotary_dim(self) -> int:
        """Leading dimensions of a head that are rotated; an odd share is rounded up."""
        return 2 * ((int(self.head_dim * self.partial_rotary_factor) + 1) // 2)

    @property
    def linear_key_dim(self) -> int:
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def linear_value_dim(self) -> int:
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the short convolution: queries, keys and values of a linear-attention layer."""
        return 2 * self.linear_key_dim + self.linear_value_dim

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer's feed-forward half is a mixture of experts (else a dense SwiGLU)."""
        return (
            layer not in self.mlp_only_layers
            and self.num_experts > 0
            and (layer + 1) % self.decoder_sparse_step == 0
        )

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, mtp_layers: int = 1) -> ModelConfig:
        """Read a parsed `config.json`. `mtp_layers` is not in the file: the tensors decide it.

        Raises ValueError naming a field that is unknown (unless null or false) or illegal.
        """
        for name, allowed in FIXED_VALUES.items():
            if name in table and table[name] not in allowed:
                raise ValueError(f"config.json: {name} is {table[name]!r}, Qwen3-Next has {allowed[0]!r}")
        known = {field.name for field in fields(cls)} - {"mtp_layers"}
        values: dict[str, Any] = {}
        for name, value in table.items():
            if name in known:
                if value is not None:
                    values[name] = value
            elif name not in INERT_FIELDS and value not in (None, False):
                near = difflib.get_close_matches(name, sorted(known), 1)
                raise ValueError(
                    f"config.json: unknown field {name} = {value!r}"
                    + (f"; is {near[0]} meant?" if near else "")
                )
        try:
            values.update(_read_rope(table))
            values["dtype"] = _read_dtype(table)
            if "layer_types" not in values:
                layers, interval = (
                    values.get("num_hidden_layers", 48),
                    table.get("full_attention_interval", 4),
                )
                _require(
                    type(layers) is int and layers >= 1, f"num_hidden_layers is {layers!r}: give 1 or more"
                )
                _require(
                    type(interval) is int and interval >= 1,
                    f"full_attention_interval is {interval!r}: give 1 or more",
                )
                values["layer_types"] = layer_pattern(layers, interval)
            return cls(**values, mtp_layers=mtp_layers)
        except ValueError as error:
            raise ValueError(f"config.json: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` of this network, in the published (flat) spelling that every reader knows."""
        table = asdict(self)
        del table["mtp_layers"]
        if self.mtp_normed_input:  # then the file is as the published ones are
            del table["mtp_normed_input"]
        table["layer_types"] = list(self.layer_types)
        table["mlp_only_layers"] = list(self.mlp_only_layers)
        if isinstance(self.eos_token_id, tuple):
            table["eos_token_id"] = list(self.eos_token_id)
        table["rope_scaling"] = self.rope_scaling.to_dict() if self.rope_scaling else None
        table["torch_dtype"] = table.pop("dtype")
        fixed = {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "hidden_act": "silu"}
        return {**fixed, **table, "use_cache": True, "attention_dropout": 0.0}


def layer_pattern(layers: int, interval: int) -> tuple[LayerType, ...]:
    """Every `interval`-th layer has full attention, the others linear attention."""
    return tuple("linear_attention" if (i + 1) % interval else "full_attention" for i in range(layers))


def _read_rope(table: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings from either spelling; the nested one decides where both are given."""
    nested = table.get("rope_parameters") or {}
    scaling = table.get("rope_scaling")
    for name, value in (("rope_parameters", nested), ("rope_scaling", scaling or {})):
        _require(isinstance(value, Mapping), f"{name} is {value!r}: give a table")
    given, plain = nested or scaling or {}, ("rope_theta", "partial_rotary_factor")
    found: dict[str, Any] = {name: given[name] for name in plain if name in given}
    extension = {name: value for name, value in given.items() if name not in plain}
    original = table.get("max_position_embeddings", 32768)
    found["rope_scaling"] = Yarn.from_dict(extension, default_original=original)
    return found


def _read_dtype(table: Mapping[str, Any]) -> str:
    name = table.get("dtype") or table.get("torch_dtype") or "bfloat16"
    return str(name).removeprefix("torch.")


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)
