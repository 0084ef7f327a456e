"""The reinforcement stage: answers drawn from the model by the engine, judged by the generators' checkers,
and made more or less likely.

The trainer makes it for a recipe with `[rl]`. Invariant: a step depends on the weights, the optimiser, the
step's number and the place in the questions alone. Legend: P questions, G answers of a group.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from qnext.model.qwen3_next import Qwen3Next

from .conversations import load_chat
from .metrics import Metrics
from .mixture import DataSpec
from .network import autocast
from .objective import Surrogate, advantages, divergence, grpo, gspo
from .optim import Optimizer
from .policy import answer_log_probs
from .questions import Question, Questions, Verdict
from .recipe import Recipe, RLSettings
from .rl_tally import RLTally
from .rollout import Ask, OpenActor, Rollout, Row, in_rows

OBJECTIVES = {"gspo": gspo, "grpo": grpo}


class Reinforcement:
    """See `Stage`. Raises ValueError where nobody answers, or there is nothing to check."""

    heldout_metric = "heldout_pass_rate"

    def __init__(
        self,
        recipe: Recipe,
        settings: RLSettings,
        model: Qwen3Next,
        optimizer: Optimizer,
        open_actor: OpenActor | None,
    ) -> None:
        if open_actor is None:
            raise ValueError("a recipe with [rl] needs an actor, such as qnext.actor.EngineActor.open")
        self.recipe, self.settings, self.model, self.optimizer = recipe, settings, model, optimizer
        self.chat = load_chat(recipe.tokenizer, recipe.data.template)
        self.questions = self._questions(recipe.data)
        self.heldout = self._questions(recipe.heldout.data) if recipe.heldout else None
        self.actor = open_actor(recipe)
        self.start: Qwen3Next | None = None
        if settings.kl and recipe.init:
            self.start = Qwen3Next.from_pretrained(recipe.init, dtype=torch.float32, device=recipe.device)
        self.tokens = 0
        self._tally = RLTally()

    def step(self, number: int) -> float:
        """Draw, judge and learn once."""
        begun, group = time.monotonic(), self.settings.group
        questions = [self.questions.next() for _ in range(self.settings.prompts)]
        rollouts, verdicts = self._answers(questions, group)
        rewards = torch.tensor([each.reward(self.settings.format) for each in verdicts]).view(-1, group)
        gains = advantages(rewards, scaled=self.settings.scale_advantages)
        spread = (rewards != rewards[:, :1]).any(1)
        self._tally.judged(rollouts, verdicts, rewards, spread, time.monotonic() - begun)
        begun = time.monotonic()
        kept = spread.repeat_interleave(group).nonzero().flatten()
        chosen = [rollouts[i] for i in kept.tolist()]
        norm = self._learn(number, chosen, gains.flatten()[kept])
        self._tally.learned(sum(each.length for each in chosen), time.monotonic() - begun)
        self.tokens += sum(each.length for each in chosen)
        return norm

    def report(self) -> Metrics:
        """How answers and learning went since the last report."""
        tally, self._tally = self._tally, RLTally()
        return tally.means()

    def evaluate(self) -> float:
        """The share of right answers to held-out questions, drawn as in training, one to each."""
        assert self.heldout is not None and self.recipe.heldout is not None
        self.heldout.count = 0
        count = self.recipe.heldout.batches * self.settings.prompts
        _, verdicts = self._answers([self.heldout.next() for _ in range(count)], 1)
        return sum(each.right for each in verdicts) / count

    def state_dict(self) -> dict[str, Any]:
        return {"questions": self.questions.count, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.questions.count, self.tokens = state["questions"], state["tokens"]

    def close(self) -> None:
        self.actor.close()

    def _questions(self, spec: DataSpec) -> Questions:
        return Questions(spec, self.chat, str(self.recipe.seed), spec.max_length - self.settings.max_tokens)

    def _answers(self, questions: Sequence[Question], group: int) -> tuple[list[Rollout], list[Verdict]]:
        """`group` answers to each question by the weights as they are now, and what they are worth."""
        wish, eos = self.settings, self.chat.eos_token_ids
        asks = [
            Ask(
                question.prompt.ids,
                eos,
                Random(f"{self.recipe.seed}/{question.number}/{member}").getrandbits(63),
                wish.temperature,
                wish.max_tokens,
                wish.replay,
            )
            for question in questions
            for member in range(group)
        ]
        self.actor.refresh(self.model)
        rollouts = self.actor.answer(asks)
        asked = [question for question in questions for _ in range(group)]
        return rollouts, [self.questions.judge(*pair) for pair in zip(asked, rollouts, strict=True)]

    def _learn(self, number: int, rollouts: Sequence[Rollout], gains_N: Tensor) -> float:
        """The step's updates, a share of the answers each; the norm of the last gradient, 0 where there is
        nothing to learn."""
        norm = 0.0
        shares = torch.arange(len(rollouts)).tensor_split(self.settings.updates)
        for first, share in enumerate(each for each in shares if len(each)):
            mine = [rollouts[i] for i in share.tolist()]
            for places in in_rows(mine, self.recipe.data.tokens_per_batch):
                part = self._loss([mine[i] for i in places], gains_N[share[places]], fresh=not first)
                (part / len(mine)).backward()
            norm = self.optimizer.step(self.recipe.schedule.lr_scale(number))
            if not math.isfinite(norm):
                break
        return norm

    def _loss(self, rollouts: Sequence[Rollout], gains_N: Tensor, *, fresh: bool) -> Tensor:
        """What is to be made small, summed over the answers of a row. `fresh`: the weights are still those
        that drew them."""
        device, wish = self.recipe.device, self.settings
        row = Row.of(rollouts, device)
        old = torch.cat([each.log_probs for each in rollouts]).to(device)
        with autocast(self.recipe):
            new, entropy = answer_log_probs(self.model, row, wish.temperature)
        found: Surrogate = OBJECTIVES[wish.algorithm](new, old, row.answers, gains_N.to(device), *wish.clip)
        loss, kl = -found.gain.sum(), None
        if self.start is not None:
            with torch.no_grad(), autocast(self.recipe):
                start, _ = answer_log_probs(self.start, replace(row, experts=None), wish.temperature)
            kl = divergence(new, start, row.answers)
            loss = loss + wish.kl * kl.sum()
        gap = (new.detach() - old).abs() if fresh else None
        self._tally.weighed(found, entropy, gap, None if kl is None else kl.detach())
        return loss
