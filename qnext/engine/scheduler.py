"""Who runs in the next step, and how many of their tokens: pure policy over plain data, no tensors.

Called by `engine` alone. Answers being written go first, a token and its drafts each, then prompts, the
urgent and the oldest first, in pieces; at most `step_tokens` in all. Where answers alone are more than that,
whoever has waited longest goes first. When pages run out, the cache gives up what is worth least, then the
youngest sequence gives way: it keeps its tokens and is computed anew later. Invariant: a sequence holds pages
and a slot exactly while it is in `running`.
"""

from __future__ import annotations

from array import array
from operator import attrgetter

from .cache import Checkpoint, PrefixCache
from .config import EngineConfig
from .pages import Pages
from .plan import Clear, Fetch, Piece, Plan, Restore
from .pool import Pool
from .sequence import Sequence

WORTH_WAITING = 32  # tokens that another sequence is about to leave in the cache
RANK = attrgetter("rank")
NEAR = 8  # tokens; a state this close before the start of generation serves for it


class Scheduler:
    """Waiting and running sequences. `lookahead` is how many cells beyond its tokens a sequence needs."""

    def __init__(
        self,
        pages: Pages,
        slots: Pool,
        spare: Pool,
        cache: PrefixCache | None,
        config: EngineConfig,
        lookahead: int,
    ) -> None:
        self.pages, self.slots, self.spare, self.cache = pages, slots, spare, cache
        self.page_size, self.step_tokens = config.page_size, config.step_tokens
        self.alone = config.batch_invariant
        self.lookahead = lookahead
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.steps = 0

    def plan(self) -> Plan:
        """The next step; sequences that must give way have given way."""
        plan = Plan()
        self.steps += 1
        suspect = next((each for each in (*self.running, *self.waiting) if each.suspect), None)
        if suspect is not None:
            self._fill(plan, [suspect])
        if not plan.pieces:  # nobody is suspect, or who is must wait for a place
            self._fill(plan, [each for each in (*self.running, *self.waiting) if not each.suspect])
        return plan

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out of either queue; its places are free again. Unknown ones are left alone."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._drop(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def start_over(self, sequence: Sequence) -> None:
        """Give up what a running sequence has computed; it waits for its next turn."""
        self.running.remove(sequence)
        self._drop(sequence)
        self.waiting.append(sequence)

    def _fill(self, plan: Plan, among: list[Sequence]) -> None:
        """Plan pieces of these sequences."""
        left, chosen = self.step_tokens, set(among)
        for sequence in self._turns():
            if left and sequence.slot is not None and sequence in chosen:
                left -= self._advance(plan, sequence, left)
        for sequence in sorted(chosen.intersection(self.waiting), key=RANK) if self.slots.free else ():
            if not left or not self.slots.free:
                break
            if sequence.suspect or not self._worth_waiting(sequence):
                if not self._admit(plan, sequence):
                    break
                left -= self._advance(plan, sequence, left)

    def _turns(self) -> list[Sequence]:
        """The running in the order in which they are served."""
        writing = sum(1 + len(each.drafts) for each in self.running if each.pending == 1)
        if writing > self.step_tokens:
            return sorted(self.running, key=lambda each: (each.served, each.rank))
        return sorted(self.running, key=lambda each: (each.pending > 1, each.rank))

    def _advance(self, plan: Plan, sequence: Sequence, left: int) -> int:
        """Plan the next piece of a running sequence -> its tokens; 0 if it had to give way."""
        pending = sequence.pending
        length = min(left, pending)
        if self.alone:  # cut where it depends on nothing but the sequence itself
            prompt = len(sequence.request.prompt) - sequence.computed
            grid = self.step_tokens - sequence.computed % self.step_tokens
            length = max(1, min(prompt, grid))
        drafts: tuple[int, ...] = ()
        if sequence.drafts and pending == 1:  # as many as there is use for
            drafts = tuple(sequence.drafts[: min(left - length, sequence.room - 1)])
        saves = []
        for mark in sequence.marks:
            if sequence.computed < mark < sequence.computed + length and self.cache is not None:
                slot = self.spare.take(1)
                if slot is None:
                    length = mark - sequence.computed
                else:
                    saves.append((mark, slot[0]))
        if not self._make_room(sequence, sequence.computed + length + len(drafts) + self.lookahead):
            self.spare.give([slot for _, slot in saves])
            return 0
        sequence.served = self.steps
        plan.pieces.append(Piece(sequence, length, drafts, tuple(saves)))
        return min(left, length + len(drafts))

    def _admit(self, plan: Plan, sequence: Sequence) -> bool:
        """Let a waiting sequence in, with what the cache has of it, if all its tokens would fit now."""
        hit, known, shared = None, 0, []
        if self.cache is not None:
            hit, known = self.cache.find(sequence.root, sequence.tokens, sequence.reach)
        if hit is not None and hit.state is not None and self.cache is not None:
            shared = self.cache.path(hit)
            self.pages.use(shared)
        cells = len(sequence.tokens) + self.lookahead
        if self.pages.free + self.pages.idle < -(-cells // self.page_size) - len(shared):
            self.pages.drop(shared)
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        slot = self.slots.take(1)
        assert slot is not None
        sequence.slot, sequence.pages = slot[0], array("q", shared)
        sequence.cursor = None if self.cache is None else self.cache.cursor(sequence.root)
        if hit is None:
            plan.moves.append(Clear(slot[0]))
        else:
            self._take_up(plan, sequence, hit)
        sequence.admit(hit.length if hit else 0, _marks(sequence, hit.length if hit else 0, known))
        return True

    def _take_up(self, plan: Plan, sequence: Sequence, hit: Checkpoint) -> None:
        """Begin a sequence where a checkpoint ends. Pages are taken after the checkpoint's are noted: should
        it be evicted for them, its contents are still read first."""
        assert self.cache is not None and sequence.slot is not None
        self.cache.touch(hit)
        state, tail = hit.state, hit.tail_page
        sequence.replays = hit.replays
        missing = -(-hit.length // self.page_size) - len(sequence.pages)
        if missing:
            self.cache.make_room(missing)
            pages = self.pages.take(missing)
            assert pages is not None
            sequence.pages.extend(pages)
        if state is None:
            plan.moves.append(Fetch(sequence, hit))
        else:
            copy = None if tail is None else (tail, sequence.pages[-1])
            if copy is not None:
                self.pages.filled[copy[1]] = self.pages.filled[copy[0]]
            plan.moves.append(Restore(sequence.slot, tuple(state), copy, hit.replays))

    def _worth_waiting(self, sequence: Sequence) -> bool:
        """Whether a running sequence is about to leave a state in the cache that is worth waiting for."""
        if self.cache is None or sequence.reach < len(sequence.tokens) - 1:
            return False
        tokens, found = sequence.tokens, -1
        for other in self.running:
            for mark in other.marks:
                ahead = other.computed < mark < len(tokens) and other.root == sequence.root
                if ahead and mark >= WORTH_WAITING and tokens[:mark] == other.tokens[:mark]:
                    if found < 0:
                        hit, _ = self.cache.find(sequence.root, tokens, len(tokens) - 1)
                        found = hit.length if hit else 0
                    if mark - found >= WORTH_WAITING:
                        return True
        return False

    def _make_room(self, sequence: Sequence, cells: int) -> bool:
        """Pages for so many cells, taken from the cache and then from younger ones; False if it had to give
        way itself."""
        while (missing := -(-cells // self.page_size) - len(sequence.pages)) > 0:
            if self.cache is not None:
                self.cache.make_room(missing)
            pages = self.pages.take(missing)
            if pages is not None:
                sequence.pages.extend(pages)
                return True
            last = max((each for each in self.running if each.served < self.steps), key=RANK)
            last.preemptions += 1
            self.start_over(last)
            if last is sequence:
                return False
        return True

    def _drop(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.pages.drop(sequence.pages)
        self.slots.give([sequence.slot])
        sequence.reset()


def _marks(sequence: Sequence, begin: int, known: int) -> list[int]:
    """The lengths at which states are kept while the prompt is computed: where messages begin, where known
    texts branch off, and the start of generation (a token early, so that the same prompt finds it)."""
    prompt = len(sequence.request.prompt)
    marks = {mark for mark in sequence.request.boundaries if mark < prompt}
    if not any(prompt - 1 - mark < NEAR for mark in marks):
        marks.add(prompt - 1)
    if known > begin:
        marks.add(known)
    return sorted(mark for mark in marks if mark > begin)
