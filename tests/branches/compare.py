"""A program as written and as rewritten: values, gradients, layouts, shared memory and writes must be the same."""

import random
import sys
import warnings
from collections import Counter
from functools import partial
from importlib import import_module
from itertools import combinations

import pytest
import torch

import ce_fx
from ce_fx.algebra.program import Group
from ce_fx.capture.reading import read, written
from ce_fx.lower.emit import LoweringError
from ce_fx.tune import candidates
from ce_fx.tune import choice as choices
from tests.branches import WRITES, program, shortest
from tests.branches.program import SOURCE

# The package has functions under these names, too.
deciding, rewriting = import_module("ce_fx.decide"), import_module("ce_fx.rewrite")
_TIGHT = 1e-9


_FOLDED = 0.05  # of the programs with families, those that are evaluated with `fold=True` too
_REAL = 0.05  # of them, those in which all candidates are priced, as in production: that takes long


class _Tracer(torch.fx.Tracer):
    """Notes from which line of the program a node is; buffers are read by nodes, too."""

    proxy_buffer_attributes = True

    def create_node(self, *args, **kwargs):
        node = super().create_node(*args, **kwargs)
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != SOURCE:
            frame = frame.f_back
        if frame is not None:
            node.meta["line"] = frame.f_lineno - 2
        return node


def trace(model):
    """The model's graph, in which the writes of `operator.iadd` stay writes, as Dynamo has them."""
    return torch.fx.GraphModule(model, _Tracer(autowrap_functions=tuple(WRITES.values())).trace(model))


class Picking:
    """What is chosen for each region: the best draft, any, or as in production; and what was seen on the way.

    With "any" every candidate must be right, not only the one that is predicted to be the best, and some sums are kept
    so that their parts are decided by themselves.
    """

    def __init__(self, how, seed, families=()):
        self.how, self.rng, self.seen = how, random.Random(seed), Counter()
        self.families = families  # of each line, or None

    def choose(self, problem, tune, inner=None):
        if self.how == "real":
            return self.noted(problem, choices.choose(problem, tune, inner))
        one = self.one_of(problem)
        if self.how == "any" and len(problem.expression.terms) > 1 and self.rng.random() < 0.15:
            one = None
        seconds = problem.cost.seconds
        return self.noted(problem, choices.Choice(one, seconds, one.cost.seconds if one else seconds, False, "picked"))

    def one_of(self, problem):
        """One of the drafts, lowered alone: it is the lowering and pricing of all of them that takes long."""
        drafts = candidates.drafts(problem)
        if self.how == "any":
            drafts = self.rng.sample(drafts, len(drafts))
        error = None
        for form, plans in drafts:
            try:
                return candidates.candidate_of(problem, form, plans)
            except LoweringError as reason:
                error = reason
        raise error

    def noted(self, problem, choice):
        if choice.candidate is not None:
            groups = [part for part in choice.candidate.program.recipe if isinstance(part, Group)]
            self.seen["groups"] += bool(groups)
            self.seen["nested groups"] += any(isinstance(part, Group) for group in groups for part in group.inner)
        return choice

    def decide(self, region, context):
        decision = deciding.decide(region, context)
        assert decision is None or "ce_fx failed" not in decision.reason, decision.reason
        if decision is not None and decision.candidate is not None:
            terms = region.expression.terms
            held = Counter(leaf for term in terms for leaf in {factor.leaf for factor in term.factors})
            inside = [node for node in region.nodes if node is not region.output]
            self.seen["regions"] += 1
            self.seen["sums"] += len(terms) > 1
            self.seen["leaves in several terms"] += max(held.values()) > 1
            self.seen["values read twice"] += any(len(node.users) > 1 for node in inside)
            self.seen["writes"] += any(written(op) for op in region.ops)
            lines = {node.meta["line"] for node in region.nodes if "line" in node.meta}
            if self.families:
                self.seen.update(f"rewritten: {self.families[n]}" for n in lines if self.families[n])
                self.seen.update({f"op: {op.target}" for op in region.ops})
        return decision

    def decide_again(self, region, decision, wider, context):
        best, decision = deciding.decide_again(region, decision, wider, context)
        self.seen["computed again"] += best is not region
        return best, decision

    def looks_again(self, wide, region, decision, context):
        """Half of the values that could be computed again are, whatever that costs."""
        return self.rng.random() < 0.5


