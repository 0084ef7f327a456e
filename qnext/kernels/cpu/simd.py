"""Vectors of 16 numbers inside Numba, and the instructions that matter, a few lines each.

Used by every CPU kernel. Addresses are plain integers (int64) that nothing here checks. Where an instruction
is named, the `generic` level has the same arithmetic in portable operations, lowered by LLVM to what there
is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from . import isa
from .jit import align_stack

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
VF, VI, VB, VH = (ir.VectorType(*kind) for kind in ((F32, 16), (I32, 16), (I8, 64), (I16, 32)))
Build = Any  # llvmlite's IRBuilder


class BF16Type(ir.Type):
    """llvmlite has no name for it."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BF16Type)

    def __hash__(self) -> int:
        return hash(BF16Type)


class Vector(types.Type):
    """A Numba type that is one LLVM value."""

    def __init__(self, name: str, llvm: ir.Type) -> None:
        super().__init__(name=name)
        self.llvm = llvm


class Registers(Vector):
    """A few vectors beside each other: registers, where loops over them have constant bounds."""

    def __init__(self, of: Vector) -> None:
        super().__init__(f"registers of {of.name}", of.llvm.as_pointer())
        self.of = of


@register_model(Vector)
@register_model(Registers)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.llvm)


f32x16, i32x16 = Vector("f32x16", VF), Vector("i32x16", VI)
floats, integers = Registers(f32x16), Registers(i32x16)
address, number, integer, literal = types.int64, types.float32, types.int32, "literal"


