"""The ATen reading of an FX graph: one pre-dispatch trace under its fake mode, with provenance.

Rules are written over ATen ops only, but what is edited is the graph's own nodes; the reading ties the two. Nothing
real is touched: parameters, buffers and inputs are fake copies, so no statistics, gradients or random state change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
    get_proxy_slot,
    make_fx,
    track_tensor_tree,
)
from torch.utils import _pytree as pytree

from ce_fx.capture.idle_dropout import IdleDropout
from ce_fx.capture.inputs import fake_copy, fake_input, fake_mode, left_alone, padded, plain_attributes

log = logging.getLogger(__name__)

_MISSING = object()


@dataclass(frozen=True)
class State:
    """The ambient modes that a node runs in: whether gradients are recorded, and autocast's dtypes by device type."""

    grad: bool
    autocast: tuple[tuple[str, torch.dtype], ...] = ()

    def precision(self, device: torch.device) -> torch.dtype | None:
        """The dtype to which autocast casts on a device; None where it is off."""
        return dict(self.autocast).get(device.type)


@dataclass(frozen=True)
class Reading:
    """What a graph computes, in ATen ops.

    Attributes:
        values: own node -> its value, with the ATen node that carries it in place of each tensor.
        fakes: own node -> its value with fake tensors.
        ops: own node -> the ATen nodes it runs, in order; arithmetic of symbolic sizes is left out.
        states: own node -> the modes it runs in.
        mutations: (own node, storage) for every in-place write, in order.
        failures: own nodes that could not be read, with the reason; they are opaque.
        graph: the ATen graph.
    """

    values: dict[Node, Any] = field(default_factory=dict)
    fakes: dict[Node, Any] = field(default_factory=dict)
    ops: dict[Node, tuple[Node, ...]] = field(default_factory=dict)
    states: dict[Node, State] = field(default_factory=dict)
    mutations: list[tuple[Node, object]] = field(default_factory=list)
    failures: dict[Node, str] = field(default_factory=dict)
    graph: Graph = field(default_factory=Graph)

    @staticmethod
    def storage(fake: Any) -> object:
        """A key that two fake tensors share exactly if they share memory; None for anything else."""
        if not isinstance(fake, Tensor):
            return None
        while torch._C._functorch.is_functorch_wrapped_tensor(fake):  # under vmap and grad
            fake = torch._C._functorch.get_unwrapped(fake)
        return fake.untyped_storage()._cdata


def read(gm: GraphModule, example_inputs: Sequence[Any]) -> Reading:
    """Read a graph in ATen ops.

    Args:
        gm: any FX graph: from Dynamo, `torch.export`, `symbolic_trace` or written by hand.
        example_inputs: one value for each placeholder, in order: tensors (real or fake), numbers, symbolic sizes.

    Returns:
        The reading. It never raises because of a node: one that cannot be read is opaque, and `failures` says why.
    """
    mode = fake_mode(gm, example_inputs)
    placeholders = gm.graph.find_nodes(op="placeholder")
    given = {
        node: (node.meta.get("example_value", node.meta.get("val", value)), value)
        for node, value in zip(placeholders, padded(example_inputs, placeholders), strict=True)
    }
    tensors = {**dict(gm.named_parameters()), **dict(gm.named_buffers()), **plain_attributes(gm)}
    odd = left_alone([*tensors.items(), *((node, value) for node, both in given.items() for value in both)])
    inputs = [None if node in odd else fake_input(mode, *both) for node, both in given.items()]
    attributes = {name: fake_copy(mode, tensor) for name, tensor in tensors.items() if name not in odd}
    reading = Reading()
    names = list(attributes)

    def run(*flat: Any) -> Any:
        reader = _Reader(gm, reading, mode, dict(zip(names, flat, strict=False)), odd)
        try:
            reader.run(*flat[len(names) :], enable_io_processing=False)
        finally:
            reader.leave_autocast()
        return ()

    with mode, _ambient_restored(), IdleDropout():
        traced = make_fx(run, pre_dispatch=True, _allow_non_fake_inputs=True)(*attributes.values(), *inputs)
    object.__setattr__(reading, "graph", traced.graph)
    note_gradients(reading)
    _note_mutations(reading)
    _note_overlaps(reading, {node: value for node, (_, value) in given.items()})
    return reading