class picked:
    """A context in which regions are decided by a `Picking`."""

    def __init__(self, how, seed, families=()):
        self.picking = Picking(how, seed, families)
        self.patch = pytest.MonkeyPatch()

    def __enter__(self):
        self.patch.setattr(deciding, "choose", self.picking.choose)
        self.patch.setattr(rewriting, "decide", self.picking.decide)
        self.patch.setattr(rewriting, "decide_again", self.picking.decide_again)
        if self.picking.how == "any":
            self.patch.setattr(deciding, "has_fewer_flops", self.picking.looks_again)
            self.patch.setattr(deciding, "AGAIN", 0.0)
        if self.picking.how != "real":
            self.patch.setattr(deciding, "recall", lambda problem, key: None)
            self.patch.setattr(deciding, "remember", lambda *args: None)
            self.patch.setattr(rewriting, "LEAST_GAIN", float("-inf"))
        return self.picking

    def __exit__(self, *_):
        self.patch.undo()


def run(function, whole, grad):
    """Leaves that a gradient may be taken of, what is returned, and what the inputs hold afterwards."""
    leaves = whole.tensors()
    inputs = [x.requires_grad_(grad) * 1 for x in leaves]
    with torch.set_grad_enabled(grad):
        return leaves, list(function(*inputs)), inputs


def gradients(model, result):
    """Of all results and changed inputs, by leaves and weights; None where the program itself cannot be trained."""
    leaves, outputs, inputs = result
    generator = torch.Generator().manual_seed(0)
    loss = sum(
        (y * torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)).sum() for y in (*outputs, *inputs)
    )
    wanted = [*leaves, *(p for p in model.parameters() if p.requires_grad)]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


def aliases(tensors):
    """Which of some tensors share memory."""
    keys = [t.untyped_storage().data_ptr() for t in tensors]
    return [(a, b) for a, b in combinations(range(len(keys)), 2) if keys[a] == keys[b]]


