"""The model card: README.md of an exported checkpoint, made from the recipe and the run's own numbers.

The trainer writes it at the end. Invariant: every figure in it comes from recipe, network or metrics.
"""

from pathlib import Path

from qnext.model.qwen3_next import Qwen3Next

from .recipe import Recipe

_NOTE = (
    "This is a small demonstration model. It shows that the whole system works, on any machine, from "
    "training to serving. It knows little, it makes mistakes with confidence, and it should not be relied on "
    "for facts, advice or decisions."
)


def write_card(
    path: Path, recipe: Recipe, model: Qwen3Next, metrics: dict[str, float], heldout: float | None
) -> None:
    """Write the card to the file `path`. `metrics` is the last logged line, `heldout` nats per token, or,
    with [rl], the share of right answers."""
    sections = [
        f"# {recipe.name}\n\n{recipe.description}".rstrip(),
        _NOTE,
        "## Architecture\n\n" + _architecture(model),
        "## Training\n\n" + _training(recipe, metrics, heldout),
    ]
    if recipe.licences:
        sections.append("## Data\n\n" + _data(recipe))
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def parameters(model: Qwen3Next) -> tuple[int, int]:
    """How many parameters there are, and how many of them one token uses (the MTP head left out)."""
    total = active = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if name.startswith("mtp."):
            continue
        share = model.config.num_experts_per_tok / model.config.num_experts if ".experts." in name else 1.0
        active += round(parameter.numel() * share)
    return total, active


def _architecture(model: Qwen3Next) -> str:
    config = model.config
    total, active = parameters(model)
    full = config.layer_types.count("full_attention")
    layers = range(config.num_hidden_layers)
    dense = ", ".join(str(layer) for layer in layers if config.num_experts and not config.is_sparse(layer))
    return "\n".join(
        [
            f"Qwen3-Next, {total / 1e6:.1f} M parameters, {active / 1e6:.1f} M of them used for a token.\n",
            f"- {config.num_hidden_layers} layers: {config.num_hidden_layers - full} Gated DeltaNet "
            f"({config.linear_num_key_heads} key and {config.linear_num_value_heads} value heads of "
            f"{config.linear_value_head_dim}), {full} gated attention ({config.num_attention_heads} heads of "
            f"{config.head_dim}, {config.num_key_value_heads} for keys and values)",
            f"- hidden size {config.hidden_size}, vocabulary {config.vocab_size}, "
            f"{'tied' if config.tie_word_embeddings else 'separate'} output matrix",
            f"- {config.num_experts} experts of {config.moe_intermediate_size}, "
            f"{config.num_experts_per_tok} chosen per token, and a shared one "
            f"of {config.shared_expert_intermediate_size}"
            + (f"; in layer {dense} a dense half of {config.intermediate_size}" if dense else ""),
            f"- {config.mtp_layers} multi-token-prediction layer(s) for drafting",
            f"- up to {config.max_position_embeddings} positions",
        ]
    )


def _devices(recipe: Recipe) -> str:
    """What a run has had for itself."""
    if recipe.device == "cpu":
        return f"{recipe.threads * recipe.mesh.size} cpu thread(s)"
    return f"{recipe.mesh.size} GPU(s)"


def _training(recipe: Recipe, metrics: dict[str, float], heldout: float | None) -> str:
    started = f"from the checkpoint `{recipe.init.name}`" if recipe.init else "from random weights"
    started += " (grown first)" if recipe.grow else ""
    lines = [
        f"- {recipe.schedule.steps} steps {started}, {metrics['tokens'] / 1e6:.2f} M tokens, "
        f"{metrics['seconds'] / 60:.0f} minutes on {_devices(recipe)}",
        f"- learning rates: Muon {recipe.optim.muon_lr:g} for matrices, AdamW {recipe.optim.adamw_lr:g} else",
    ]
    if recipe.learn:
        lines.append(f"- these weights alone learned: {', '.join(f'`{each}`' for each in recipe.learn)}")
    if recipe.blend:
        lines.append(f"- blended with {recipe.blend:.0%} of the weights that it started from")
    if recipe.rl:
        lines.append(
            f"- reinforcement by {recipe.rl.algorithm.upper()}, {recipe.rl.group} answers to a question; "
            f"last rate of right answers {metrics['pass_rate']:.1%}"
        )
        if heldout is not None:
            lines.append(f"- right answers to held-out questions {heldout:.1%}")
        return "\n".join(lines)
    lines.append(f"- last training loss {metrics['nll']:.3f} nats per token")
    if heldout is not None:
        lines.append(f"- held-out loss {heldout:.3f} nats per token")
    if "mtp_acceptance" in metrics:
        lines.append(
            f"- the drafted token was the model's own choice in {metrics['mtp_acceptance']:.0%} of cases"
        )
    return "\n".join(lines)


def _data(recipe: Recipe) -> str:
    rows = [f"| {entry.part} | {entry.licence} | {entry.origin} |" for entry in recipe.licences]
    return "\n".join(["| part | licence | origin |", "| --- | --- | --- |", *rows])
