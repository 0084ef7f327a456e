"""What the command line takes."""

from __future__ import annotations

import pytest

from qnext.arguments import parser


def test_kinds_of_numbers_have_short_names() -> None:
    words = "convert a b --quantize bf16 --keep lm_head=fp32 --keep layers.0.*=int8 --keep bf16".split()
    options = parser().parse_args(words)
    assert options.quantize == "bfloat16"
    assert options.keep == ["lm_head=float32", "layers.0.*=int8", "bfloat16"]
    assert parser().parse_args(["serve", "--dtype", "fp16"]).dtype == "float16"


@pytest.mark.parametrize("option", [["--dtype", "half"], ["--quantize", "fp16"]], ids=str)
def test_other_kinds_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["convert", "a", "b", *option])
    assert f"argument {option[0]}: invalid choice" in capsys.readouterr().err