def layout(tensor):
    """Strides, those of dims of size 1 aside."""
    return [stride if size != 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def foreseen(graphs, whole, grad):
    """Whether the layouts of all values are those by fake tensors, by which graphs are compiled, and tell one order.

    Kernels disagree with fake tensors where a dim has size 1 somewhere. And they look at the stride of such a dim, to
    which a rewrite does not keep, to tell channels last from plain.
    """
    return all(_foreseen(gm, whole, grad) for gm in graphs)


def _foreseen(gm, whole, grad):
    with torch.set_grad_enabled(grad):
        inputs = [x.requires_grad_(grad) * 1 for x in whole.tensors()]
        fakes = read(gm, inputs).fakes
        real = {}

        class Layouts(torch.fx.Interpreter):
            def run_node(self, n):
                result = super().run_node(n)
                if isinstance(result, torch.Tensor):
                    plain = torch.empty(result.shape).stride()
                    real[n] = layout(result), 1 in result.shape and result.ndim == 4 and result.stride() != plain
                return result

        Layouts(gm).run(*inputs)
    return all(layout(fakes[n]) == strides and not vague for n, (strides, vague) in real.items())


def near(got, expected, what):
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{what}: {got.dtype}, not {expected.dtype}"
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    error = (got - expected).abs().max().item() if expected.numel() else 0.0
    assert error <= _TIGHT * scale, f"{what}: off by {error:.3g}"


def same(mine, judge, model, judge_model, grad, what, layouts):
    """Values, layouts, memory shared, writes to inputs and gradients; returns whether gradients were compared.

    Layouts may differ where `layouts()` is false.
    """
    ours, theirs = [*mine[1], *mine[2]], [*judge[1], *judge[2]]
    for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        name = f"{what}, output {n}" if n < len(mine[1]) else f"{what}, input {n - len(mine[1])} afterwards"
        near(a.detach(), b.detach(), name)
        assert layout(a) == layout(b) or not layouts(), f"{name}: strides {a.stride()}, not {b.stride()}"
    assert aliases(ours) == aliases(theirs), f"{what}: memory is shared {aliases(ours)}, not {aliases(theirs)}"
    if not grad:
        return False
    try:
        expected = gradients(judge_model, judge)
    except RuntimeError:  # written to after it was saved for the backward, or for torch's own reasons
        return False
    for n, (a, b) in enumerate(zip(gradients(model, mine), expected, strict=True)):
        near(a, b, f"{what}, gradient {n}")
    return True


def changed(model, model_too):
    """The weights of two models are written to in place."""
    with torch.no_grad():
        for weight in (*model.parameters(), *model_too.parameters()):
            weight.mul_(0.75)


def compare(whole, seed, end_to_end=False, how=None, fold=False):
    """A program as written and rewritten; returns what was seen.

    Args:
        whole: the program.
        seed: of the options.
        end_to_end: through Dynamo and with verification, which must find nothing, instead of `rewrite`.
        how: see `Picking`; drawn by default.
        fold: end to end with `fold=True`: twice without gradients, again with other weights, with gradients.
    """
    rng = random.Random(seed)
    objective = rng.choice(["flops", "time", "memory"])
    how = how or rng.choice(["best", "any", "any", "any", "any", "real"])
    if whole.families and how == "real" and rng.random() > 6 * _REAL:
        how = "any"
    grad = rng.random() < 0.75
    torch._dynamo.reset()
    judge_model, model = whole.model(), whole.model()
    what = f"{objective}, {how}, {'grad' if grad else 'no grad'}"
    families = [whole.families.get(line) for line in whole.lines] if whole.families else ()
    with picked(how, seed, families) as seen, warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*planned wrongly.*")
        if fold:
            fast = ce_fx.optimize(model.eval(), tune=False, objective=objective, fold=True)
            for turn, mode in enumerate((False, False, False, True, False)):
                if turn == 2:
                    changed(model, judge_model)
                judge = run(trace(judge_model), whole, mode)
                known = partial(foreseen, [trace(judge_model)], whole, mode)
                same(run(fast, whole, mode), judge, model, judge_model, mode, f"{what}, fold, turn {turn}", known)
            failures = [row.reason for row in ce_fx.report(fast).layers if "ce_fx failed" in row.reason]
            assert not failures, failures
            seen.seen["folded"] += 1
        elif end_to_end:
            fast = ce_fx.optimize(model, tune=False, objective=objective)
            for mode in (grad, not grad):
                judge = run(trace(judge_model), whole, mode)
                known = partial(foreseen, [trace(judge_model)], whole, mode)
                same(run(fast, whole, mode), judge, model, judge_model, mode, f"{what}, optimize", known)
            failures = [row.reason for row in ce_fx.report(fast).layers if "ce_fx failed" in row.reason]
            assert not failures, failures
        else:
            gm = trace(model)
            with torch.set_grad_enabled(grad):
                examples = [x.requires_grad_(grad) * 1 for x in whole.tensors()]
                new = ce_fx.rewrite(gm, examples, objective=objective, tune=False, verify=False)
            judge = run(trace(judge_model), whole, grad)
            mine = run(new, whole, grad)
            known = partial(foreseen, [trace(judge_model), new], whole, grad)
            seen.seen["trained"] += same(mine, judge, model, judge_model, grad, what, known)
    return +seen.seen


def check(seeds, families=()):
    """What some programs reached, and those that failed: (seed, error)."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seen, failed = Counter(), []
    for seed in seeds:
        seen["programs"] += 1
        whole = program(seed, families)
        seen.update({f"family: {name}" for line, name in whole.families.items() if line in whole.lines})
        try:
            seen.update(dict.fromkeys(compare(whole, seed), 1))
            if families and random.Random(seed).random() < _FOLDED:
                seen.update(dict.fromkeys(compare(whole, seed, fold=True) & Counter(folded=1), 1))
        except Exception as error:
            failed.append((seed, f"{type(error).__name__}: {error}"[:300]))
    return seeds.stop, seen, failed


def failure(whole, seed, **options):
    """What goes wrong with a program, as text; None if nothing does."""
    try:
        compare(whole, seed, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def reduced(seed, families=(), **options):
    """The shortest program that fails in the way that the one of a seed does, and how."""
    seeds = (seed, *range(seed + 1, seed + 4))  # the choices of another seed will do

    def reason(whole):
        found = (failure(whole, s, **options) for s in seeds)
        return next((text for text in found if text and text.partition(":")[0] == kind), None)

    def fails(whole):
        try:
            run(trace(whole.model()), whole, True)
        except Exception:  # no program any more
            return False
        return reason(whole) is not None

    kind = str(failure(program(seed, families), seed, **options)).partition(":")[0]
    small = shortest(program(seed, families), fails)
    return small, reason(small)
