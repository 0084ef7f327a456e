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

from qnext.kernels.packed import BITS, LINE, ROWS, ZERO, Packed, dequantise, quantise, stored_shape

from .packed_layout import Part, parts, sections
from .scheme import Scheme
from .weights import Network

Parts = dict[str, Packed | Tensor]
CHUNK = 1 << 18  # numbers rounded at a time: float32 copies of so many stay in the cache


def pack_model(model: Network, scheme: Scheme) -> Parts:
    """The packed form of a model in memory, which stays as it is."""
    scheme.check_rules(part.name for part in parts(model.config) if part.packed)
    parameters = {name: weight.detach() for name, weight in model.named_parameters()}
    packed: Parts = {}
    for _, section in sections(model.config):
        packed.update(pack_section(section, parameters, scheme))
    return packed


def pack_section(
    section: Iterable[Part], parameters: Mapping[str, Tensor], scheme: Scheme
) -> Iterator[tuple[str, Packed | Tensor]]:
    """Some parts of the packed form, made from the parameters that they name."""
    for part in section:
        sources = [parameters[name] for name in part.sources]
        if part.packed:
            yield part.name, _pack(part, sources, scheme)
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
            for index, target in enumerate(targets[0].unbind() if part.count else [None]):
                floats = _dequantise(stored, index)
                if part.form == "swiglu":
                    floats = _deinterleave(floats, part.rows // 2)
                _share(floats, targets if target is None else [target])


def empty(part: Part, scheme: Scheme, device: str = "cpu") -> Packed:
    """Room for a packed part."""
    kind, (*lead, rows, columns) = scheme.kind_of(part.name), part.shape
    blocks, width = stored_shape(kind, scheme.group, rows, columns)
    lines, coded = width * ROWS * BITS[kind] // (8 * LINE), kind in ZERO
    data = torch.empty(*lead, blocks, lines, LINE, dtype=torch.uint8, device=device)
    shape = (*lead, blocks, width // scheme.group, ROWS) if coded else (0,)
    scales = torch.empty(shape, dtype=torch.bfloat16, device=device)
    return Packed(data, scales, kind, scheme.group if coded else width, rows, columns)


def _pack(part: Part, sources: list[Tensor], scheme: Scheme) -> Packed:
    packed = empty(part, scheme)
    for index, matrix in enumerate(sources[0].unbind() if part.count else [torch.cat(sources)]):
        floats = _interleave(matrix) if part.form == "swiglu" else matrix
        for first, piece in _pieces(packed, index):
            rounded = quantise(floats[first : first + piece.rows], piece.kind, piece.group)
            if not rounded.scales.isfinite().all():
                raise ValueError(f"{part.name} cannot be {piece.kind}: a weight is not a finite number")
            piece.data.copy_(rounded.data)
            piece.scales.copy_(rounded.scales)
    return packed


def _dequantise(packed: Packed, index: int) -> Tensor:
    floats = torch.empty(packed.rows, packed.columns)
    for first, piece in _pieces(packed, index):
        floats[first : first + piece.rows] = dequantise(piece)
    return floats


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


def _interleave(gate_up: Tensor) -> Tensor:
    """[2I, K], gate rows first -> blocks of 16 gate rows and of their up rows in turn, I in whole blocks."""
    halves: Tensor = torch.stack(gate_up.chunk(2))
    halves = F.pad(halves, (0, 0, 0, -halves.shape[1] % ROWS))
    blocks: Tensor = halves.unflatten(1, (-1, ROWS)).transpose(0, 1).flatten(0, 2)
    return blocks


def _deinterleave(blocks: Tensor, inner: int) -> Tensor:
    """The reverse of `_interleave`; `inner` is I."""
    halves: Tensor = blocks.unflatten(0, (-1, 2, ROWS)).transpose(0, 1).flatten(1, 2)
    return halves[:, :inner].flatten(0, 1)


def _share(rows: Tensor, targets: list[Tensor]) -> None:
    """Hand out rows to the parameters they came from."""
    for some, target in zip(rows.split([len(target) for target in targets]), targets, strict=True):
        target.copy_(some)
