"""Steps: plan, one forward, choose, take in, keep, guess; what the engine's thread does over and over.

Called by `engine`, in inference mode. Invariants: only tokens that were accepted, and states of sound ones,
are ever kept; a step that fails takes down no more than the request that made it fail.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from math import isfinite

from qnext.model.network import Network

from .ahead import rows_after
from .cache import PrefixCache
from .config import SPARE_SLOTS, EngineConfig
from .guesser import Guesser
from .head import Head
from .keeper import Keeper
from .pages import Pages
from .plan import Fetch, Move, Piece, Plan
from .pool import Pool
from .prompt_reports import report_prompt, with_reports
from .reports import logprobs
from .request import FinishReason, Output, TokenLogprob
from .runner import Runner, Step
from .sampler import Row, sample
from .scheduler import Scheduler
from .second_tier import SecondTier
from .sequence import Sequence
from .stats import Counters, Stats
from .stream import Stream

log = logging.getLogger(__name__)

Told = list[tuple[Stream, Output]]
Choice = tuple[int, TokenLogprob | None, bool]  # a token, its log-probability, whether scores were sound
ATTEMPTS = 3  # failed steps that a request may have been part of


class Steps:
    """The scheduler with its pages and slots, the runner with its memory, and what goes between them."""

    def __init__(self, model: Network, config: EngineConfig, checkpoint: str) -> None:
        mtp = config.drafts > 0 and model.mtp is not None
        sizes = model.cache_dtype.itemsize, model.dtype.itemsize
        count = config.page_count(model.config, sizes[0], mtp=mtp, kept=sizes[1])
        self.config, self.pages = config, Pages(count)
        self.slots = Pool(config.max_sequences)
        self.spare = Pool(SPARE_SLOTS if config.keeps_prefixes else 0, config.max_sequences)
        alone = config.batch_invariant
        self.runner = Runner(model, count, config.page_size, config.slots, config.drafts, alone=alone)
        self.cache: PrefixCache | None = None
        self.tier: SecondTier | None = None
        if config.keeps_prefixes:
            state_pages = -(-self.runner.state_bytes // max(1, self.runner.memory.shape[1]))
            self.cache = PrefixCache(self.pages, config.page_size, state_pages)
            self.tier = SecondTier.of(config, self.runner, self.cache, checkpoint)
        lookahead = config.drafts if mtp else 0
        self.scheduler = Scheduler(self.pages, self.slots, self.spare, self.cache, config, lookahead)
        self.head = Head(self.runner, self.pages.filled) if mtp else None
        self._keeper = Keeper(
            self.runner, self.head, self.cache, self.tier, self.spare, config.checkpoint_stride
        )
        self.guesser = Guesser(self.runner, self.head, self._keeper, config)
        self._count = Counters()
        self.rehearsing = False  # nothing is counted

    def step(self) -> Told:
        """One step -> what each reader is told."""
        plan = self.scheduler.plan()
        told: Told = []
        if plan.pieces:
            begun = time.perf_counter()
            try:
                self._carry_out(plan, told)
            except Exception as error:
                self._recover(plan, told, error)
            if not self.rehearsing:
                self._count.steps += 1
                self._count.step_seconds += time.perf_counter() - begun
        return told

    def end(
        self, sequence: Sequence, reason: FinishReason, error: str | None = None, *, timed_out: bool = False
    ) -> tuple[Stream, Output]:
        """End a request from outside a step; what it has computed is kept."""
        if reason == "abort" and sequence.slot is not None:
            try:
                self._keeper.keep_whole(sequence)
            except Exception:
                log.exception("what an aborted request has computed could not be kept")
        return self._finish(sequence, Output(finish_reason=reason, error=error, timed_out=timed_out))

    def stats(self) -> Stats:
        """See `Stats`."""
        used = self.pages.size - self.pages.free - self.pages.idle
        return Stats(
            replace(self._count),
            len(self.scheduler.running),
            len(self.scheduler.waiting),
            self.pages.size,
            used,
            self.pages.kept,
            self.slots.size,
            self.slots.size - self.slots.free,
            self.cache.evictions if self.cache else 0,
        )

    def close(self) -> None:
        if self.tier is not None:
            self.tier.close()

    def _carry_out(self, plan: Plan, told: Told) -> None:
        lost = {move.sequence for move in plan.moves if not self._move(move) and isinstance(move, Fetch)}
        pieces = [piece for piece in plan.pieces if piece.sequence not in lost]
        self.spare.give([slot for each in plan.pieces if each.sequence in lost for _, slot in each.saves])
        if not pieces:
            return
        self.guesser.begin(pieces)
        step = self.runner.run(pieces)
        chosen = self._choose(pieces, step)
        ended: dict[Stream, tuple[Sequence, Output]] = {}
        for piece, start, choices in zip(pieces, step.starts, chosen, strict=True):
            try:
                output = self._take_in(piece, step, start, choices)
            except Exception as error:  # its own matter: the grammar's, say
                log.exception("a request failed")
                piece.sequence.tainted = True
                output = _failure(error)
            if output is not None and output.finish_reason is not None:
                ended[piece.sequence.stream] = piece.sequence, output
            elif output is not None:
                told.append((piece.sequence.stream, output))
        try:
            self._look_ahead(pieces, step, {stream: sequence for stream, (sequence, _) in ended.items()})
        finally:
            told += [self._finish(sequence, output) for sequence, output in ended.values()]
        if len(pieces) > 1:
            for piece in pieces:
                piece.sequence.failures = 0

    def _move(self, move: Move) -> bool:
        """Carry out a move; False if the second tier has lost what was to be fetched: the sequence then
        begins with what else is there, in a later step."""
        if isinstance(move, Fetch):
            sequence = move.sequence
            assert self.tier is not None and sequence.slot is not None
            found = self.tier.fetch(move)
            if not found:
                self.scheduler.start_over(sequence)
                if not sequence.generated:  # as if it had not been admitted
                    sequence.cached = None
                    del sequence.times[1:]
            return found
        self.runner.move(move)
        return True

    def _choose(self, pieces: list[Piece], step: Step) -> list[list[Choice] | Exception]:
        """What follows each whole piece, and each of its drafts; or what its grammar fails with."""
        rows: list[Row] = []
        where: list[int] = []
        spans: list[slice | Exception] = []
        for piece, start in zip(pieces, step.starts, strict=True):
            begin = len(rows)
            try:
                if piece.length == piece.sequence.pending:
                    rows += rows_after(piece)
            except Exception as error:
                spans.append(error)
            else:
                spans.append(slice(begin, len(rows)))
                last = start + piece.length - 1
                where += range(last, last + len(rows) - begin)
        if not rows:
            return [[] if isinstance(span, slice) else span for span in spans]
        every = len(where) == step.hidden.shape[0]  # as in all steps but those with prompts
        scores = self.runner.scores(step.hidden if every else step.hidden[where])
        # +inf and NaN poison a softmax; -inf merely forbids a token.
        sound = list(map(isfinite, scores.amax(-1).tolist()))
        if not all(sound):
            scores = scores.masked_fill(~scores.amax(-1, keepdim=True).isfinite(), 0.0)
        tokens = sample(scores, rows)
        choices = list(zip(tokens, logprobs(scores, tokens, rows), sound, strict=True))
        return [choices[span] if isinstance(span, slice) else span for span in spans]

    def _take_in(
        self, piece: Piece, step: Step, start: int, choices: list[Choice] | Exception
    ) -> Output | None:
        """Commit a piece: its tokens, the drafts that the model would have chosen too, and its own choice."""
        if isinstance(choices, Exception):
            raise choices
        sequence, told = piece.sequence, list[Output]()
        # what is not finite in a row that is scored shows in its scores
        fine = (piece.length == 1 and bool(choices)) or step.is_finite(start, piece.length)
        sequence.drafts = []
        for j, (token, report, sound) in enumerate(choices):
            fine = fine and sound
            if not fine:
                break
            output = sequence.extend(token, report)
            told.append(output)
            agreed = j < len(piece.drafts) and (token,) == (piece.drafts[j],) == output.token_ids
            if not agreed or output.finish_reason is not None:
                break
        if not fine and piece.drafts:  # a guess may be to blame: all is computed anew, without any
            sequence.plain = True
            self.scheduler.start_over(sequence)
            return Output.joined(told) if told else None
        if not fine:
            sequence.tainted = True
            error = "the model gave scores that are not finite"
            return Output.joined([*told, Output(finish_reason="error", error=error)])
        if sequence.request.sampling.prompt_logprobs is not None:
            report_prompt(self.runner, sequence, step.hidden[start : start + piece.length])
        self._advance(piece, step, start, max(0, len(told) - 1))
        return with_reports(sequence, Output.joined(told)) if told else None

    def _advance(self, piece: Piece, step: Step, start: int, right: int) -> None:
        """Note what is computed now: the piece, and so many drafts that were right."""
        sequence, count = piece.sequence, piece.length + right
        sequence.computed += count
        if sequence.computed >= sequence.suspect:
            sequence.suspect = 0
        sequence.replays = right
        sequence.worked += piece.length
        if piece.drafts:
            sequence.worked += len(piece.drafts)
            sequence.drafted += len(piece.drafts)
            sequence.accepted += right
        self.guesser.advanced(sequence, start, count, right)
        if sequence.request.routed_experts:
            sequence.routed.append(step.experts[start : start + count])

    def _look_ahead(self, pieces: list[Piece], step: Step, ended: dict[Stream, Sequence]) -> None:
        """Guess, and keep states where they are wanted."""
        self.guesser.guess(pieces, step, ended)
        for piece in pieces:
            if piece.sequence.slot is not None:
                self._keeper.keep(piece, ended=piece.sequence.stream in ended)

    def _recover(self, plan: Plan, told: Told, error: Exception) -> None:
        """A step has failed: whoever was alone in it ends, the others are computed anew, each alone until it
        is as far again. What they have been told stays."""
        log.exception("a step of %d requests failed", len(plan.pieces))
        self.guesser.forget()
        for piece in plan.pieces:
            sequence = piece.sequence
            self.spare.give([slot for _, slot in piece.saves if slot in self.spare.out])
            if sequence.slot is None:  # it had ended in this very step
                continue
            sequence.failures += 1
            if len(plan.pieces) == 1 or sequence.failures >= ATTEMPTS:
                told.append(self._finish(sequence, _failure(error)))
            else:
                sequence.suspect = min(sequence.computed + piece.length, len(sequence.tokens))
                self.scheduler.start_over(sequence)

    def _finish(self, sequence: Sequence, output: Output) -> tuple[Stream, Output]:
        """Free what the sequence holds -> what its reader is told."""
        facts = sequence.facts()
        self.scheduler.release(sequence)
        if not self.rehearsing:
            self._count.ended(facts, output.finish_reason, len(sequence.request.prompt), sequence.generated)
        return sequence.stream, output._replace(facts=facts, cached_tokens=facts.cached_tokens)


def _failure(error: Exception) -> Output:
    return Output(finish_reason="error", error=f"{type(error).__name__}: {error}")
