"""The loops of `delta_rule`: all that is no matrix product. Names of shapes are its own.

`spans` [N, 2]: the tokens of each chunk in the row; what lies behind the end of a chunk is zero. Sums of
log-decays and their gradients are float64: differences of the ones, and sums of the others, nearly cancel.
"""

from __future__ import annotations

import numpy as np

from .numbers import exp, loops, one, put, wide, zero

TINY = np.float32(1e-6)


@loops
def lay_out(qs, q_pitch, ks, k_pitch, spans, qk_NK2LC):  # type: ignore[no-untyped-def]
    """Queries and keys, normalised, queries also times C**-0.5."""
    count, keys, tokens, width = qk_NK2LC.shape
    size = tokens // 2
    for n in range(count):
        for h in range(keys):
            lay_unit(
                qs, q_pitch, h * width, spans[n], one / np.sqrt(np.float32(width)), qk_NK2LC[n, h, :size]
            )
            lay_unit(ks, k_pitch, h * width, spans[n], one, qk_NK2LC[n, h, size:])


@loops
def lay_unit(xs, pitch, column, span, scale, out_LC):  # type: ignore[no-untyped-def]
    size, width = out_LC.shape
    for i in range(size):
        out, t = out_LC[i], span[0] + i
        if t < span[1]:
            x = xs[t * pitch + column : t * pitch + column + width]
            total = zero
            for c in range(width):
                total += wide(x[c]) * wide(x[c])
            factor = scale / np.sqrt(total + TINY)
            for c in range(width):
                put(out, c, wide(x[c]) * factor)
        else:
            for c in range(width):
                put(out, c, zero)


@loops
def add_up(g_TV, spans, sums_NVL):  # type: ignore[no-untyped-def]
    count, heads, size = sums_NVL.shape
    for n in range(count):
        for v in range(heads):
            total = 0.0
            for i in range(size):
                if spans[n, 0] + i < spans[n, 1]:
                    total += np.float64(g_TV[spans[n, 0] + i, v])
                sums_NVL[n, v, i] = total


