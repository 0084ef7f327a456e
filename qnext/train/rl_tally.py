"""The tally of reinforcement: sums over the steps since the last report, and the metrics that they make.

Kept by `reinforcement`. Invariant: every mean is over what it names, however the steps cut it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .metrics import Metrics
from .objective import Surrogate
from .questions import Verdict
from .rollout import Rollout


@dataclass
class _Mean:
    """A running mean, and the largest value."""

    total: float = 0.0
    count: int = 0
    most: float = 0.0

    def add(self, values: Tensor) -> None:
        values = values.detach().float()
        self.total += float(values.sum())
        self.count += values.numel()
        self.most = max(self.most, float(values.max()))

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)


@dataclass
class RLTally:
    """Filled by the three parts of a step: `judged`, `weighed` for each row, `learned`."""

    answers: int = 0
    right: int = 0
    formed: int = 0
    answer_tokens: int = 0
    groups: int = 0
    flat: int = 0
    learned_tokens: int = 0
    drawing: float = 0.0  # seconds
    learning: float = 0.0  # seconds
    rewards: _Mean = field(default_factory=_Mean)
    ratio: _Mean = field(default_factory=_Mean)
    off: _Mean = field(default_factory=_Mean)  # how far ratios are from 1
    clipped: _Mean = field(default_factory=_Mean)
    entropy: _Mean = field(default_factory=_Mean)
    gap: _Mean = field(default_factory=_Mean)
    kl: _Mean = field(default_factory=_Mean)

    def judged(
        self,
        rollouts: Sequence[Rollout],
        verdicts: Sequence[Verdict],
        rewards_PG: Tensor,
        spread_P: Tensor,
        seconds: float,
    ) -> None:
        """Answers were drawn and judged; a group without `spread` is not learned from."""
        self.answers += len(rollouts)
        self.answer_tokens += sum(len(each.answer) for each in rollouts)
        self.right += sum(each.right for each in verdicts)
        self.formed += sum(each.formed for each in verdicts)
        self.groups += len(spread_P)
        self.flat += int((~spread_P).sum())
        self.rewards.add(rewards_PG)
        self.drawing += seconds

    def weighed(self, found: Surrogate, entropy_R: Tensor, gap_R: Tensor | None, kl_N: Tensor | None) -> None:
        """A row was compared with how it was drawn; `gap`: before any update, how far the trainer's
        log-probabilities are from the engine's."""
        self.ratio.add(found.ratio)
        self.off.add((found.ratio - 1).abs())
        self.clipped.add(found.clipped)
        self.entropy.add(entropy_R)
        if gap_R is not None:
            self.gap.add(gap_R)
        if kl_N is not None:
            self.kl.add(kl_N)

    def learned(self, tokens: int, seconds: float) -> None:
        """So many tokens, of prompts and answers, were learned from."""
        self.learned_tokens += tokens
        self.learning += seconds

    def means(self) -> Metrics:
        """Shares are of answers, of groups (`without_spread`) and of ratios (`clip_share`); entropy, gap and
        kl in nats; `tokens_per_second` is of answers while they are drawn. What was not measured is left
        out."""
        metrics = {
            "pass_rate": self.right / max(self.answers, 1),
            "formed": self.formed / max(self.answers, 1),
            "reward": self.rewards.mean,
            "length": self.answer_tokens / max(self.answers, 1),
            "without_spread": self.flat / max(self.groups, 1),
            "tokens_per_second": self.answer_tokens / max(self.drawing, 1e-9),
        }
        if self.ratio.count:
            metrics |= {
                "ratio": self.ratio.mean,
                "ratio_off": self.off.mean,
                "ratio_most_off": self.off.most,
                "clip_share": self.clipped.mean,
                "entropy": self.entropy.mean,
                "engine_gap": self.gap.mean,
                "engine_gap_most": self.gap.most,
                "learned_tokens_per_second": self.learned_tokens / max(self.learning, 1e-9),
            }
        if self.kl.count:
            metrics["kl"] = self.kl.mean
        return metrics
