"""Prompt reports: what the model thought of each token of a prompt, for those who asked.

Called by `steps` for every piece of a sequence with `prompt_logprobs`. Invariant: there is one report
for each token of the prompt after the first, in order, however the prompt is cut and however often it begins
anew.
"""

from __future__ import annotations

from torch import Tensor

from .reports import reports
from .request import Output
from .runner import Runner
from .sequence import Sequence

ROWS = 64  # scores are as wide as the vocabulary: so many at a time


def report_prompt(runner: Runner, sequence: Sequence, hidden_TH: Tensor) -> None:
    """Report on the tokens that follow those of `hidden_TH`, which come after the `computed` ones. Raises
    ValueError if the model has no opinion that is a number."""
    count = sequence.request.sampling.prompt_logprobs
    assert count is not None
    begin, end = sequence.computed, min(sequence.computed + len(hidden_TH), len(sequence.request.prompt) - 1)
    while (done := len(sequence.prompt_reports)) < end:
        assert begin <= done, "a part of the prompt was never seen"
        last = min(done + ROWS, end)
        scores = runner.scores(hidden_TH[done - begin : last - begin])
        if not scores.amax(-1).isfinite().all():
            raise ValueError("the model gave scores that are not finite")
        tokens = list(sequence.request.prompt[done + 1 : last + 1])
        sequence.prompt_reports += reports(scores, tokens, [count] * len(tokens))


def with_reports(sequence: Sequence, output: Output) -> Output:
    """The first output also tells of the prompt, if that was asked for."""
    if sequence.request.sampling.prompt_logprobs is None or sequence.prompt_told:
        return output
    sequence.prompt_told = True
    return output._replace(prompt_logprobs=tuple(sequence.prompt_reports))
