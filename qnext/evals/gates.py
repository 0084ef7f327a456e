"""Gates: what an embedded model has to be able to do before it ships, each as questions with a checker.

Called by `embedded`. Invariant: every question comes from a seed and, where the family keeps phrasings or
words back from training, from those; the checker is the one that rewards and training data are made with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random

from qnext.synthetic import arithmetic, languages, manners, recall, story, tools
from qnext.synthetic.chat import compose
from qnext.synthetic.dialogue import Dialogue, Setting, check
from qnext.text.messages import Message

from .language import ENGLISH, language_of
from .loops import loops, most_repeated
from .result import Result, loss, rate
from .subject import Query, Reply, Subject

AT_ONCE = 16  # questions that a subject is asked at the same time
STORIES = 50
RECALL_TOKENS = 1000
GREETED = 0.9  # share of a language's greetings that must be answered in it


def heldout_loss(subject: Subject, stories: Sequence[str], count: int, seed: int) -> Iterator[Result]:
    """Nats per token on stories that no model was trained on; nothing without stories."""
    if stories:
        drawn = Random(seed).sample(stories, min(count, len(stories)))
        scores = [subject.score(text) for text in drawn]
        letters = sum(map(len, drawn))
        detail = f"{sum(nats for nats, _ in scores) / letters:.3f} nats a character"
        yield loss("held-out story loss", scores, 2.2, seed, detail)


def tool_calls(subject: Subject, count: int, seed: int) -> Iterator[Result]:
    """Requests that need one or two calls: is every call readable, and is it the right one?"""
    setting = Setting(heldout=True, thinking=subject.thinks)
    dialogues = _some(count, seed, lambda rng: tools.make(rng, setting), _ends_in_call)
    replies = ask_all(subject, (question(dialogue, seed) for dialogue in dialogues))
    opened, readable = (sum(r.opened_calls for r in replies), sum(len(r.tool_calls) for r in replies))
    right = [check(d, r.text, r.tool_calls) for d, r in zip(dialogues, replies, strict=True)]
    names = sum(_names(d.messages[-1]) == _names(r) for d, r in zip(dialogues, replies, strict=True))
    yield rate("tool-call JSON valid", readable, opened, 0.99, seed)
    detail = f"right tool {names / max(count, 1):.1%}"
    yield rate("right tool and arguments", sum(right), len(right), 0.9, seed, detail)


def sums(subject: Subject, count: int, seed: int) -> Iterator[Result]:
    """Sums of two numbers of two digits, worked out inside the reasoning; nothing if there is none."""
    if subject.thinks:
        setting = Setting(heldout=True, thinking=True)
        dialogues = _some(count, seed, lambda rng: arithmetic.two_digit_sum(rng, setting))
        yield _checked("2-digit sums, thinking", subject, dialogues, 0.9, seed)


def recall_far(subject: Subject, stories: Sequence[str], count: int, seed: int) -> Iterator[Result]:
    """A number or word hidden anywhere in about a thousand tokens of stories."""
    setting = Setting(heldout=True, thinking=subject.thinks, stories=stories)
    dialogues = [
        recall.far_needle(
            Random(f"{seed}/{i}"), setting, RECALL_TOKENS, (i + 0.5) / count, subject.count_tokens
        )
        for i in range(count)
    ]
    right = _right(subject, dialogues, seed)
    thirds = [right[i * count // 3 : (i + 1) * count // 3] for i in range(3)]
    shares = ", ".join(f"{sum(each) / max(len(each), 1):.0%}" for each in thirds)
    yield rate("recall at 1k", sum(right), count, 0.9, seed, f"by depth, first third to last: {shares}")


def closed_thoughts(subject: Subject, count: int, seed: int) -> Iterator[Result]:
    """Conversations of every family, sampled as the model recommends: does each thought end by itself?"""
    if subject.thinks:
        setting = Setting(heldout=True, thinking=True)
        dialogues = _some(count, seed, lambda rng: compose(rng, setting))
        queries = (question(dialogue, seed + i, None) for i, dialogue in enumerate(dialogues))
        closed = sum(reply.reasoning_closed for reply in ask_all(subject, queries))
        yield rate("</think> always closed", closed, count, 1.0, seed)


def told_stories(subject: Subject, seed: int) -> Iterator[Result]:
    """Fifty stories at temperature 0.7: does any of them go round in circles?"""
    setting = Setting(heldout=True, thinking=subject.thinks)
    dialogues = _some(STORIES, seed, lambda rng: story.made(rng, setting))
    queries = (question(dialogue, seed + i, 0.7) for i, dialogue in enumerate(dialogues))
    texts = [reply.text for reply in ask_all(subject, queries)]
    free = sum(bool(text) and not loops(text) for text in texts)
    often = sum(most_repeated(text) > 2 for text in texts)
    lengths = sum(len(text.split()) for text in texts) // STORIES
    detail = f"{lengths} words on average; {often} say some four words three times or more"
    yield rate("stories without loops", free, STORIES, 1.0, seed, detail)


def greetings(subject: Subject, seed: int) -> Iterator[Result]:
    """Greetings in five languages: in how many of them are they answered in the same one? Three must be."""
    asked = {code: languages.greetings(code) for code in languages.CODES}
    asked[ENGLISH] = list(manners.greetings(heldout=True))
    pairs = [(code, text) for code, texts in asked.items() for text in texts]
    replies = ask_all(subject, (Query((Message("user", text),), seed=seed) for _, text in pairs))
    right = Counter(
        code for (code, _), reply in zip(pairs, replies, strict=True) if language_of(reply.text) == code
    )
    good = sum(right[code] >= GREETED * len(texts) for code, texts in asked.items())
    detail = ", ".join(f"{code} {right[code]}/{len(texts)}" for code, texts in asked.items())
    yield rate("languages greeted back", good, len(asked), 0.6, seed, detail)


def question(dialogue: Dialogue, seed: int, temperature: float | None = 0.0) -> Query:
    """The dialogue without the answer that it ends in."""
    return Query(dialogue.messages[:-1], dialogue.tools, temperature, seed)


def ask_all(subject: Subject, queries: Iterable[Query]) -> list[Reply]:
    """The replies to all queries, in their order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(subject.generate, queries))


def _right(subject: Subject, dialogues: Sequence[Dialogue], seed: int) -> list[bool]:
    replies = ask_all(subject, (question(dialogue, seed) for dialogue in dialogues))
    return [check(d, r.text, r.tool_calls) for d, r in zip(dialogues, replies, strict=True)]


def _checked(gate: str, subject: Subject, dialogues: Sequence[Dialogue], limit: float, seed: int) -> Result:
    right = _right(subject, dialogues, seed)
    return rate(gate, sum(right), len(right), limit, seed)


def _some(
    count: int,
    seed: int,
    make: Callable[[Random], Dialogue],
    wanted: Callable[[Dialogue], bool] = lambda dialogue: True,
) -> list[Dialogue]:
    """The first `count` dialogues of a seed that are wanted."""
    found: list[Dialogue] = []
    number = 0
    while len(found) < count:
        dialogue = make(Random(f"{seed}/{number}"))
        number += 1
        if wanted(dialogue):
            found.append(dialogue)
    return found


def _ends_in_call(dialogue: Dialogue) -> bool:
    return bool(dialogue.messages[-1].tool_calls)


def _names(turn: Message | Reply) -> list[str]:
    return [call.name for call in turn.tool_calls]