def op(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make `function(builder, *values)` callable in kernels. `literal` arguments are given as Python ints."""

    def decorate(function: Callable[..., Any]) -> Any:
        def typed(*given: Any) -> Any:
            kinds = [own if want == literal else want for own, want in zip(given, arguments, strict=True)]

            def codegen(context: Any, build: Build, _signature: Any, values: Any) -> Any:
                known = zip(given, arguments, values, strict=True)
                values = [own.literal_value if want == literal else value for own, want, value in known]
                found = function(build, *values)
                return context.get_dummy_value() if found is None else found

            return result(*kinds), codegen

        # Numba reads the names and the number of arguments off a real signature.
        names = "".join(f", a{i}" for i in range(len(arguments)))
        scope: dict[str, Any] = {"typed": typed}
        exec(f"def {function.__name__}(typing{names}):\n    return typed({names[2:]})", scope)
        return intrinsic(prefer_literal=literal in arguments)(scope[function.__name__])

    return decorate


def call(build: Build, name: str, result: ir.Type, *values: Any) -> Any:
    """Call an LLVM intrinsic."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return build.call(cgutils.get_or_insert_function(build.module, kind, name), values)


def splat(build: Build, value: Any, kind: ir.VectorType) -> Any:
    """One value in all places."""
    first = build.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    places = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
    return build.shuffle_vector(first, ir.Constant(kind, ir.Undefined), places)


def every(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def read(build: Build, where: Any, kind: ir.Type) -> Any:
    return build.load(build.inttoptr(where, ir.PointerType(kind)), align=1)


def write(build: Build, value: Any, where: Any) -> None:
    build.store(value, build.inttoptr(where, ir.PointerType(value.type)), align=1)


# Registers: `acc = registers_f32(8)`, then `acc[i]` is read and set.


@op(floats, literal)
def registers_f32(build: Build, count: int) -> Any:
    align_stack(build)
    return cgutils.alloca_once(build, VF, size=count)


@op(integers, literal)
def registers_i32(build: Build, count: int) -> Any:
    align_stack(build)
    return cgutils.alloca_once(build, VI, size=count)


def _get(_context: Any, build: Build, _signature: Any, values: Any) -> Any:
    return build.load(build.gep(values[0], [values[1]]))


def _set(context: Any, build: Build, _signature: Any, values: Any) -> Any:
    build.store(values[2], build.gep(values[0], [values[1]]))
    return context.get_dummy_value()


# Memory.


@op(f32x16, address)
def load(build: Build, p: Any) -> Any:
    """16 floats."""
    return read(build, p, VF)


@op(types.void, address, f32x16)
def store(build: Build, p: Any, x: Any) -> None:
    write(build, x, p)


@op(i32x16, address)
def load_i32(build: Build, p: Any) -> Any:
    """64 bytes as they are."""
    return read(build, p, VI)


@op(types.void, address, i32x16)
def store_i32(build: Build, p: Any, x: Any) -> None:
    write(build, x, p)


@op(number, address)
def peek(build: Build, p: Any) -> Any:
    """One float."""
    return read(build, p, F32)


@op(types.void, address, number)
def poke(build: Build, p: Any, x: Any) -> None:
    write(build, x, p)


@op(integer, address)
def peek_i32(build: Build, p: Any) -> Any:
    return read(build, p, I32)


@op(types.void, address, integer)
def poke_i32(build: Build, p: Any, x: Any) -> None:
    write(build, x, p)


@op(types.int64, address)
def word(build: Build, p: Any) -> Any:
    """An int64."""
    return read(build, p, I64)


@op(types.void, address, address)
def poke_word(build: Build, p: Any, x: Any) -> None:
    write(build, x, p)


@op(number, address)
def as_number(build: Build, bits: Any) -> Any:
    """The float whose bits are the low half of an int64."""
    return build.bitcast(build.trunc(bits, I32), F32)


@op(f32x16, address)
def spread(build: Build, p: Any) -> Any:
    """The float at an address in all places."""
    return splat(build, read(build, p, F32), VF)


@op(i32x16, address)
def spread_i32(build: Build, p: Any) -> Any:
    """The 4 bytes at an address in all places."""
    return splat(build, read(build, p, I32), VI)


@op(f32x16, address)
def load_bf16(build: Build, p: Any) -> Any:
    wide = build.zext(read(build, p, ir.VectorType(I16, 16)), VI)
    return build.bitcast(build.shl(wide, every(VI, 16)), VF)


def _rounded(build: Build, x: Any) -> Any:
    """The bits of the nearest bf16, ties to even; NaN stays NaN."""
    bits = build.bitcast(x, VI)
    odd = build.and_(build.lshr(bits, every(VI, 16)), every(VI, 1))
    rounded = build.lshr(build.add(build.add(bits, every(VI, 0x7FFF)), odd), every(VI, 16))
    bad = build.fcmp_unordered("uno", x, x)
    return build.trunc(build.select(bad, every(VI, 0x7FC0), rounded), ir.VectorType(I16, 16))


@op(types.void, address, f32x16)
def store_bf16(build: Build, p: Any, x: Any) -> None:
    """Rounded to the nearest, ties to even; NaN stays NaN."""
    write(build, _rounded(build, x), p)


def both_bf16(build: Build, x: Any, y: Any) -> Any:
    """Two vectors as halves, one after the other (vcvtne2ps2bf16, to which what is below 2**-126 is zero)."""
    name, kind = "llvm.x86.avx512bf16.cvtne2ps2bf16.512", ir.VectorType(BF16Type(), 32)
    return build.bitcast(call(build, name, kind, y, x), VH)


@op(types.void, address, f32x16, f32x16)
def store_bf16_pair(build: Build, p: Any, x: Any, y: Any) -> None:
    """Two vectors, one after the other, rounded like `store_bf16`, or as `both_bf16` where there is that."""
    if isa.has_bf16():
        write(build, both_bf16(build, x, y), p)
    else:
        write(build, _rounded(build, x), p)
        write(build, _rounded(build, y), build.add(p, ir.Constant(I64, 32)))


@op(f32x16, address)
def load_i8(build: Build, p: Any) -> Any:
    """16 signed bytes as floats."""
    return build.sitofp(build.sext(read(build, p, ir.VectorType(I8, 16)), VI), VF)


@op(types.void, address, i32x16)
def store_i8(build: Build, p: Any, x: Any) -> None:
    """The low bytes of 16 integers."""
    write(build, build.trunc(x, ir.VectorType(I8, 16)), p)


@op(types.void, address, address, address)
def copy(build: Build, to: Any, source: Any, size: Any) -> None:
    """So many bytes; the two places must not overlap."""
    to, source = (build.inttoptr(p, ir.PointerType(I8)) for p in (to, source))
    call(build, "llvm.memcpy.p0.p0.i64", ir.VoidType(), to, source, size, ir.Constant(ir.IntType(1), 0))


def _prefetch(build: Build, p: Any, level: int) -> None:
    flags = [ir.Constant(I32, flag) for flag in (0, level, 1)]  # to read, how near, data
    call(build, "llvm.prefetch.p0", ir.VoidType(), build.inttoptr(p, ir.PointerType(I8)), *flags)


@op(types.void, address)
def prefetch(build: Build, p: Any) -> None:
    """Ask for a cache line that will be read soon."""
    _prefetch(build, p, 3)


@op(types.void, address)
def prefetch_l2(build: Build, p: Any) -> None:
    """Ask for a cache line, no nearer than the second cache: a stream that is asked for into the first one
    (prefetcht0) comes at half the speed on Zen 4, whose queue for that is short."""
    _prefetch(build, p, 2)


# Arithmetic. + - * / stand for themselves.


@op(f32x16, number)
def fill(build: Build, x: Any) -> Any:
    return splat(build, x, VF)


@op(i32x16, integer)
def fill_i32(build: Build, x: Any) -> Any:
    return splat(build, x, VI)


@op(f32x16, f32x16, f32x16, f32x16)
def fma(build: Build, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""
    return call(build, "llvm.fma.v16f32", VF, x, y, z)


@op(f32x16, f32x16, f32x16)
def larger(build: Build, x: Any, y: Any) -> Any:
    return call(build, "llvm.maxnum.v16f32", VF, x, y)


@op(f32x16, f32x16, f32x16)
def smaller(build: Build, x: Any, y: Any) -> Any:
    return call(build, "llvm.minnum.v16f32", VF, x, y)


@op(f32x16, f32x16)
def absolute(build: Build, x: Any) -> Any:
    return call(build, "llvm.fabs.v16f32", VF, x)


@op(f32x16, f32x16)
def nearest(build: Build, x: Any) -> Any:
    """Rounded to an integer, ties to even."""
    return call(build, "llvm.rint.v16f32", VF, x)


@op(f32x16, f32x16)
def root(build: Build, x: Any) -> Any:
    return call(build, "llvm.sqrt.v16f32", VF, x)


@op(number, f32x16)
def largest(build: Build, x: Any) -> Any:
    return call(build, "llvm.vector.reduce.fmax.v16f32", F32, x)


@op(number, f32x16)
def total(build: Build, x: Any) -> Any:
    """The sum of 16, by halves: the same on every machine."""
    for half in (8, 4, 2, 1):
        kind = ir.VectorType(I32, half)
        low, high = (ir.Constant(kind, list(range(at, at + half))) for at in (0, half))
        x = build.fadd(build.shuffle_vector(x, x, low), build.shuffle_vector(x, x, high))
    return build.extract_element(x, ir.Constant(I32, 0))


@op(integer, i32x16)
def total_i32(build: Build, x: Any) -> Any:
    return call(build, "llvm.vector.reduce.add.v16i32", I32, x)


@op(f32x16, i32x16)
def to_float(build: Build, x: Any) -> Any:
    return build.sitofp(x, VF)


@op(i32x16, f32x16)
def to_int(build: Build, x: Any) -> Any:
    """Cut towards zero."""
    return build.fptosi(x, VI)


@op(f32x16, i32x16)
def as_float(build: Build, x: Any) -> Any:
    """The same bits."""
    return build.bitcast(x, VF)


@op(i32x16, i32x16, literal)
def shift_right(build: Build, x: Any, count: int) -> Any:
    """Zeros come in."""
    return build.lshr(x, every(VI, count))


@op(i32x16, i32x16, integer)
def shift_right_by(build: Build, x: Any, count: Any) -> Any:
    """Zeros come in."""
    return build.lshr(x, splat(build, count, VI))


@op(i32x16, i32x16, literal)
def shift_left(build: Build, x: Any, count: int) -> Any:
    return build.shl(x, every(VI, count))


@op(i32x16, i32x16, literal)
def masked(build: Build, x: Any, bits: int) -> Any:
    """x & bits in each place (bits as a signed 32-bit integer)."""
    return build.and_(x, every(VI, bits))


@op(i32x16, i32x16, literal)
def less(build: Build, x: Any, number: int) -> Any:
    """x - number in each byte, whatever carries (vpsubb)."""
    return build.bitcast(build.sub(build.bitcast(x, VB), every(VB, number)), VI)


@op(f32x16, i32x16, integer)
def nibble(build: Build, x: Any, shift: Any) -> Any:
    """(x >> shift & 15) - 8 as floats (vpermps in a table of 16)."""
    moved = build.lshr(x, splat(build, shift, VI))
    if isa.has("avx512vnni"):
        table = ir.Constant(VF, [float(code - 8) for code in range(16)])
        return call(build, "llvm.x86.avx512.permvar.sf.512", VF, table, moved)
    return build.sitofp(build.sub(build.and_(moved, every(VI, 15)), every(VI, 8)), VF)


@op(i32x16, i32x16, i32x16, i32x16)
def dot_u8_i8(build: Build, total: Any, u: Any, s: Any) -> Any:
    """To each sum, 4 products of unsigned and signed bytes (vpdpbusd)."""
    if isa.has("avx512vnni"):
        u, s = build.bitcast(u, VB), build.bitcast(s, VB)
        return call(build, "llvm.x86.avx512.vpdpbusd.512", VI, total, u, s)
    # A product fits in 16 bits, a sum of two does not.
    u, s, eight = build.bitcast(u, VH), build.bitcast(s, VH), every(VH, 8)
    even = build.mul(build.and_(u, every(VH, 255)), build.ashr(build.shl(s, eight), eight))
    odd = build.mul(build.lshr(u, eight), build.ashr(s, eight))
    for pair in (build.bitcast(even, VI), build.bitcast(odd, VI)):
        low = build.ashr(build.shl(pair, every(VI, 16)), every(VI, 16))
        total = build.add(total, build.add(low, build.ashr(pair, every(VI, 16))))
    return total


@op(f32x16, f32x16, i32x16, i32x16)
def dot_bf16(build: Build, total: Any, x: Any, y: Any) -> Any:
    """To each sum, 2 products of bf16 numbers (vdpbf16ps)."""
    if isa.has_bf16():
        x, y = (build.bitcast(v, ir.VectorType(BF16Type(), 32)) for v in (x, y))
        return call(build, "llvm.x86.avx512bf16.dpbf16ps.512", VF, total, x, y)
    high, shift = every(VI, -65536), every(VI, 16)
    for half in (lambda v: build.shl(v, shift), lambda v: build.and_(v, high)):
        left, right = (build.bitcast(half(v), VF) for v in (x, y))
        total = call(build, "llvm.fma.v16f32", VF, left, right, total)
    return total


def _operators() -> None:
    """+ - * / of two vectors of floats, + and - of two of integers, and `registers[i]`."""
    table = [
        (operator.add, f32x16, "fadd"),
        (operator.sub, f32x16, "fsub"),
        (operator.mul, f32x16, "fmul"),
        (operator.truediv, f32x16, "fdiv"),
        (operator.add, i32x16, "add"),
        (operator.sub, i32x16, "sub"),
    ]
    cases: dict[Any, list[Any]] = {}
    for sign, kind, name in table:

        def lower(_context: Any, build: Build, _signature: Any, values: Any, name: str = name) -> Any:
            return getattr(build, name)(*values)

        lower_builtin(sign, kind, kind)(lower)
        cases.setdefault(sign, []).append(signature(kind, kind, kind))
    for row in (floats, integers):
        lower_builtin(operator.getitem, row, types.intp)(_get)
        lower_builtin(operator.setitem, row, types.intp, row.of)(_set)
        cases.setdefault(operator.getitem, []).append(signature(row.of, row, types.intp))
        cases.setdefault(operator.setitem, []).append(signature(types.none, row, types.intp, row.of))
    for sign, signatures in cases.items():
        infer_global(sign)(type(f"Vector_{sign.__name__}", (ConcreteTemplate,), {"cases": signatures}))


_operators()