class _LeftAlone(Exception):
    """A node is not read, on purpose; the message is the whole reason."""


class _Reader(Interpreter):
    """Runs the graph's nodes on fake tensors while they are traced."""

    def __init__(
        self,
        gm: GraphModule,
        reading: Reading,
        mode: FakeTensorMode,
        attributes: dict[str, Any],
        odd: dict[str | Node, str],
    ) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.reading = reading
        self.mode = mode
        self.attributes = attributes
        self.odd = odd
        proxies = get_proxy_mode()
        assert proxies is not None
        self.tracer = proxies.tracer
        self.entered: dict[Node, torch.autocast] = {}

    def leave_autocast(self) -> None:
        """Leave what the graph entered and did not leave, the innermost first."""
        while self.entered:
            self.entered.popitem()[1].__exit__(None, None, None)

    def run_node(self, n: Node) -> Any:
        if n.op == "output":
            return None
        before = len(self.tracer.graph.nodes)
        self.reading.states[n] = ambient()
        try:
            result = self._run(n)
        except Exception as error:  # anything may fail in a user's op; the node stays opaque
            self.reading.failures[n] = _reason(error)
            log.debug("cannot read %s: %s", n.format_node(), error)
            result = self._opaque(n)
        new = list(self.tracer.graph.nodes)[before:] if len(self.tracer.graph.nodes) > before else []
        if n.op != "placeholder":
            self.reading.ops[n] = tuple(node for node in new if node.op == "call_function" and not _is_aside(node))
        self.reading.fakes[n] = result
        self.reading.values[n] = pytree.tree_map_only(Tensor, self._carrier, result)
        return result

    def _run(self, n: Node) -> Any:
        if isinstance(n.target, torch._ops.HigherOrderOperator):
            raise _LeftAlone(f"{n.target} is opaque")
        if any(a in self.reading.failures and self.env.get(a) is _MISSING for a in n.all_input_nodes):
            raise _LeftAlone("an operand could not be read")
        if any(isinstance(self.env.get(a), torch.SymFloat) for a in n.all_input_nodes):
            raise _LeftAlone("it computes with a float known only when it runs, as all are under dynamic=True")
        odd = {"placeholder": n, "get_attr": str(n.target)}.get(n.op)
        if odd in self.odd:
            raise _LeftAlone(self.odd[odd])
        if n.target is _enter_autocast:
            # While a trace runs, torch notes its own entering function and does not do it: this mode does both.
            self.entered[n] = torch.autocast(*self.fetch_args_kwargs_from_env(n)[0])
            self.entered[n].__enter__()
            return None
        if n.target is _exit_autocast:
            self.entered.pop(n.all_input_nodes[0]).__exit__(None, None, None)
            return None
        if n.op == "get_attr" and str(n.target) in self.attributes:
            return self.attributes[str(n.target)]
        if n.target in (torch.ops.aten.dropout, torch.ops.aten.dropout.default):  # these ask no mode
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            return IdleDropout().__torch_function__(n.target, (), args, kwargs)
        if n.op == "call_module":
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            prefix = f"{n.target}."
            for name, reason in self.odd.items():
                if isinstance(name, str) and name.startswith(prefix):
                    raise _LeftAlone(f"{name}: {reason}")
            own = {k.removeprefix(prefix): v for k, v in self.attributes.items() if k.startswith(prefix)}
            return torch.func.functional_call(self.fetch_attr(str(n.target)), own, args, kwargs)
        return super().run_node(n)

    def _opaque(self, n: Node) -> Any:
        """The value that an unread node's metadata promises, as new inputs of the ATen graph."""
        promised = n.meta.get("example_value", n.meta.get("val", _MISSING))
        if promised is _MISSING or left_alone(enumerate(pytree.tree_leaves(promised))):
            return _MISSING

        def enter(tensor: Tensor) -> Tensor:
            with disable_proxy_modes_tracing():
                copy = fake_copy(self.mode, tensor)
            proxy = self.tracer.create_proxy("placeholder", f"opaque_{n.name}", (), {})
            track_tensor_tree(copy, proxy, constant=None, tracer=self.tracer)
            return copy

        return pytree.tree_map_only(Tensor, enter, promised)

    def _carrier(self, tensor: Tensor) -> Any:
        slot = get_proxy_slot(tensor, self.tracer, None)
        if slot is None:
            return tensor
        node: Node = slot.proxy.node
        node.meta.setdefault("val", tensor)
        return node


