"""Whether what was emitted at the hints of symbolic sizes holds for any size.

What is emitted reads symbolic sizes from its tensors, and where a number stands in the graph instead it is one that
does not depend on them (see `Extent` and `Dim` for how). That is checked here by the shapes: run on symbolic sizes,
it must give the shape and the strides that were written, without a new assumption about any size.

One assumption can be made where a guard can be added: that no factor of a size is 1. Torch asks for it to tell whether
a reshape is a view, since a size of 1 has any stride. Whether it is enough is told by a run on sizes whose factors are
symbols by themselves, of which no more is known than the ranges that they are in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, statically_known_true

from ce_fx.capture.reading import Reading, read
from ce_fx.lower.value import LoweringError
from ce_fx.sizes import bases_of, hint, size_or_symbol
from ce_fx.tune.symbolic import like, silent


class _Guarded(LoweringError):
    """What was emitted asks whether a size is in some range."""

    def __init__(self, question: object) -> None:
        super().__init__(f"the plan would hold for some sizes only ({question})")


def read_for_any_size(
    module: GraphModule, leaves: Sequence[Tensor], output: Tensor, guards: bool = False
) -> tuple[Reading, tuple[SymInt, ...]]:
    """Read what was emitted on symbolic sizes.

    Args:
        module: in torch functions.
        leaves: fake values of its inputs, of symbolic sizes.
        output: fake value of the result as written.
        guards: whether it is enough that it holds where no factor of a size is 1.

    Returns:
        The reading, and the factors of sizes that must be above 1; none where it holds for any size.

    Raises:
        LoweringError: it would hold for some sizes only, or give another shape or strides than what is written.
    """
    mode = next(leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor))
    env = mode.shape_env or ShapeEnv()
    try:
        with env.error_on_new_guards(), silent():
            reading = _read(module, leaves)
            factors: tuple[SymInt, ...] = ()
    except _Guarded:
        if not guards:
            raise
        factors = _above_one(module, leaves, output, env)
        with env.suppress_guards():
            reading = _read(module, leaves)
    result = _result(module, reading)
    _check_layout(result.shape, result.stride(), output)
    return reading, factors


def _read(module: GraphModule, leaves: Sequence[Tensor]) -> Reading:
    try:
        reading = read(module, leaves)
    except RuntimeError as error:  # a guard that the trace itself asks for, between two ops
        raise _Guarded(error) from error
    if reading.failures:
        raise _Guarded(next(iter(reading.failures.values())))
    return reading


def _result(module: GraphModule, reading: Reading) -> Tensor:
    (last,) = module.graph.output_node().all_input_nodes
    fake: Tensor = reading.fakes[last]
    return fake


def _above_one(module: GraphModule, leaves: Sequence[Tensor], output: Tensor, env: ShapeEnv) -> tuple[SymInt, ...]:
    """The factors of the sizes of leaves, where it is enough to know of each that it is above 1.

    Raises:
        LoweringError: one is 1 now; or even so it would hold for some sizes only, or give another layout.
    """
    every = [size for leaf in leaves for size in (*leaf.shape, *leaf.stride()) if not isinstance(size, int)]
    bases = dict.fromkeys(base for size in every for base in bases_of(size.node.expr)[1])
    factors = {base: _size(base, env) for base in bases}
    if any(hint(factor) < 2 for factor in factors.values()):
        raise LoweringError("the plan would hold for some sizes only, and not for that of now")
    apart = ShapeEnv()
    symbols = {base: _new_symbol(hint(factor), env.bound_sympy(base), apart) for base, factor in factors.items()}
    table = {symbol.node.expr: base for base, symbol in symbols.items()}

    def renamed(size: Any) -> Any:
        if isinstance(size, int):
            return size
        number, parts = bases_of(size.node.expr)
        return prod((symbols[part] for part in parts), start=number)

    def original(size: Any) -> Any:
        return size if isinstance(size, int) else _size(size.node.expr.xreplace(table), env)

    with FakeTensorMode(shape_env=apart):
        renamed_leaves = [like(leaf, renamed) for leaf in leaves]
    with silent():
        renamed_reading = _read(module, renamed_leaves)
    asked = [guard.expr for guard in apart.guards]
    further = _asked_above_one(asked, renamed_reading, table, env) if asked else ()
    result = _result(module, renamed_reading)
    _check_layout(list(map(original, result.shape)), list(map(original, result.stride())), output)
    return (*factors.values(), *further)


def _asked_above_one(
    asked: Sequence[Any], reading: Reading, table: Mapping[Any, Any], env: ShapeEnv
) -> tuple[SymInt, ...]:
    """The factors of sizes within a reading, those behind a stride, that must be above 1 for what was asked to be so.

    Args:
        asked: sympy expressions that are true now.
        reading: of sizes whose factors are symbols.
        table: these symbols -> what they stand for.
        env: of the latter.

    Raises:
        LoweringError: even so it is not known.
    """
    fakes = [fake for fake in reading.fakes.values() if isinstance(fake, Tensor)]
    sizes: list[Any] = [size for fake in fakes for size in fake.shape if not isinstance(size, int)]
    bases = dict.fromkeys(base for size in sizes for base in bases_of(size.node.expr)[1] if not base.is_symbol)
    behind = {base: size for base in bases if hint(size := _size(base.xreplace(table), env)) > 1}
    clean = ShapeEnv()  # what was asked is known to be so where it was asked

    def symbol(base: Any) -> Any:
        known = base.xreplace(table)
        return _new_symbol(hint(_size(known, env)), env.bound_sympy(known), clean).node.expr

    symbols = {base: symbol(base) for base in (*table, *behind)}
    for question in asked:
        if not statically_known_true(clean.create_symboolnode(question.xreplace(symbols))):
            raise _Guarded(question)
    return tuple(size for base, size in behind.items() if any(question.has(base) for question in asked))


def _size(expression: Any, env: ShapeEnv) -> Any:
    """A sympy expression as a size."""
    value = int(expression.xreplace(env.backed_var_to_val))
    return value if expression.is_number else env.create_symintnode(expression, hint=value)


def _new_symbol(value: int, known: Any, env: ShapeEnv) -> Any:
    """A size of a symbol of its own, above 1 and in the range that it is known to be in."""
    from torch._dynamo.source import ConstantSource

    source = ConstantSource(f"size_{len(env.backed_var_to_val)}")
    symbol = env.create_symbol(value, source, DimDynamic.DYNAMIC)
    env.constrain_symbol_range(symbol, known.lower, known.upper)
    return env.create_symintnode(symbol, hint=value, source=source)


def _check_layout(shape: Sequence[Any], strides: Sequence[Any], output: Tensor) -> None:
    """Raises:
    LoweringError: a result has another shape or other strides than what is written.
    """
    pairs = zip((*shape, *strides), (*output.shape, *output.stride()), strict=True)
    if len(shape) != output.ndim or not all(_equal(a, b) for a, b in pairs):
        given, written = _layout(shape, strides), _layout(output.shape, output.stride())
        raise LoweringError(f"the plan would give {given}, not {written}")


def _equal(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal: torch does not simplify the quotient of a product."""
    return size_or_symbol(a) == size_or_symbol(b) or statically_known_true(a == b)


def _layout(shape: Sequence[Any], strides: Sequence[Any]) -> str:
    return f"shape {tuple(shape)} with strides {tuple(strides)}"