@loops
def weigh(products_NK2LL, sums_NVL, beta_TV, spans, weights_NVLL, inverse_NVLL):  # type: ignore[no-untyped-def]
    """P and (I + A)^-1."""
    count, heads, size = sums_NVL.shape
    each = heads // products_NK2LL.shape[1]
    left = np.empty(size, np.float32)
    inverse = np.empty((size, size), np.float32)
    for n in range(count):
        tokens = spans[n, 1] - spans[n, 0]
        for v in range(heads):
            sums, products = sums_NVL[n, v], products_NK2LL[n, v // each]
            for i in range(size):
                out, pairs = weights_NVLL[n, v, i], products[i]
                for j in range(i + 1):
                    left[j] = exp(np.float32(sums[i] - sums[j]))
                    put(out, j, wide(pairs[j]) * left[j])
                for j in range(i + 1, size):
                    put(out, j, zero)
                found = inverse[i]
                found[:] = zero
                found[i] = one
                if i < tokens:
                    beta, pairs = beta_TV[spans[n, 0] + i, v], products[size + i]
                    for j in range(i):
                        above, share = inverse[j], beta * wide(pairs[j]) * left[j]
                        for c in range(j + 1):
                            found[c] -= share * above[c]
                out = inverse_NVLL[n, v, i]
                for j in range(size):
                    put(out, j, found[j])


@loops
def aim(reads_NK2LX, vs, v_pitch, sums_NVL, beta_TV, spans, aims_NVLU):  # type: ignore[no-untyped-def]
    """X."""
    count, heads, size, width = aims_NVLU.shape
    each = heads // reads_NK2LX.shape[1]
    for n in range(count):
        for v in range(heads):
            for i in range(size):
                out, t = aims_NVLU[n, v, i], spans[n, 0] + i
                if t < spans[n, 1]:
                    at = v % each * width
                    read = reads_NK2LX[n, v // each, size + i, at : at + width]
                    value = vs[t * v_pitch + v * width : t * v_pitch + (v + 1) * width]
                    beta, grown = beta_TV[t, v], exp(np.float32(sums_NVL[n, v, i]))
                    for u in range(width):
                        put(out, u, beta * (wide(value[u]) - grown * wide(read[u])))
                else:
                    for u in range(width):
                        put(out, u, zero)


@loops
def write_out(reads_NK2LX, inner_NVLU, sums_NVL, spans, out_TVU):  # type: ignore[no-untyped-def]
    """O."""
    count, heads, _, width = inner_NVLU.shape
    each = heads // reads_NK2LX.shape[1]
    for n in range(count):
        for i in range(spans[n, 1] - spans[n, 0]):
            for v in range(heads):
                at = v % each * width
                read, inner = reads_NK2LX[n, v // each, i, at : at + width], inner_NVLU[n, v, i]
                out, grown = out_TVU[spans[n, 0] + i, v], exp(np.float32(sums_NVL[n, v, i]))
                for u in range(width):
                    out[u] = grown * wide(read[u]) + wide(inner[u])


@loops
def fade(fresh_NVLU, sums_NVL, kept_NKLX):  # type: ignore[no-untyped-def]
    """What is left of R at the end of the chunk."""
    count, heads, size, width = fresh_NVLU.shape
    each = heads // kept_NKLX.shape[1]
    for n in range(count):
        for v in range(heads):
            last, at = sums_NVL[n, v, size - 1], v % each * width
            for i in range(size):
                fresh, kept = fresh_NVLU[n, v, i], kept_NKLX[n, v // each, i, at : at + width]
                left = exp(np.float32(last - sums_NVL[n, v, i]))
                for u in range(width):
                    put(kept, u, left * wide(fresh[u]))


@loops
def carry(added_NKCX, sums_NVL, state_NKCX):  # type: ignore[no-untyped-def]
    """S after the chunk, in place."""
    count, heads, size = sums_NVL.shape
    keys, rows, parts = state_NKCX.shape[1:]
    each = heads // keys
    width = parts // each
    for n in range(count):
        for v in range(heads):
            at, left = v % each * width, exp(np.float32(sums_NVL[n, v, size - 1]))
            for c in range(rows):
                state = state_NKCX[n, v // each, c, at : at + width]
                added = added_NKCX[n, v // each, c, at : at + width]
                for u in range(width):
                    state[u] = left * state[u] + wide(added[u])


@loops
def lay_grads(  # type: ignore[no-untyped-def]
    grad_TVU, sums_NVL, spans, reads_NK2LX, slopes_NV2LU, reads_grad_NK2LX, sums_grad_NVL
):
    """dO, and e^G dO: what the queries' reads get."""
    count, heads, size = sums_NVL.shape
    width = grad_TVU.shape[2]
    each = heads // reads_NK2LX.shape[1]
    for n in range(count):
        for v in range(heads):
            at = v % each * width
            for i in range(size):
                slope, t = slopes_NV2LU[n, v, size + i], spans[n, 0] + i
                pull = reads_grad_NK2LX[n, v // each, i, at : at + width]
                read = reads_NK2LX[n, v // each, i, at : at + width]
                if t < spans[n, 1]:
                    grad, grown, along = grad_TVU[t, v], exp(np.float32(sums_NVL[n, v, i])), zero
                    for u in range(width):
                        put(slope, u, grad[u])
                        put(pull, u, grown * grad[u])
                        along += grown * grad[u] * wide(read[u])
                    sums_grad_NVL[n, v, i] += np.float64(along)
                else:
                    for u in range(width):
                        put(slope, u, zero)
                        put(pull, u, zero)


@loops
def join(  # type: ignore[no-untyped-def]
    direct_NVLU, carried_NKLX, fresh_NVLU, sums_NVL, fresh_grad_NVLU, kept_NKLX, sums_grad_NVL
):
    """dR, from the outputs and from the state after the chunk; and what `fade` gave once more."""
    count, heads, size, width = fresh_NVLU.shape
    each = heads // kept_NKLX.shape[1]
    for n in range(count):
        for v in range(heads):
            last, at = sums_NVL[n, v, size - 1], v % each * width
            for i in range(size):
                fresh, kept = fresh_NVLU[n, v, i], kept_NKLX[n, v // each, i, at : at + width]
                direct, carried = direct_NVLU[n, v, i], carried_NKLX[n, v // each, i, at : at + width]
                out = fresh_grad_NVLU[n, v, i]
                left, along = exp(np.float32(last - sums_NVL[n, v, i])), zero
                for u in range(width):
                    put(out, u, wide(direct[u]) + left * wide(carried[u]))
                    along += left * wide(fresh[u]) * wide(carried[u])
                    put(kept, u, left * wide(fresh[u]))
                sums_grad_NVL[n, v, i] -= np.float64(along)
                sums_grad_NVL[n, v, size - 1] += np.float64(along)


@loops
def part(  # type: ignore[no-untyped-def]
    slopes_NV2LU,
    reads_NK2LX,
    vs,
    v_pitch,
    sums_NVL,
    beta_TV,
    spans,
    reads_grad_NK2LX,
    v_grad_TVU,
    sums_grad_NVL,
    beta_grad_NVL,
):
    """From dX those of values and of the keys' reads."""
    count, heads, size = sums_NVL.shape
    width = v_grad_TVU.shape[2]
    each = heads // reads_NK2LX.shape[1]
    for n in range(count):
        for v in range(heads):
            at = v % each * width
            for i in range(size):
                t = spans[n, 0] + i
                pull = reads_grad_NK2LX[n, v // each, size + i, at : at + width]
                if t < spans[n, 1]:
                    slope, read = slopes_NV2LU[n, v, i], reads_NK2LX[n, v // each, size + i, at : at + width]
                    value = vs[t * v_pitch + v * width : t * v_pitch + (v + 1) * width]
                    beta, grown = beta_TV[t, v], exp(np.float32(sums_NVL[n, v, i]))
                    out, of_beta, of_read = v_grad_TVU[t, v], zero, zero
                    for u in range(width):
                        dx, seen = wide(slope[u]), grown * wide(read[u])
                        put(out, u, beta * dx)
                        put(pull, u, -(beta * grown * dx))
                        of_beta += dx * (wide(value[u]) - seen)
                        of_read += beta * dx * seen
                    beta_grad_NVL[n, v, i] += np.float64(of_beta)
                    sums_grad_NVL[n, v, i] -= np.float64(of_read)
                else:
                    for u in range(width):
                        put(pull, u, zero)


@loops
def weigh_back(  # type: ignore[no-untyped-def]
    slopes_NV2LL, products_NK2LL, sums_NVL, beta_TV, spans, products_grad_NK2LL, sums_grad_NVL, beta_grad_NVL
):
    """`slopes`: dX R^T = -dA over dO R^T = dP."""
    count, heads, size = sums_NVL.shape
    keys = products_NK2LL.shape[1]
    each = heads // keys
    found = np.empty((2 * size, size), np.float32)
    for n in range(count):
        tokens = spans[n, 1] - spans[n, 0]
        for h in range(keys):
            found[:] = zero
            for v in range(h * each, (h + 1) * each):
                sums = sums_NVL[n, v]
                sums_grad = sums_grad_NVL[n, v]
                for i in range(tokens):
                    beta, of_beta, of_sum = beta_TV[spans[n, 0] + i, v], zero, zero
                    of_weights, of_system = slopes_NV2LL[n, v, size + i], slopes_NV2LL[n, v, i]
                    qk, kk = products_NK2LL[n, h, i], products_NK2LL[n, h, size + i]
                    qk_grad, kk_grad = found[i], found[size + i]
                    for j in range(i):
                        left = exp(np.float32(sums[i] - sums[j]))
                        pull = wide(of_weights[j]) * left
                        qk_grad[j] += pull
                        push = -wide(of_system[j]) * left
                        kk_grad[j] += beta * push
                        of_beta += push * wide(kk[j])
                        both = pull * wide(qk[j]) + beta * push * wide(kk[j])
                        of_sum += both
                        sums_grad[j] -= np.float64(both)
                    qk_grad[i] += wide(of_weights[i])
                    sums_grad[i] += np.float64(of_sum)
                    beta_grad_NVL[n, v, i] += np.float64(of_beta)
            for i in range(2 * size):
                out = products_grad_NK2LL[n, h, i]
                for j in range(size):
                    put(out, j, found[i, j])


@loops
def carry_back(added_NKCX, state_NKCX, sums_NVL, state_grad_NKCX, sums_grad_NVL):  # type: ignore[no-untyped-def]
    """dS before the chunk, in place."""
    count, heads, size = sums_NVL.shape
    keys, rows, parts = state_NKCX.shape[1:]
    each = heads // keys
    width = parts // each
    for n in range(count):
        for v in range(heads):
            at, left = v % each * width, exp(np.float32(sums_NVL[n, v, size - 1]))
            for c in range(rows):
                state, added = state_NKCX[n, v // each, c], added_NKCX[n, v // each, c]
                grad, along = state_grad_NKCX[n, v // each, c], zero
                for u in range(at, at + width):
                    along += left * grad[u] * wide(state[u])
                    grad[u] = left * grad[u] + wide(added[u])
                sums_grad_NVL[n, v, size - 1] += np.float64(along)


@loops
def lay_back(qs, q_pitch, ks, k_pitch, pulls_NK2LC, more_NKLC, spans, q_grad_TKC, k_grad_TKC):  # type: ignore[no-untyped-def]
    """Through the norms of queries and keys, and back into the row."""
    count, keys, size, width = more_NKLC.shape
    scale = one / np.sqrt(np.float32(width))
    pull = np.empty(width, np.float32)
    for n in range(count):
        for i in range(spans[n, 1] - spans[n, 0]):
            t = spans[n, 0] + i
            for h in range(keys):
                of_q, of_k, more = pulls_NK2LC[n, h, i], pulls_NK2LC[n, h, size + i], more_NKLC[n, h, i]
                for c in range(width):
                    pull[c] = scale * wide(of_q[c])
                at = t * q_pitch + h * width
                unit_back(qs[at : at + width], pull, q_grad_TKC[t, h])
                for c in range(width):
                    pull[c] = wide(of_k[c]) + wide(more[c])
                at = t * k_pitch + h * width
                unit_back(ks[at : at + width], pull, k_grad_TKC[t, h])


@loops
def unit_back(x_C, pull_C, out_C):  # type: ignore[no-untyped-def]
    total, along = TINY, zero
    for c in range(len(pull_C)):
        total += wide(x_C[c]) * wide(x_C[c])
        along += wide(x_C[c]) * pull_C[c]
    factor = one / np.sqrt(total)
    along = along * factor * factor
    for c in range(len(pull_C)):
        put(out_C, c, factor * (pull_C[c] - wide(x_C[c]) * along))


@loops
def take_apart(sums_grad_NVL, beta_grad_NVL, spans, g_grad_TV, beta_grad_TV):  # type: ignore[no-untyped-def]
    """A log-decay is in the sums of its own token and of all later ones of the chunk."""
    count, heads, size = sums_grad_NVL.shape
    for n in range(count):
        for v in range(heads):
            total = 0.0
            for i in range(size - 1, -1, -1):
                total += sums_grad_NVL[n, v, i]
                t = spans[n, 0] + i
                if t < spans[n, 1]:
                    g_grad_TV[t, v] = np.float32(total)
                    beta_grad_TV[t, v] = np.float32(beta_grad_NVL[n, v, i])
