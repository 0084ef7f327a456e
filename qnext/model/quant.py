"""Quantised weights: the parameters of `Qwen3Next` rounded into parts that the CPU kernels read, and back.

`pack_model` serves a model in memory, `pack_section` whoever goes through a checkpoint in pieces;
`unpack_model` fills a model with the very numbers that the parts mean, as the kernels' twin and for devices
without such kernels. Invariant: beside what is packed, floats are held for one matrix (one expert) at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from qnext.kernels import memory
from qnext.kernels.cpu.rounding import round_into
from qnext.kernels.packed import BITS, LINE, ROWS, ZERO, Packed, dequantise, quantise, stored_shape

from .packed_layout import Part, parts, sections
from .scheme import Scheme
from .weights import Network

Parts = dict[str, Packed | Tensor]
CHUNK = 1 << 22  # numbers moved at a time


def pack_model(model: Network, scheme: Scheme) -> Parts:
    """The packed form of a model in memory, which stays as it is."""
    scheme.check_rules(part.name for part in parts(model.config) if part.packed)
    parameters = {name: weight.detach() for name, weight in model.named_parameters()}
    packed: Parts = {}
    for _, section in sections(model.config):
        packed.update(pack_section(section, parameters, scheme))
    return packed


def pack_section(
    section: Iterable[Part],
    parameters: Mapping[str, Tensor],
    scheme: Scheme,
    importance: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[str, Packed | Tensor]]:
    """Some parts of the packed form, made from the parameters that they name.

    `importance` [M, K] of a part says what an error in each column costs; parts without are rounded to the
    nearest codes.
    """
    for part in section:
        sources = [parameters[name] for name in part.sources]
        if part.packed:
            yield part.name, _pack(part, sources, scheme, (importance or {}).get(part.name))
        else:
            dtype = torch.float32 if part.form == "vector" else getattr(torch, scheme.plain)
            yield part.name, torch.cat(sources).to(dtype)


def unpack_model(packed: Parts, model: Network) -> None:
    """Fill the parameters of `model` with what `packed` means; the output matrix must be its own."""
    assert not model.config.tie_word_embeddings, "the packed output matrix is no copy of the embedding"
    parameters = {name: weight.detach() for name, weight in model.named_parameters()}
    for part in parts(model.config):
        stored, targets = packed[part.name], [parameters[name] for name in part.sources]
        if isinstance(stored, Tensor):
            _share(stored, targets)
        else:
            table = _table(part)[: stored.rows]
            for index, target in enumerate(targets[0].unbind() if part.count else [None]):
                floats = torch.empty(part.rows, part.columns)
                for first, piece in _pieces(stored, index):
                    rows = table[first : first + piece.rows]
                    floats[rows[rows >= 0]] = dequantise(piece)[rows >= 0]
                _share(floats, targets if target is None else [target])


def empty(part: Part, scheme: Scheme, device: str = "cpu") -> Packed:
    """Room for a packed part."""
    kind, (*lead, rows, columns) = scheme.kind_of(part.name), part.shape
    blocks, width = stored_shape(kind, scheme.group, rows, columns)
    lines, coded = width * ROWS * BITS[kind] // (8 * LINE), kind in ZERO
    shapes = (*lead, blocks, lines, LINE), ((*lead, blocks, width // scheme.group, ROWS) if coded else (0,))
    if device == "cpu":
        data, scales = memory.take(shapes[0], torch.uint8), memory.take(shapes[1], torch.bfloat16)
    else:
        data = torch.empty(shapes[0], dtype=torch.uint8, device=device)
        scales = torch.empty(shapes[1], dtype=torch.bfloat16, device=device)
    return Packed(data, scales, kind, scheme.group if coded else width, rows, columns)


def _pack(part: Part, sources: list[Tensor], scheme: Scheme, importance: Tensor | None) -> Packed:
    packed, table = empty(part, scheme), _table(part)
    floats = sources[0].flatten(0, -2) if part.count else torch.cat(sources)
    starts = torch.arange(part.count or 1)[:, None] * part.rows
    tables = torch.where(table < 0, -1, table + starts)  # a matrix a row
    if packed.kind in ZERO:
        round_into(packed, floats, tables.flatten(), importance)
        if not packed.scales.isfinite().all():
            raise ValueError(f"{part.name} cannot be {packed.kind}: a weight is not a finite number")
        return packed
    for index, order in enumerate(tables):
        for first, piece in _pieces(packed, index):
            rows = order[first : first + piece.rows]
            some = floats[rows.clamp(min=0)].masked_fill_((rows < 0)[:, None], 0)
            piece.data.copy_(quantise(some, piece.kind).data)
    return packed


def _table(part: Part) -> Tensor:
    """Which row of a matrix each stored row holds, in whole blocks; -1 for zeros."""
    if part.form == "matrix":
        return F.pad(torch.arange(part.rows), (0, -part.rows % ROWS), value=-1)
    halves = torch.arange(part.rows).view(2, -1)
    halves = F.pad(halves, (0, -halves.shape[1] % ROWS), value=-1)
    blocks: Tensor = halves.unflatten(1, (-1, ROWS)).transpose(0, 1).flatten()
    return blocks


def _pieces(packed: Packed, index: int) -> Iterator[tuple[int, Packed]]:
    """One matrix of several, in views of whole blocks, each with its first row."""
    step = max(CHUNK // (packed.width * ROWS), 1)
    data, scales = packed.data.flatten(0, -4)[index] if packed.data.ndim > 3 else packed.data, packed.scales
    if scales.ndim > 3:
        scales = scales.flatten(0, -4)[index]
    for block in range(0, len(data), step):
        first = block * ROWS
        some = scales[block : block + step] if scales.ndim == 3 else scales
        rows = min(step * ROWS, packed.rows - first)
        yield first, packed._replace(data=data[block : block + step], scales=some, rows=rows)


def _share(rows: Tensor, targets: list[Tensor]) -> None:
    """Hand out rows to the parameters they came from."""
    for some, target in zip(rows.split([len(target) for target in targets]), targets, strict=True):
        target.copy_(some)
