"""Growth: a trained network made larger, so that at first it says exactly what it said.

`network` grows the checkpoint that a recipe with a `[grow]` table starts from. Invariant: what is new adds
nothing to the stream (its output projections are zero, and nothing else, so that it learns), and copies of a
head serve the queries that it served: hidden states stay equal within float error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qnext.model.config import LayerType, ModelConfig
from qnext.model.qwen3_next import Qwen3Next

OUTPUTS = ("o_proj.weight", "o_proj.bias", "down_proj.weight")  # what a layer adds to the stream
KEYS_AND_VALUES = re.compile(r"self_attn\.[kv]_proj\.(weight|bias)$")


@dataclass(frozen=True)
class Growth:
    """What a checkpoint gets more of.

    `attention_layers`: places, in the grown network, of new layers of full attention, whose feed-forward
    halves are dense and `intermediate_size` wide. `key_value_heads`: how many all attention layers then have,
    a multiple of those that they have (0: those).
    """

    attention_layers: tuple[int, ...] = ()
    intermediate_size: int = 512
    key_value_heads: int = 0

    def __post_init__(self) -> None:
        if not self.attention_layers and not self.key_value_heads:
            raise ValueError("give attention_layers or key_value_heads, or leave the table out")
        if len(set(self.attention_layers)) < len(self.attention_layers):
            raise ValueError(f"attention_layers is {list(self.attention_layers)}: name each place once")

    def config(self, old: ModelConfig) -> ModelConfig:
        """The shape after growth. Raises ValueError naming the setting that cannot be."""
        layers = old.num_hidden_layers + len(self.attention_layers)
        for place in self.attention_layers:
            if not 0 <= place < layers:
                raise ValueError(
                    f"attention_layers: {place} is no place among the grown network's {layers} layers"
                )
        heads = self.key_value_heads or old.num_key_value_heads
        if heads % old.num_key_value_heads or old.num_attention_heads % heads:
            raise ValueError(
                f"key_value_heads is {heads}: give a multiple of the {old.num_key_value_heads} there are, "
                f"of which the {old.num_attention_heads} query heads are a multiple"
            )
        dense = [i for i in range(old.num_hidden_layers) if not old.is_sparse(i)]
        if self.attention_layers and dense and self.intermediate_size != old.intermediate_size:
            raise ValueError(f"intermediate_size must stay {old.intermediate_size}: layer {dense[0]} has it")
        kinds: list[LayerType] = ["full_attention"] * layers
        moved = self._places(layers)
        for i, place in enumerate(moved):
            kinds[place] = old.layer_types[i]
        return replace(
            old,
            num_hidden_layers=layers,
            layer_types=tuple(kinds),
            num_key_value_heads=heads,
            decoder_sparse_step=1,
            mlp_only_layers=tuple(sorted([*self.attention_layers, *(moved[i] for i in dense)])),
            intermediate_size=self.intermediate_size if self.attention_layers else old.intermediate_size,
        )

    def _places(self, layers: int) -> list[int]:
        """Where each old layer stands in the grown network."""
        return [place for place in range(layers) if place not in self.attention_layers]

    @torch.no_grad()
    def apply(self, old: Qwen3Next) -> Qwen3Next:
        """A larger network with the same outputs. Raises ValueError naming the setting that cannot be."""
        grown = Qwen3Next(self.config(old.config), device=old.device, dtype=old.dtype)
        places = self._places(grown.config.num_hidden_layers)
        known = {_moved(name, places): weight for name, weight in old.named_parameters()}
        for name, weight in grown.named_parameters():
            if name in known:
                weight.copy_(self._repeated(name, known[name], grown.config))
            elif name.endswith(OUTPUTS):
                weight.zero_()
        return grown

    def _repeated(self, name: str, weight: Tensor, config: ModelConfig) -> Tensor:
        """Each key or value head so often that the queries of its group find it again."""
        if not KEYS_AND_VALUES.search(name):
            return weight
        heads = weight.unflatten(0, (-1, config.head_dim))
        repeated: Tensor = heads.repeat_interleave(config.num_key_value_heads // heads.shape[0], 0)
        return repeated.flatten(0, 1)


def _moved(name: str, places: list[int]) -> str:
    """A parameter's name where its layer has moved."""
    return re.sub(r"^layers\.(\d+)", lambda match: f"layers.{places[int(match[1])]}", name)
