"""Language: every taught answer is recognised, and nothing is made of what belongs nowhere."""

from __future__ import annotations

import pytest

from qnext.evals.language import language_of
from qnext.synthetic.languages import CODES
from qnext.synthetic.slots import table

ANSWERS = [
    *(
        (code, answer)
        for code in CODES
        for _, answers in table("languages")[code]["talk"]
        for answer in answers
    ),
    *(("en", answer) for talk in table("manners")["talk"] for answer in talk["answer"]),
]


def test_every_answer_is_in_its_language() -> None:
    wrong = [(code, answer, language_of(answer)) for code, answer in ANSWERS if language_of(answer) != code]
    assert not wrong and len(ANSWERS) > 100


@pytest.mark.parametrize("text", ["", "12 + 3 = 15", "xyzzy"])
def test_what_is_no_language(text: str) -> None:
    assert language_of(text) is None
