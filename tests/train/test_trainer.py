"""The training loop: it learns, it can be stopped anywhere, and it says what went wrong."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers.pre_tokenizers import ByteLevel

from qnext.model.qwen3_next import Qwen3Next
from qnext.train import checkpoint, supervised, trainer
from qnext.train.batch import Batch
from qnext.train.growth import Growth
from qnext.train.mixture import DataSpec, Part
from qnext.train.recipe import Heldout, Recipe, Schedule
from qnext.train.trainer import Trainer

from .toy import TABLE, VOCABULARY, ToySource

END = VOCABULARY - 1


def write_tokenizer(folder: Path, size: int = VOCABULARY) -> Path:
    """A tokenizer of single bytes and an end token, which is the last of `size`."""
    folder.mkdir()
    vocabulary = {text: i for i, text in enumerate(sorted(ByteLevel.alphabet()))}
    end = {"id": size - 1, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": True}  # fmt: skip
    definition = {
        "version": "1.0",
        "added_tokens": [end],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    names = {"eos_token": "<|end|>", "pad_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "generation_config.json").write_text('{"eos_token_id": 256}')
    return folder


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A toy recipe whose data source is the toy one."""
    monkeypatch.setattr(supervised, "open_source", lambda spec, folder, seed: ToySource(seed))
    return Recipe(
        name="toy",
        output=tmp_path / "run",
        tokenizer=write_tokenizer(tmp_path / "tokenizer"),
        schedule=Schedule(12, warmup_steps=3),
        data=DataSpec((Part("chat", 1.0),)),
        model=dict(TABLE),
        log_every=4,
        eval_every=6,
        heldout=Heldout(DataSpec((Part("chat", 1.0),)), batches=2),
    )


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def stop_after(run: Trainer, steps: int) -> None:
    """Have `run` receive SIGTERM while it takes the step of this number."""
    take = run._train_step

    def step() -> float:
        if run.step == steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return take()

    run._train_step = step  # type: ignore[method-assign]


def test_it_learns_and_reports(recipe: Recipe) -> None:
    shown: list[int] = []
    run = Trainer(replace(recipe, schedule=Schedule(60, warmup_steps=5), eval_every=60))
    before = run.stage.evaluate()
    path = run.run(lambda step, _: shown.append(step))
    lines = metrics(recipe.output)
    assert lines[-1] == {"step": 60, "heldout_nll": pytest.approx(run.stage.evaluate(), rel=1e-5)}
    assert lines[-1]["heldout_nll"] < before - 1
    assert shown == [line["step"] for line in lines[:-1]] == list(range(4, 61, 4))
    assert lines[0]["tokens"] == 4 * 64 and lines[0]["seconds"] > 0 and lines[0]["router"] > 0
    assert path == recipe.output / "model"


def test_the_export_is_a_complete_checkpoint(recipe: Recipe) -> None:
    run = Trainer(recipe)
    path = run.run()
    assert path is not None
    model = Qwen3Next.from_pretrained(path)
    assert model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.equal(model.norm.weight, run.model.norm.weight.bfloat16())
    assert model.config.eos_token_id == model.config.pad_token_id == model.config.bos_token_id == END
    assert json.loads((path / "generation_config.json").read_text()) == {"eos_token_id": 256}
    assert {"README.md", "config.json", "tokenizer.json"} <= {file.name for file in path.iterdir()}
    assert "12 steps from random weights" in (path / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_equals_uninterrupted_bit_for_bit(recipe: Recipe, tmp_path: Path, dtype: Any) -> None:
    recipe = replace(recipe, dtype=dtype, schedule=Schedule(12, warmup_steps=3, accumulate=2))
    whole = Trainer(recipe)
    whole.run()
    cut = replace(recipe, output=tmp_path / "cut")
    for steps in (5, 9):
        run = Trainer(cut)
        stop_after(run, steps)
        assert run.run() is None and run.step == steps
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    last = Trainer(cut)
    assert last.step == 9
    last.run()
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, last.model.get_parameter(name)), name
    timing = {"seconds", "tokens_per_second"}
    kept = [{k: v for k, v in line.items() if k not in timing} for line in metrics(recipe.output)]
    resumed = [{k: v for k, v in line.items() if k not in timing} for line in metrics(cut.output)]
    assert [line["step"] for line in kept] == [line["step"] for line in resumed]
    assert kept[-1] == resumed[-1] and kept[0] == resumed[0]


