"""What attention starts from: queries and keys normalised and rotated, keys and values in their pages.

Called by `attention` before any query is answered; see `attention_job`. Invariant: a token's numbers do not
depend on the others of its row, nor on the number of threads.

Addresses of the row: heads of width D lie end to end, in fp32 as (q | gate | k | v). A head's scratch holds D
floats.
"""

from __future__ import annotations

from .attention_cells import head_bytes, put
from .attention_job import FAST, read_job
from .jit import inline
from .simd import as_number, fill, fma, load, peek, poke, root, store, store_bf16, total, word
from .task import Task


@inline
def _normalised(x: int, weight: int, width: int, eps: float, out: int) -> None:
    """x / rms(x) * (1 + weight)."""
    squares = fill(0.0)
    for i in range(0, width * 4, 64):
        squares = fma(load(x + i), load(x + i), squares)
    scale = fill(1.0) / root(fill(total(squares) / width + eps))
    for i in range(0, width * 4, 64):
        store(out + i, load(x + i) * scale * (fill(1.0) + load(weight + i)))


@inline
def _rotate(x: int, cos: int, sin: int, half: int) -> None:
    """In place: number i against number i + half, for i < half."""
    whole = half // 16 * 16
    for i in range(0, whole * 4, 64):
        a, b, c, s = load(x + i), load(x + half * 4 + i), load(cos + i), load(sin + i)
        store(x + i, a * c - b * s)
        store(x + half * 4 + i, b * c + a * s)
    for i in range(whole * 4, half * 4, 4):
        a, b, c, s = peek(x + i), peek(x + half * 4 + i), peek(cos + i), peek(sin + i)
        poke(x + i, a * c - b * s)
        poke(x + half * 4 + i, b * c + a * s)


@inline
def _put_query(x: int, width: int, scale: float, rounded: bool, out: int) -> None:
    """Multiplied, as bf16 or fp32."""
    for i in range(0, width, 16):
        if rounded:
            store_bf16(out + i * 2, load(x + i * 4) * fill(scale))
        else:
            store(out + i * 4, load(x + i * 4) * fill(scale))


def prepare_share(address: int, thread: int, threads: int) -> None:
    """A thread's tokens."""
    job = read_job(address)
    head, share, group = job.width * 4, job.query_heads, job.key_heads
    query_bytes = job.width * (2 if job.kind == FAST else 4)
    cell_bytes = head_bytes(job.kind, job.width)
    work, eps, scale = job.desks + thread * head, as_number(job.eps), as_number(job.scale)
    for t in range(job.tokens * thread // threads, job.tokens * (thread + 1) // threads):
        x, turn = job.rows + t * job.row_step, t * job.half * 4
        for h in range(share):
            _normalised(x + h * head, job.q_norm, job.width, eps, work)
            _rotate(work, job.cos + turn, job.sin + turn, job.half)
            _put_query(work, job.width, scale, job.kind == FAST, job.queries + (t * share + h) * query_bytes)
        place = word(job.cells + 8 * t)
        cell = place // job.page_size * job.page_step + place % job.page_size * group * cell_bytes
        x += 2 * share * head
        for g in range(group):
            _normalised(x + g * head, job.k_norm, job.width, eps, work)
            _rotate(work, job.cos + turn, job.sin + turn, job.half)
            put(job.kind, work, job.width, job.keys + cell + g * cell_bytes)
            put(job.kind, x + (group + g) * head, job.width, job.values + cell + g * cell_bytes)


preparing = Task(prepare_share)
