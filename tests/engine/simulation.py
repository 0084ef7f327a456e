"""A scheduler without a model, step after step, with every rule checked at each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from qnext.engine.cache import PrefixCache
from qnext.engine.config import EngineConfig
from qnext.engine.pages import Pages
from qnext.engine.plan import Piece, Plan
from qnext.engine.pool import Pool
from qnext.engine.request import Request, SamplingParams
from qnext.engine.scheduler import Scheduler
from qnext.engine.sequence import Sequence
from qnext.engine.stream import Stream


class Simulation:
    """A scheduler whose model takes no time: pieces are computed, whole sequences get a token and `lucky`
    ones their drafts; states are kept where they are wanted."""

    def __init__(
        self,
        *,
        pages: int,
        page_size: int,
        slots: int,
        step_tokens: int,
        drafts: int = 0,
        keep: bool = False,
        spare: int = 4,
    ) -> None:
        config = EngineConfig(page_size=page_size, step_tokens=step_tokens)
        store = Pages(pages)
        self.cache = PrefixCache(store, page_size, 2) if keep else None
        self.spare = Pool(spare, slots)
        self.scheduler = Scheduler(store, Pool(slots), self.spare, self.cache, config, drafts)
        self.random, self.drafts = Random(0), drafts
        self.steps = self.work = self.arrivals = 0
        self.admissions: Counter[Sequence] = Counter()
        self.order: list[Sequence] = []
        self.finished: list[Sequence] = []
        self.plan = Plan()
        scheduler_admit = self.scheduler._admit

        def admit(plan: Plan, made: Sequence) -> bool:
            admitted = scheduler_admit(plan, made)
            if admitted:
                self.admissions[made] += 1
                self.order.append(made)
            return admitted

        self.scheduler._admit = admit  # type: ignore[method-assign]

    def add(self, prompt: int | tuple[int, ...], answer: int, **fields: object) -> Sequence:
        text = (1,) * prompt if isinstance(prompt, int) else prompt
        wish = Request(text, SamplingParams(max_tokens=answer))
        wish = replace(wish, **fields)  # type: ignore[arg-type]
        made = Sequence(Stream(wish, lambda stream: None), 0, 1000, arrival=self.arrivals)
        self.arrivals += 1
        self.scheduler.add(made)
        return made

    @property
    def live(self) -> list[Sequence]:
        return [*self.scheduler.running, *self.scheduler.waiting]

    @property
    def preemptions(self) -> int:
        return sum(self.admissions.values()) - len(self.admissions)

    def step(self) -> list[Piece]:
        self.plan = self.scheduler.plan()
        pieces = self.plan.pieces
        self.check(pieces)
        self.steps += 1
        for piece in pieces:
            self.take_in(piece)
        return pieces

    def take_in(self, piece: Piece) -> None:
        made = piece.sequence
        whole = piece.length == made.pending
        right = self.random.randint(0, len(piece.drafts))
        made.computed += piece.length
        made.drafts = []
        self.work += piece.length + len(piece.drafts)
        if made.computed >= made.suspect:
            made.suspect = 0
        finish = None
        for _ in range(1 + right if whole else 0):
            assert finish is None  # of drafts beyond the end there would be no use
            finish = made.extend(0, None).finish_reason
        made.computed += right
        for mark, slot in piece.saves:
            self.keep(made, mark)
            self.spare.give([slot])
        if self.cache is not None and made.computed in made.marks:
            self.keep(made, made.computed)
        made.marks = [mark for mark in made.marks if mark > made.computed]
        if finish:
            self.scheduler.release(made)
            self.finished.append(made)
        elif whole:
            made.drafts = [0] * self.random.randint(0, self.drafts)

    def keep(self, made: Sequence, length: int) -> None:
        assert self.cache is not None and made.cursor is not None
        self.cache.insert(made.cursor, made.root, made.tokens, length, made.pages)

    def check(self, pieces: list[Piece]) -> None:
        scheduler, store = self.scheduler, self.scheduler.pages
        running, waiting = scheduler.running, scheduler.waiting
        assert sum(piece.length + len(piece.drafts) for piece in pieces) <= scheduler.step_tokens
        assert len({piece.sequence for piece in pieces}) == len(pieces)
        for piece in pieces:
            assert piece.sequence in running
            assert 1 <= piece.length <= piece.sequence.pending
            assert not piece.drafts or piece.length == piece.sequence.pending == 1
            cells = piece.sequence.computed + piece.length + len(piece.drafts) + scheduler.lookahead
            assert len(piece.sequence.pages) * scheduler.page_size >= cells
        held = [page for each in running for page in each.pages]
        own = Counter(held)
        assert self.cache is not None or max(own.values(), default=1) == 1  # nothing is shared
        assert len(own) + store.free + store.idle == store.size
        saves = [slot for piece in pieces for _, slot in piece.saves]
        assert len(saves) == len(set(saves)) == len(self.spare.out)
        slots = [each.slot for each in running]
        assert None not in slots and len(set(slots)) == len(slots)
        assert len(slots) + scheduler.slots.free == scheduler.slots.size
        for each in waiting:
            assert not each.pages and each.slot is None and each.computed == 0
        assert pieces or not self.live  # something always goes on
        suspects = [piece for piece in pieces if piece.sequence.suspect]
        assert not suspects or len(pieces) == 1

    def all_is_free(self) -> bool:
        store = self.scheduler.pages
        if self.cache is not None:
            self.cache.clear()
        return store.free == store.size and self.scheduler.slots.free == self.scheduler.slots.size

    def run(self, most: int = 10_000) -> None:
        while self.live:
            self.step()
            assert self.steps < most, "it does not come to an end"
