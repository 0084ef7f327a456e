"""Questions with checkable answers, made by the generators, and the judge of what a model answers.

`reinforcement` draws and judges. Invariant: the question after N questions depends on the spec, the template,
the seed and N alone; the checker is the one that evaluations use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from qnext.synthetic.chat import compose
from qnext.synthetic.dialogue import Dialogue, Setting, check
from qnext.text.chat import Chat, Prompt
from qnext.text.events import ContentDelta, ToolCallDelta

from .conversations import without_earlier_reasoning
from .documents import read_told_stories
from .mixture import DataSpec
from .rollout import Rollout

TRIES = 200  # dialogues that may be no question before a recipe is refused


@dataclass(frozen=True)
class Question:
    """A conversation that waits for its last answer, as the model sees it; `number` tells it from all others
    of its run."""

    number: int
    dialogue: Dialogue
    prompt: Prompt


@dataclass(frozen=True)
class Verdict:
    """`formed`: the answer has ended by itself, after its thought if it has one; `right`: it is formed and
    passes the dialogue's check."""

    formed: bool
    right: bool

    def reward(self, form: float) -> float:
        """1 for what is right, and `form` for what is formed."""
        return self.right + form * self.formed


class Questions:
    """An endless stream, whose place is `count`. A part's weight is its share of the questions; prompts have
    at most `room` tokens."""

    def __init__(self, spec: DataSpec, chat: Chat, seed: str, room: int) -> None:
        """Raises ValueError where the checkpoint knows no conversations, or a part has nothing to check."""
        if not chat.has_template:
            raise ValueError(
                "the checkpoint has no chat template, so it answers no questions: start from one that was "
                "taught conversations, or set data.template to 'instruct' or 'thinking'"
            )
        self._spec, self._chat, self._seed, self._room = spec, chat, seed, room
        self._settings = [
            Setting(
                part.heldout,
                chat.is_thinking,
                read_told_stories(Path(spec.root) / part.path, part.heldout) if part.path else (),
            )
            for part in spec.parts
        ]
        for index, part in enumerate(spec.parts):
            tries = [self._made(index, Random(f"{seed}/try/{index}/{i}")) for i in range(TRIES)]
            if not any(dialogue.checkable for dialogue in tries):
                raise ValueError(
                    f"data.parts[{index}]: nothing of the family {part.family!r} can be checked: give "
                    "another one, such as 'sums', 'arithmetic', 'recall' or 'tools'"
                )
        self.count = 0

    def next(self) -> Question:
        """The next one. Raises ValueError if no prompt has room."""
        for _ in range(TRIES):
            number, self.count = self.count, self.count + 1
            rng = Random(f"{self._seed}/{number}")
            weights = [part.weight for part in self._spec.parts]
            dialogue = self._made(rng.choices(range(len(weights)), weights)[0], rng)
            if dialogue.checkable:
                asked = without_earlier_reasoning(dialogue.messages, rng)[:-1]
                prompt = self._chat.encode(asked, dialogue.tools or None)
                if len(prompt.ids) <= self._room:
                    return Question(number, dialogue, prompt)
        raise ValueError(
            f"none of {TRIES} questions has {self._room} tokens or less: raise data.max_length, or lower "
            "rl.max_tokens"
        )

    def judge(self, question: Question, rollout: Rollout) -> Verdict:
        """Read an answer as its reader would, and check it."""
        formed = rollout.ended
        if question.prompt.thinking:
            formed = formed and self._chat.tokenizer.control["</think>"] in rollout.answer
        if not formed:
            return Verdict(formed=False, right=False)
        parser = self._chat.parser(question.prompt, tools=question.dialogue.tools)
        events = [*parser.feed(rollout.answer), *parser.finish("stop")]
        text = "".join(event.text for event in events if isinstance(event, ContentDelta))
        calls = [event.call for event in events if isinstance(event, ToolCallDelta)]
        return Verdict(formed=True, right=check(question.dialogue, text, calls))

    def _made(self, part: int, rng: Random) -> Dialogue:
        return compose(rng, self._settings[part], self._spec.parts[part].family)
