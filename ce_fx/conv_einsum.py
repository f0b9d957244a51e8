"""`conv_einsum`: einsum with convolution letters, evaluated in a planned order.

The notation is that of conv_einsum (arXiv 2401.03384) with torch's cross-correlation on the letters after the pipe;
see `ce_fx.algebra.parser`. Calls are planned once per string, shapes and options, and cached.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._python_dispatch import _disable_current_modes

from ce_fx.algebra.parser import ParsedExpression, contracts, parse
from ce_fx.capture.reading import read
from ce_fx.errors import ExpressionError
from ce_fx.lower.emit import LoweringError, emit
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.path_info import PathInfo, path_info
from ce_fx.plan.plan import Plan, PlanError
from ce_fx.plan.planner import make_plan
from ce_fx.plan.time_model import TimeModel
from ce_fx.sizes import hint, known, symbol
from ce_fx.tune.calibrate import time_model
from ce_fx.tune.cost import check_limit

Planned: TypeAlias = Callable[..., Tensor]

_Kept = TypeVar("_Kept")

_CACHE: OrderedDict[object, Planned] = OrderedDict()
_CACHE_SYMBOLIC: OrderedDict[object, tuple[Planned, ...]] = OrderedDict()
_CACHED = 1024  # planned calls that are kept

_GEOMETRY = ("stride", "padding", "dilation", "padding_mode", "flip")
_SEARCH = ("optimize", "objective", "memory_limit")
_DEFAULTS: dict[str, Any] = {
    "stride": 1,
    "padding": "same",
    "dilation": 1,
    "padding_mode": "zeros",
    "flip": False,
    "optimize": "auto",
    "objective": "time",
    "memory_limit": None,
}


def conv_einsum(
    string: str,
    *operands: Tensor,
    stride: Any = 1,
    padding: Any = "same",
    dilation: Any = 1,
    padding_mode: str = "zeros",
    flip: bool = False,
    optimize: Any = "auto",
    objective: str = "time",
    memory_limit: int | None = None,
) -> Tensor:
    """Evaluate a multilinear expression with convolution letters.

    For a letter after the pipe, with the features x (the operand with the largest size there, the first of equals)
    and kernels w_j: `y[o] = sum over k of x[stride*o - left + dilation*(k_1 + .. + k_m)] * w_1[k_1] * .. * w_m[k_m]`,
    zero outside x. All other letters mean what they mean in `torch.einsum`.

    Sizes alone decide which operand is x: an image that is shorter than the kernel is taken for a kernel, and slides
    over the longer one. `F.conv1d(x, w, padding=2)` of 3 positions and a kernel of 5 gives 3 positions,
    `conv_einsum("bsl,tsl->btl|l", x, w, padding=2)` gives the 7 of `F.conv1d(w, x, padding=2)`.

    The notation is that of conv_einsum (Rabbani et al., arXiv 2401.03384), with torch's cross-correlation in place of
    the paper's convolution unless `flip` is set. Calls are planned once for each string, shapes and options; under
    `torch.compile` with symbolic sizes once for all of them, at those that were seen.

    Args:
        string: such as `"bshw,rt,rs,rh,rw->bthw|hw"`.
        *operands: tensors of one floating point or complex dtype, on one device.
        stride: an int >= 1 or a dict by letter.
        padding: "same", "valid", "full", an int >= 0, a pair (left, right), or a dict by letter of these.
        dilation: an int >= 1, or a dict by letter or by (operand number, letter).
        padding_mode: "zeros", or "circular": positions outside x are taken modulo its size.
        flip: reverse every kernel first: the true convolution of the paper.
        optimize: "auto", "optimal", "greedy", "written", or a path of operand pairs.
        objective: what a plan minimises: "time", "flops" or "memory".
        memory_limit: bytes that no tensor on the way to the result may exceed, nor the result itself.

    Returns:
        The tensor with the output's letters as axes.

    Raises:
        ExpressionError: string, shapes or options do not fit, or no plan keeps to the memory limit; the message names
            operand, letter and sizes.
    """
    options = (stride, padding, dilation, padding_mode, flip, optimize, objective, memory_limit)
    if torch.compiler.is_compiling():
        return cast(Tensor, _in_graph(string, operands, options))
    return _evaluate(string, operands, options)


def _evaluate(string: str, operands: tuple[Tensor, ...], options: tuple[Any, ...]) -> Tensor:
    """Look the call up, plan it if it is new, and run it."""
    operands = _autocasted(string, operands)
    grad = torch.is_grad_enabled()
    try:
        leaves = tuple([(t.shape, t.dtype, t.device, grad and t.requires_grad) for t in operands])
    except AttributeError:
        raise ExpressionError(_not_a_tensor(operands)) from None
    try:
        key: Any = (string, leaves, options if options == _PLAIN else tuple(map(_frozen, options)))
        run = _CACHE.get(key)
    except TypeError:  # symbolic sizes have no hash
        key = run = None
    if run is None:
        given = dict(zip(_DEFAULTS, options, strict=True))
        if key is None and _is_traced(operands):
            return _for_any_size(string, operands, given)
        run = _planned_call(string, operands, given)
        if key is not None:
            _remember(_CACHE, key, run)
    return run(*operands)


@torch._dynamo.allow_in_graph  # type: ignore[untyped-decorator]
def _in_graph(string: str, operands: tuple[Tensor, ...], options: tuple[Any, ...]) -> Tensor:
    """The same, as one node for Dynamo: planning is not traced, and what is planned is traced after it."""
    return _evaluate(string, operands, options)


def contract_path(
    string: str, *operands: Any, shapes: bool = False, objective: str = "flops", **options: Any
) -> tuple[list[tuple[int, ...]], PathInfo]:
    """Plan an expression without evaluating it.

    Call, path and fields are those of `opt_einsum.contract_path` (Smith and Gray, JOSS 2018), with convolution letters.

    Args:
        string: as in `conv_einsum`.
        *operands: tensors (anything with a `shape`), or their shapes with `shapes=True`.
        shapes: the operands are shapes.
        objective: "flops", "time" or "memory".
        **options: the other options of `conv_einsum`.

    Returns:
        opt_einsum's linear path, and a `PathInfo` with its fields; costs are multiply-adds.

    Raises:
        ExpressionError: string, shapes or options do not fit.
    """
    given = _complete({"objective": objective, **options})
    sizes = [tuple(op) if shapes else tuple(op.shape) for op in operands]
    parsed = _parsed(string, sizes, given)
    plan = _plan(parsed, [Operand()] * len(sizes), given, time_model("cpu"))
    info = path_info(plan)
    return info.path, info


def contract_expression(string: str, *shapes: Sequence[int], **options: Any) -> Callable[..., Tensor]:
    """Plan once for given shapes, run often.

    Args:
        string: as in `conv_einsum`.
        *shapes: one for each operand.
        **options: those of `conv_einsum`.

    Returns:
        A function of the tensors. It raises ExpressionError if their shapes are others.

    Raises:
        ExpressionError: string, shapes or options do not fit.
    """
    given = _complete(options)
    expected = tuple(tuple(int(size) for size in shape) for shape in shapes)
    _parsed(string, expected, given)

    def run(*operands: Tensor) -> Tensor:
        got = tuple(tuple(t.shape) for t in operands)
        if got != expected:
            wrong = next((n for n, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), len(got))
            detail = f"operand {wrong} has shape {got[wrong]}, not {expected[wrong]}" if wrong < len(got) else ""
            raise ExpressionError(
                f"{string!r} was planned for {len(expected)} operands of shapes {list(expected)}; "
                f"{detail or f'{len(got)} were given'}. Plan again, or call conv_einsum"
            )
        return conv_einsum(string, *operands, **given)

    return run


_PLAIN = tuple(_DEFAULTS.values())


def _frozen(value: Any) -> Any:
    """An option as a hashable value."""
    if isinstance(value, Mapping):
        return tuple((key, _frozen(v)) for key, v in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _remember(cache: OrderedDict[object, _Kept], key: object, value: _Kept) -> None:
    cache[key] = value
    while len(cache) > _CACHED:
        cache.popitem(last=False)


def _complete(options: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(options) - set(_DEFAULTS))
    if unknown:
        raise ExpressionError(f"unknown option {unknown[0]!r}; the options are {', '.join(_DEFAULTS)}")
    return {**_DEFAULTS, **options}


def _planned_call(string: str, operands: Sequence[Tensor], options: Mapping[str, Any]) -> Planned:
    """A function of the operands that runs the plan; symbolic sizes become numbers, with the guards of the tracer."""
    _check_operands(string, operands)
    shapes = [tuple(int(size) for size in operand.shape) for operand in operands]
    parsed = _parsed(string, shapes, options)
    try:
        return _emitted(parsed, _plan_for(parsed, operands, options), operands, options["memory_limit"])
    except LoweringError as error:
        raise ExpressionError(str(error)) from None


def _plan_for(parsed: ParsedExpression, operands: Sequence[Tensor], options: Mapping[str, Any]) -> Plan:
    first = operands[0]
    needs = [Operand(needs_grad=_needs_grad(operand)) for operand in operands]
    return _plan(parsed, needs, options, time_model(first.device, first.dtype))


def _is_traced(operands: Sequence[Tensor]) -> bool:
    """Whether sizes are symbolic, each with a hint to plan by."""
    sizes = [size for operand in operands for size in operand.shape]
    return any(not isinstance(size, int) for size in sizes) and all(map(known, sizes))


def _for_any_size(string: str, operands: tuple[Tensor, ...], options: Mapping[str, Any]) -> Tensor:
    """Evaluate on symbolic sizes: planned at their hints, in ops that hold for any, so that a traced graph does.

    Where no such plan holds (groups are a number in torch's convolutions) the sizes that several operands share are
    fixed; in the last resort all are. What is asked of a size (a kernel is no longer than the features) is a guard.
    """
    _check_operands(string, operands)
    shapes = [tuple(operand.shape) for operand in operands]
    for given in (lambda: shapes, lambda: _shared_fixed(shapes)):
        parsed = _parsed(string, given(), options)
        for run in _symbolic_calls(parsed, operands, options):
            result = run(*operands)
            if all(statically_known_true(a == b) for a, b in zip(result.shape, parsed.sizes, strict=True)):
                return result
    return _planned_call(string, operands, options)(*operands)


def _shared_fixed(shapes: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Shapes with a number for each symbol that is in several of them."""
    times = Counter(name for shape in shapes for name in {symbol(size) for size in shape})
    return [tuple(int(size) if times[symbol(size)] > 1 else size for size in shape) for shape in shapes]


def _symbolic_calls(
    parsed: ParsedExpression, operands: Sequence[Tensor], options: Mapping[str, Any]
) -> Iterator[Planned]:
    """The plan as a function, in the best ways to evaluate its steps and in the plain ones; what can be emitted."""
    needs = tuple(map(_needs_grad, operands))
    search = tuple(_frozen(options[name]) for name in _SEARCH)
    key = (replace(parsed, sizes=()), needs, search, operands[0].dtype, operands[0].device)
    if key not in _CACHE_SYMBOLIC:
        plan = _plan_for(parsed, operands, options)
        found = []
        for one in (plan, replace(plan, ways={}, channels_last=False)):
            with suppress(LoweringError):
                found.append(_emitted(parsed, one, operands, options["memory_limit"]))
        _remember(_CACHE_SYMBOLIC, key, tuple(found))
    yield from _CACHE_SYMBOLIC[key]


def _check_operands(string: str, operands: Sequence[Tensor]) -> None:
    for n, operand in enumerate(operands):
        if not (operand.dtype.is_floating_point or operand.dtype.is_complex):
            raise ExpressionError(
                f"operand {n} of {string!r} is {operand.dtype}; use a floating point or complex dtype"
            )
        if (operand.dtype, operand.device) != (operands[0].dtype, operands[0].device):
            raise ExpressionError(
                f"operand {n} of {string!r} is {operand.dtype} on {operand.device}, but operand 0 is "
                f"{operands[0].dtype} on {operands[0].device}; cast or move one of them"
            )


def _parsed(string: str, shapes: Sequence[Sequence[int]], options: Mapping[str, Any]) -> ParsedExpression:
    if not shapes:
        raise ExpressionError(f"{string!r} was given no operands")
    return parse(string, shapes, **{name: options[name] for name in _GEOMETRY})


def _plan(parsed: ParsedExpression, operands: Sequence[Operand], options: Mapping[str, Any], model: TimeModel) -> Plan:
    limit = options["memory_limit"]
    try:
        return make_plan(
            Network(parsed.term, parsed.output, operands),
            objective=options["objective"],
            mode="train" if any(operand.needs_grad for operand in operands) else "forward",
            optimize=options["optimize"],
            memory_limit=None if limit is None else limit // model.itemsize,
            time_model=model,
        )
    except PlanError as error:
        raise ExpressionError(str(error)) from None


def _emitted(parsed: ParsedExpression, plan: Plan, operands: Sequence[Tensor], limit: int | None) -> Planned:
    """The plan as one Python function of torch calls.

    Raises:
        LoweringError: a step has no exact form in torch ops, or would make more bytes than the limit.
    """
    graph = Graph()
    leaves = [graph.placeholder(f"x{n}") for n in range(plan.network.n)]
    inputs = list(leaves)
    for n, dims in parsed.flipped:
        inputs[n] = graph.call_function(torch.flip, (leaves[n], list(dims)))
    graph.output(emit(plan, graph, inputs))
    module = GraphModule(torch.nn.Module(), graph)
    if limit is not None:
        with _disable_current_modes():
            ghosts = [torch.empty(tuple(map(hint, t.shape)), dtype=t.dtype, device="meta") for t in operands]
            check_limit([node for ops in read(module, ghosts).ops.values() for node in ops], limit)
    return partial(type(module).forward, None)


def _needs_grad(operand: Tensor) -> bool:
    return torch.is_grad_enabled() and operand.requires_grad


def _autocasted(string: str, operands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Under autocast, operands in its dtype, as for `torch.einsum`: every plan then gives the same dtype.

    A broadcast multiply and a sum are not autocast, neither there nor here.
    """
    if not operands or not torch.is_autocast_enabled(getattr(operands[0], "device", torch.device("cpu")).type):
        return operands
    if not _contracts(string):
        return operands
    dtype = torch.get_autocast_dtype(operands[0].device.type)
    casts = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(t.to(dtype) if t.dtype in casts else t for t in operands)


_contracts = lru_cache(maxsize=_CACHED)(contracts)


def _not_a_tensor(operands: Sequence[Any]) -> str:
    wrong = next(((n, op) for n, op in enumerate(operands) if not isinstance(op, Tensor)), None)
    if wrong is None:
        return "the operands must be tensors"
    return f"operand {wrong[0]} is no tensor but {type(wrong[1]).__name__}; the string comes first, then the tensors"
