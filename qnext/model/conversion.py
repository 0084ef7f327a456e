"""From a published checkpoint to a packed model, a layer at a time: in memory, or into a packed checkpoint.

Called by `qnext convert --quantize` and by whoever packs a checkpoint to run it. Invariant: beside what is
packed, no more than one layer's weights are held, in the checkpoint's own numbers; so a machine can convert
what it could not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qnext.kernels.packed import Packed

from . import fp8
from .calibration import Calibration
from .checkpoint import Checkpoint
from .config import ModelConfig
from .layout import Entry, layout
from .packed_file import PackedWriter, copy_companions, is_packed, new_directory
from .packed_layout import sections
from .quant import Parts, pack_section
from .qwen3_next import Qwen3Next
from .scheme import Scheme
from .weights import Progress, check_weights, fill

Texts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Source:
    """A published checkpoint, read in sections."""

    checkpoint: Checkpoint
    config: ModelConfig

    @classmethod
    def open(cls, path: str | Path) -> Source:
        """Raises ValueError unless it is a whole checkpoint of published weights."""
        if is_packed(path):
            raise ValueError(f"{path} is packed already: give the checkpoint that it was made from")
        checkpoint = Checkpoint(path)
        config = ModelConfig.from_dict(checkpoint.config_dict, mtp_layers=checkpoint.mtp_layers)
        check_weights(config, checkpoint)
        return cls(checkpoint, config)

    def packed(
        self, scheme: Scheme, texts: Texts | None = None, progress: Progress | None = None
    ) -> Iterator[tuple[str, Packed | Tensor]]:
        """The parts of the packed form; `progress` is told bytes read, and of how many."""
        model = Qwen3Next(self.config, device="meta")
        shapes = {name: each.shape for name, each in model.named_parameters()}
        calibration = Calibration(self.config, texts, self.checkpoint.dtype) if texts is not None else None
        total = sum(self.checkpoint.tensors[entry.name].nbytes for entry in layout(self.config))
        done = 0
        for _, section in sections(self.config):
            names = {source for part in section for source in part.sources}
            entries = [e for e in layout(self.config) if any(run.parameter in names for run in e.parts)]
            parameters = {name: torch.empty(shapes[name], dtype=self._dtype(name, entries)) for name in names}
            for nbytes in fill(parameters.items(), self.checkpoint, entries):
                done = min(done + nbytes, total)
                if progress:
                    progress(done, total)
            importance = calibration.importance(section, parameters) if calibration else None
            yield from pack_section(section, parameters, scheme, importance)
            del parameters

    def _dtype(self, parameter: str, entries: list[Entry]) -> torch.dtype:
        """The checkpoint's own numbers, if a parameter's rows are of one kind; floats for float8."""
        own = {
            self.checkpoint.tensors[entry.name].dtype
            for entry in entries
            if any(run.parameter == parameter for run in entry.parts)
        }
        return own.pop() if len(own) == 1 and fp8.DTYPE not in own else self.checkpoint.dtype


def pack_checkpoint(
    path: str | Path, scheme: Scheme, *, texts: Texts | None = None, progress: Progress | None = None
) -> tuple[ModelConfig, Parts]:
    """A published checkpoint in memory, packed; see `convert`."""
    source = Source.open(path)
    return source.config, dict(source.packed(scheme, texts, progress))


def convert(
    path: str | Path,
    target: str | Path,
    scheme: Scheme,
    *,
    texts: Texts | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a packed checkpoint made from a published one. What fails leaves nothing behind.

    With `texts`, rows of token ids, quantised matrices are rounded so that errors are least where the model
    is most sensitive to them when it reads these texts.
    """
    source, target = Source.open(path), Path(target)
    writer = PackedWriter(source.config, scheme)
    with new_directory(target, writer.nbytes) as aside:
        own = {**source.config.to_dict(), "torch_dtype": str(source.checkpoint.dtype).removeprefix("torch.")}
        writer.write(aside, source.packed(scheme, texts, progress), own)
        copy_companions(Path(path), aside)
