"""`optimize`: a view of the same model, whose call is captured by Dynamo and rewritten."""

from __future__ import annotations

import copy
import logging
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from itertools import count
from typing import Any, TypeVar, cast

import torch
from torch.distributed._composable_state import _get_module_state, _insert_module_state
from torch.fx import GraphModule
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._python_dispatch import any_torch_dispatch_mode_on_stack

from ce_fx.capture.contractions import capture_contractions
from ce_fx.capture.numpy_attrs import Plain, make_plain, undo
from ce_fx.capture.undisturbed import undisturbed
from ce_fx.errors import CeFxError
from ce_fx.fold import forget
from ce_fx.handing_on import rewritten_or_untouched
from ce_fx.inner import check_inner
from ce_fx.options import Options
from ce_fx.report import Report
from ce_fx.session import Session
from ce_fx.watch import watch

log = logging.getLogger(__name__)

_SESSION = "_ce_fx_session"
_VIEWS: dict[type, type] = {}
_NUMBERS = count()

Model = TypeVar("Model", bound=torch.nn.Module)


def optimize(
    model: Model, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
) -> Model:
    """A view of a model that runs faster and gives the same results.

    It has the same class, sub-modules, Parameter and buffer objects and state_dict keys; its call is captured by
    Dynamo, whose guards follow flags, modes, replaced parameters and shapes, and rewritten. The original keeps
    running as written. NumPy numbers among module attributes become equal Python numbers in both (`restore_` of the
    view undoes it, the report says it).

    Args:
        model: any module. For a function use `torch.compile(function, backend="ce_fx")`.
        args: positional inputs to capture and plan on now, in the current grad mode; None waits for the first call.
            Buffers and random states are left as they were.
        kwargs: keyword inputs for the same.
        **options: those of `ce_fx.options.Options`; they are copied.

    Returns:
        The view.

    Raises:
        CeFxError: an option is unknown or bad, or the model is no module.
    """
    chosen = Options.of(options)
    session = _session(model, chosen)
    view: Any = object.__new__(_view_class(type(model)))
    view.__dict__.update(_handed_over(model, view))
    _share_state(model, view)
    _attach(view, session)
    _warm_up(view, args, kwargs)
    return cast(Model, view)