def test_only_the_named_weights_learn(recipe: Recipe) -> None:
    run = Trainer(replace(recipe, learn=("*embed_tokens.weight", "mtp.*norm*")))
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    run.run()
    moved = {name for name, weight in run.model.named_parameters() if not torch.equal(weight, before[name])}
    assert "embed_tokens.weight" in moved and any(name.startswith("mtp.") for name in moved)
    assert all(
        name == "embed_tokens.weight" or (name.startswith("mtp.") and "norm" in name) for name in moved
    )


def test_a_name_that_fits_no_weight_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="learn: no weight's name fits 'embeddings'"):
        Trainer(replace(recipe, learn=("embeddings",)))


def test_a_run_leaves_the_process_as_it_was(recipe: Recipe) -> None:
    Trainer(recipe).run()
    assert torch.tensor(1e-40) * 1 > 0  # a number that a processor told to flush denormals makes 0


def test_resume_drops_the_metrics_of_steps_taken_again(recipe: Recipe) -> None:
    Trainer(replace(recipe, schedule=Schedule(4))).run()
    with open(recipe.output / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "nll": 1}\n{"step": 9, "n')  # a run killed in the middle of a line
    Trainer(recipe)
    assert [line["step"] for line in metrics(recipe.output)] == [4, 4]


def test_a_finished_run_only_exports(recipe: Recipe) -> None:
    Trainer(recipe).run()
    before = (recipe.output / "metrics.jsonl").read_text()
    run = Trainer(recipe)
    assert run.step == 12 and run.run() == recipe.output / "model"
    assert (recipe.output / "metrics.jsonl").read_text() == before


def test_saves_by_the_clock(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(checkpoint, "save", lambda output, step, *rest: saved.append(step))
    Trainer(replace(recipe, save_every_minutes=0.0, schedule=Schedule(3))).run()
    assert saved == [1, 2, 3]


def test_accumulated_batches_count_as_one_step(recipe: Recipe) -> None:
    run = Trainer(replace(recipe, schedule=Schedule(2, accumulate=3)))
    run.run()
    assert run.stage.tokens == 2 * 3 * 64 and run.stage.state_dict()["source"] == {"count": 6}


def test_a_broken_loss_stops_the_run_and_keeps_the_checkpoint(recipe: Recipe) -> None:
    Trainer(replace(recipe, schedule=Schedule(4))).run()
    run = Trainer(recipe)
    with torch.no_grad():
        run.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"no finite number at step 5: lower optim\.muon_lr .*step-00000004"):
        run.run()
    assert checkpoint.latest(recipe.output) == recipe.output / "step-00000004"
    assert Trainer(recipe).model.norm.weight.isfinite().all()


def test_it_starts_from_a_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    base = Trainer(recipe)
    path = base.run()
    run = Trainer(replace(recipe, init=path, model={}, output=tmp_path / "second"))
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    assert torch.equal(run.model.norm.weight, base.model.norm.weight.bfloat16().float())
    run.run()
    assert not torch.equal(run.model.norm.weight, base.model.norm.weight.bfloat16().float())
    assert "from the checkpoint `model`" in (tmp_path / "second/model/README.md").read_text()
    wide = write_tokenizer(tmp_path / "wide", VOCABULARY + 3)
    with pytest.raises(ValueError, match=r"has 260 tokens, the network of .* only 257"):
        Trainer(replace(recipe, init=path, model={}, tokenizer=wide))


def test_it_grows_a_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    base = Trainer(recipe)
    larger = replace(recipe, init=base.run(), model={}, grow=Growth((1,)), output=tmp_path / "second")
    stop_after(run := Trainer(larger), 5)
    assert run.run() is None
    path = Trainer(larger).run()  # goes on from the grown one's own checkpoint
    assert path is not None
    assert Qwen3Next.from_pretrained(path).config.num_hidden_layers == base.model.config.num_hidden_layers + 1
    assert "grown first" in (path / "README.md").read_text()
    with pytest.raises(ValueError, match=r"\[grow\] of the recipe, on .*: attention_layers: 99 is no place"):
        Trainer(replace(larger, grow=Growth((99,)), output=tmp_path / "third"))


def test_an_export_may_keep_some_of_the_start(recipe: Recipe, tmp_path: Path) -> None:
    start = Trainer(recipe).run()
    run = Trainer(replace(recipe, init=start, model={}, blend=0.25, output=tmp_path / "second"))
    path = run.run()
    assert start is not None and path is not None
    before, after = (dict(Qwen3Next.from_pretrained(each).named_parameters()) for each in (start, path))
    for name, weight in run.model.named_parameters():
        wanted = 0.75 * weight.detach() + 0.25 * before[name].float()
        assert torch.allclose(after[name].float(), wanted, rtol=2**-7, atol=1e-6), name
    assert "blended with 25% of the weights" in (path / "README.md").read_text()


def test_a_wrong_model_table_is_named(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"\[model\] of the recipe: unknown field hidden_sise = 3"):
        Trainer(replace(recipe, model={"hidden_sise": 3}))


def test_masked_batches_do_no_harm(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Trainer(recipe)
    monkeypatch.setattr(run.stage.source, "next", lambda: Batch(torch.zeros(5).long(), torch.zeros(5), (5,)))
    assert run.run() is not None
    assert run.last["nll"] == 0


def test_train_reads_a_file_and_shows_progress(recipe: Recipe, tmp_path: Path) -> None:
    table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in TABLE.items())
    path = tmp_path / "toy.toml"
    path.write_text(
        f'name = "toy"\noutput = "{tmp_path / "out"}"\ntokenizer = "{recipe.tokenizer}"\n[model]\n{table}'
        '[schedule]\nsteps = 99\n[[data.parts]]\nkind = "chat"\nweight = 1\n'
    )
    with open(tmp_path / "screen", "w") as screen:
        console = Console(file=screen, force_terminal=True, width=100)
        result = trainer.train(path, ["schedule.steps=3", "log_every=1"], console)
    assert result == tmp_path / "out/model"
    assert "3/3" in (tmp_path / "screen").read_text()
    assert trainer.train(path, ["schedule.steps=3"]) == result


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_text(
        f'name = "toy"\noutput = "{tmp_path / "out"}"\ntokenizer = "{recipe.tokenizer}"\ndevice = "cuda"\n'
        '[model]\nhidden_size = 8\n[schedule]\nsteps = 9\n[[data.parts]]\nkind = "chat"\nweight = 1\n'
    )
    with pytest.raises(
        ValueError, match=r"device is 'cuda', but torch finds no CUDA device here: set device=cpu"
    ):
        trainer.train(path)
    assert not (tmp_path / "out").exists()


def test_rows_longer_than_the_network_reads_are_refused(recipe: Recipe) -> None:
    short = replace(recipe, model={**TABLE, "max_position_embeddings": 512})
    with pytest.raises(ValueError, match=r"data\.max_length is 1024, the network has 512 positions"):
        Trainer(short)
    assert not (recipe.output / "metrics.jsonl").exists()


def test_a_key_of_the_model_that_does_not_exist_is_named(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"\[model\] of the recipe: .*num_expert"):
        Trainer(replace(recipe, model={**TABLE, "num_expert": 4}))