def _reason(error: Exception) -> str:
    """One line: what a node could not be read for."""
    first = next(iter(str(error).splitlines()), "")
    return first if isinstance(error, _LeftAlone) else f"{type(error).__name__}: {first}"


def _is_aside(node: Node) -> bool:
    """Whether a traced node computes no tensor: it only switches gradients, or reads or computes a symbolic size.

    Fake tensors do the first to read a number, `contiguous` the second to see that it has no work.
    """
    if node.target is torch._C._set_grad_enabled:
        return True
    if not isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat):
        return False
    return not isinstance(node.target, torch._ops.OpOverload) or node.target in _SIZES


_SIZES = {
    torch.ops.aten.sym_size.int,
    torch.ops.aten.sym_stride.int,
    torch.ops.aten.sym_numel.default,
    torch.ops.aten.sym_storage_offset.default,
}


def ambient() -> State:
    """The modes that anything run now runs in."""
    enabled = (device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device))
    return State(torch.is_grad_enabled(), tuple((device, torch.get_autocast_dtype(device)) for device in enabled))


@contextmanager
def _ambient_restored() -> Iterator[None]:
    """Whatever a graph's own enter and exit nodes do to grad mode and autocast is undone."""
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        yield


def note_gradients(reading: Reading) -> None:
    """Set `meta["needs_grad"]` of every ATen node: whether a gradient would flow into its value.

    The fake values in `meta["val"]` cannot tell: tracing detaches them.
    """
    for own, value in reading.values.items():
        fakes = pytree.tree_leaves(reading.fakes[own])
        for op in reading.ops.get(own, ()):
            grad = reading.states[own].grad and op.target is not torch.ops.aten.detach.default
            op.meta["needs_grad"] = grad and any(n.meta.get("needs_grad", False) for n in op.all_input_nodes)
        for carrier, fake in zip(pytree.tree_leaves(value), fakes, strict=True):
            if isinstance(carrier, Node) and carrier.op == "placeholder":
                carrier.meta["needs_grad"] = fake.requires_grad


def _note_mutations(reading: Reading) -> None:
    """Writes in place, by schema; an opaque node may write to every tensor it is given, unless it reads numbers."""
    for own, ops in reading.ops.items():
        if own in reading.failures and own.op == "call_method" and own.target in _NUMBERS:
            continue
        if own in reading.failures:
            inputs = (reading.fakes.get(n) for n in own.all_input_nodes)
            reading.mutations.extend((own, reading.storage(f)) for f in inputs if isinstance(f, Tensor))
            continue
        for op in ops:
            targets = [value for value in written(op) if isinstance(value, Node)]
            reading.mutations.extend((own, reading.storage(value.meta.get("val"))) for value in targets)


_NUMBERS = ("item", "tolist")
"""Methods that read numbers and write nothing; with fake values they cannot be run."""

_STATISTICS = (torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default)
"""Ops that write to their running statistics when the sixth argument is true; their schemas don't say so."""


def written(op: Node) -> list[Any]:
    """The arguments that an ATen op writes to."""
    if op.target in _STATISTICS and op.args[5]:
        return list(op.args[3:5])
    schema = getattr(op.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    pairs = zip(schema.arguments, op.args, strict=False)
    return [value for argument, value in pairs if argument.alias_info is not None and argument.alias_info.is_write]


def _note_overlaps(reading: Reading, given: Mapping[Node, Any]) -> None:
    """A write to one input of the caller may reach the others: nothing guards against inputs that overlap in memory.

    Parameters and buffers are taken to lie apart, and so are inputs of different dtype or device.
    """
    free = {
        reading.storage(fake): (fake.dtype, fake.device)
        for node, value in given.items()
        if isinstance(fake := reading.fakes[node], Tensor) and not is_static(node, value)
    }
    for own, storage in list(reading.mutations):
        others = [other for other in free if other != storage and free[other] == free.get(storage)]
        reading.mutations.extend((own, other) for other in others)


def is_static(placeholder: Node, value: Any) -> bool:
    """Whether an input is a parameter or a buffer of the model."""
    mark = placeholder.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    return isinstance(value, torch.nn.Parameter) or mark is not None