def optimize_(
    model: torch.nn.Module,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """`optimize` in place: the model's own call is compiled; undone by `restore_`.

    Args:
        model: any module; what `optimize_` did to it before is replaced.
        args: as in `optimize`.
        kwargs: as in `optimize`.
        **options: as in `optimize`.

    Raises:
        CeFxError: an option is unknown or bad, or the model is no module.
    """
    chosen = Options.of(options)
    _check(model)
    restore_(model)
    _attach(model, _session(model, chosen))
    _warm_up(model, args, kwargs)


def restore_(model: torch.nn.Module) -> None:
    """Undo `optimize_`, or of a view what `optimize` did to attributes: the model runs as written again.

    Args:
        model: what `optimize_` was given, or a view; for anything else nothing is done.

    Returns:
        None. The graphs that were compiled for it are released.
    """
    session = model.__dict__.pop(_SESSION, None) if isinstance(model, torch.nn.Module) else None
    if isinstance(session, Session):
        undo([*session.plain, *_of_view(model, session.plain)])
        model.__dict__.pop("_compiled_call_impl", None)


def graph_modules(fast: torch.nn.Module) -> list[GraphModule]:
    """The graphs that run, in the order in which they were compiled; each prints as code.

    Args:
        fast: an optimised model. Before its first call there are none.

    Raises:
        CeFxError: the model was not optimised.
    """
    return _session_of(fast).graph_modules


def report(fast: torch.nn.Module) -> Report:
    """What was done to an optimised model, layer by layer.

    Args:
        fast: an optimised model; what has not been called yet is not in the report.

    Returns:
        The report of the latest compilation of every part: FLOPs (a multiply-add is 2), seconds, bytes.

    Raises:
        CeFxError: the model was not optimised.
    """
    return _session_of(fast).report()


def refresh(fast: torch.nn.Module) -> None:
    """Tell a model with `fold=True` that weights have changed; what depends on weights only is computed anew.

    Needed after ways of writing that leave no trace: `p.data.copy_`, `p.data.add_`, NumPy and DLPack views,
    `p.untyped_storage().copy_`. Without `fold=True` it does nothing.

    Args:
        fast: an optimised model, or a module that `torch.compile` has compiled with backend "ce_fx". Of a compiled
            function nothing can be refreshed.

    Raises:
        CeFxError: the model was not optimised.
    """
    # `torch.compile` hands a module of its own on, which holds the model as `_orig_mod`; `Module.compile` does not.
    if all(getattr(fast, name, None) is None for name in ("_orig_mod", "_compiled_call_impl")):
        raise _not_optimised(fast)
    session = fast.__dict__.get(_SESSION)
    if session is not None:
        session.drop()
    forget([*fast.parameters(), *fast.buffers()])


class View:
    """What a view adds to its model's class: how it prints, and that copies are captured anew."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A model's class hears nothing of the classes of its views: it may register its sub-classes."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own, whatever that takes; when the mode flips, weights are taken to change (see `fold`)."""
        before = self.__dict__.get("training")
        result = super().train(*args, **kwargs)  # type: ignore[misc]
        session = self.__dict__.get(_SESSION)
        if session is not None and before != self.__dict__.get("training"):
            session.drop()
        return result

    def __repr__(self) -> str:
        session = self.__dict__.get(_SESSION)
        return f"{super().__repr__()}\nce_fx: {session.summary() if session else 'restored, runs as written'}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        revived, (plain, options) = self.__reduce_ex__(4)  # a model's class may have its own way of copying
        return revived(copy.deepcopy(plain, memo), options)

    def __reduce_ex__(self, protocol: Any) -> Any:
        session = self.__dict__.get(_SESSION)
        kind = type(self).__mro__[2]
        plain: Any = object.__new__(kind)
        hidden = (_SESSION, "_compiled_call_impl")
        plain.__dict__.update({name: value for name, value in _handed_over(self, plain).items() if name not in hidden})
        return _revived, (plain, session.options.to_dict() if session else None)


def _handed_over(model: Any, to: Any) -> dict[str, Any]:
    """The attributes of a model for one that takes its place: its own methods that it keeps are the other's."""
    return {
        name: types.MethodType(value.__func__, to)
        if isinstance(value, types.MethodType) and value.__self__ is model
        else value
        for name, value in model.__dict__.items()
    }


def _of_view(model: torch.nn.Module, plain: Sequence[Plain]) -> list[Plain]:
    """What was made plain in the original, in the attributes that a view has of its own."""
    return [replace(entry, owner=model) for entry in plain if model.__dict__.get(entry.name) is entry.after]


def _revived(model: torch.nn.Module, options: dict[str, Any] | None) -> torch.nn.Module:
    return model if options is None else optimize(model, **options)


def _view_class(kind: type) -> type:
    """A subclass of a model's class under the same name."""
    if kind not in _VIEWS:
        names: dict[str, Any] = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
        becomes = getattr(kind, "cls_to_become", None) if issubclass(kind, LazyModuleMixin) else None
        if becomes is not None:  # a lazy module changes its class when it first sees an input
            names["cls_to_become"] = _view_class(becomes)
        _VIEWS[kind] = types.new_class(kind.__name__, (View, kind), exec_body=lambda scope: scope.update(names))
    return _VIEWS[kind]


def _share_state(model: torch.nn.Module, view: torch.nn.Module) -> None:
    """What FSDP2 keeps of a module is found by the identity of the module; without it a view could not be wrapped."""
    state = _get_module_state(model)
    if state is not None:
        _insert_module_state(view, state)


def _check(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise CeFxError(
            f"optimize takes a torch.nn.Module, not {type(model).__name__}; "
            f"for a function use torch.compile(function, backend='ce_fx')"
        )
    if isinstance(model, View):
        raise CeFxError("this model is an optimised view already; call optimize on the original")


def _session(model: torch.nn.Module, options: Options) -> Session:
    _check(model)
    check_inner(options)
    session = Session(options, type(model).__name__)
    session.plain = make_plain(model)
    capture_contractions()
    return session


def _attach(model: torch.nn.Module, session: Session) -> None:
    model.__dict__[_SESSION] = session
    options = session.options
    compiled = torch.compile(_entry(model), backend=session, dynamic=options.dynamic, fullgraph=options.fullgraph)
    model.__dict__["_compiled_call_impl"] = _first_alone(compiled, session)


def _first_alone(compiled: Any, session: Session) -> Callable[..., Any]:
    """The compiled call, whose first is made by one thread alone: Dynamo would compile it once for each that comes.

    Under a dispatch mode (a FLOP counter) the model runs as written, as it would by Dynamo; but that would skip the
    code from then on. To Dynamo this is the compiled call itself, by the attributes that `wraps` copies: an outer one
    inlines the model's.
    """
    from torch._dynamo.eval_frame import skip_code  # seconds to import, and `torch.compile` has done so

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch._C._len_torch_dispatch_stack() and any_torch_dispatch_mode_on_stack():
            return compiled._torchdynamo_orig_callable(*args, **kwargs)
        if session.called or torch.compiler.is_exporting():
            return compiled(*args, **kwargs)
        with session.first_call:
            watch()
            result = compiled(*args, **kwargs)
            session.called = True
        return result

    skip_code(run.__code__)  # else a compilation around the model would take this frame for one of the user's
    return wraps(compiled)(run)


def _entry(model: torch.nn.Module, exporting: bool = False) -> Callable[..., Any]:
    """The model's call, in a code object of its own name.

    Dynamo keeps compiled graphs and its recompile limit by code object: one that all models share would be used up by
    the eighth. And it remembers by file, line and name which sizes have varied: the sizes of one model would become
    symbolic because those of another were different.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        # `torch.compile` hands on to this function what `torch.export` traces; Dynamo is not at work then.
        if torch.compiler.is_exporting() and not (exporting or torch.compiler.is_dynamo_compiling()):
            return _exported(model, args, kwargs)
        return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    call.__code__ = call.__code__.replace(co_name=f"call_{type(model).__name__}_{next(_NUMBERS)}")
    return call


def _exported(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call under the tracer of non-strict `torch.export`, which then holds the rewritten graph.

    Dynamo captures the call although something else traces, and the tracer sees what our graph runs: no kept values,
    no kernels of an inner compiler, and no guards on sizes beyond the model's own, which would be the program's.
    """
    options = replace(model.__dict__[_SESSION].options, fold=False)

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        # The tracer's inputs have symbols of its own; the graph's are those of its placeholders.
        fakes = [node.meta["example_value"] for node in gm.graph.find_nodes(op="placeholder")]
        rewritten_or_untouched(gm, fakes, options)
        return gm.forward

    # `torch.compile` does nothing here; this is what it calls elsewhere.
    run = torch._dynamo.optimize(backend, nopython=True, dynamic=False)(_entry(model, exporting=True))
    try:
        with torch._dynamo.config.patch(force_compile_during_fx_trace=True):
            return run(*args, **kwargs)
    except Exception as error:  # a graph break, among others
        why = next(iter(str(error).splitlines()), "")
        log.warning("%s is exported as written: %s: %s", type(model).__name__, type(error).__name__, why)
    return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]


def _session_of(model: Any) -> Session:
    session = getattr(model, "__dict__", {}).get(_SESSION)
    if not isinstance(session, Session):
        raise _not_optimised(model)
    return session


def _not_optimised(model: Any) -> CeFxError:
    return CeFxError(f"{type(model).__name__} was not optimised by ce_fx: call ce_fx.optimize(model) first")


def _warm_up(model: torch.nn.Module, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> None:
    if args is None and kwargs is None:
        return
    if isinstance(args, torch.Tensor):
        args = (args,)
    with undisturbed(model):
        model(*(args or ()), **(kwargs or {}))
