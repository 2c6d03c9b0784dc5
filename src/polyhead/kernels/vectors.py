"""Vectors of eight float32 for functions that numba compiles: what its own loops do not become by themselves.

Only the modules with such loops import this, when they are first asked for.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 8
"""Numbers in a vector: one register of AVX2, half of one of AVX-512, two of NEON."""

LONG = 2**40
"""Numbers, more than any array has: no index is checked against an array's length."""

_FLOAT, _INT, _BYTES = ir.FloatType(), ir.IntType(32), ir.IntType(8).as_pointer()
_VECTOR = ir.VectorType(_FLOAT, LANES)


class Vector(types.Type):
    """The type of `LANES` float32 in a register."""

    def __init__(self) -> None:
        super().__init__(name=f"polyhead.float32x{LANES}")


VECTOR = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Return the address of the element that the first two arguments name: an array and a place in it."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def load(_: Any, array: Any, place: Any) -> Any:
    """Return the eight numbers of an array from a place on: float32, or the upper halves of float32 (bfloat16)."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature, args)
        if signature.args[0].dtype == types.float32:
            return builder.load(builder.bitcast(address, _VECTOR.as_pointer()), align=4)
        halves = builder.load(builder.bitcast(address, ir.VectorType(ir.IntType(16), LANES).as_pointer()), align=2)
        bits = builder.zext(halves, ir.VectorType(_INT, LANES))
        return builder.bitcast(builder.shl(bits, ir.Constant(bits.type, [16] * LANES)), _VECTOR)

    return VECTOR(array, types.int64), code


@intrinsic
def store(_: Any, array: Any, place: Any, vector: Any) -> Any:
    """Write eight numbers into an array from a place on."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.bitcast(_address(context, builder, signature, args), _VECTOR.as_pointer())
        builder.store(args[2], address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, VECTOR), code


@intrinsic
def splat(_: Any, number: Any) -> Any:
    """Return one number eight times."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(undefined, args[0], ir.Constant(_INT, 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES))

    return VECTOR(types.float32), code


@intrinsic
def fma(_: Any, one: Any, other: Any, more: Any) -> Any:
    """Return ``one · other + more``, rounded once."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), args)

    return VECTOR(VECTOR, VECTOR, VECTOR), code


@intrinsic
def total(_: Any, vector: Any) -> Any:
    """Return the sum of eight numbers."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR]), name)
        return builder.call(function, [ir.Constant(_FLOAT, 0.0), args[0]], fastmath=("reassoc",))

    return types.float32(VECTOR), code


@intrinsic
def prefetch(_: Any, array: Any, place: Any) -> Any:
    """Ask for what lies about an array's place, which need not exist, to be fetched into the nearest cache."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.bitcast(_address(context, builder, signature, args), _BYTES)
        kind = ir.FunctionType(ir.VoidType(), [_BYTES, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, *(ir.Constant(_INT, number) for number in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), code


@intrinsic
def float_of_bits(_: Any, bits: Any) -> Any:
    """Return the float32 that 32 bits are."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.int32), code


@intrinsic
def at_address(_: Any, number: Any) -> Any:
    """Return the pointer that a number is."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], _BYTES)

    return types.voidptr(types.int64), code


@njit(nogil=True)
def array_at(table: Any, place: int, dtype: Any) -> Any:
    """Return the array whose address stands at a place of a table."""
    return carray(at_address(table[place]), (LONG,), dtype)


@intrinsic
def taken(_: Any, array: Any, place: Any) -> Any:
    """Return a whole number in an array and leave one more there, which no other thread sees happen in two steps.

    What a thread wrote before is seen by those that take a number after it.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature, args)
        return builder.atomic_rmw("add", address, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(array, types.int64), code
