"""How the terms of a sum become one: by what adds while it multiplies, where there is such an op."""

import pytest
import torch

from ce_fx.algebra import Expression, Factor, Index, Term
from ce_fx.algebra.program import Program
from ce_fx.lower.sums import candidate
from ce_fx.plan.network import Operand
from ce_fx.plan.plan import Plan
from ce_fx.plan.sums import networks
from tests.lower.test_emit import axes

B, S, T = Index("b", 8), Index("s", 16), Index("t", 12)
X_A, Y_C, BIAS = (
    Term((Factor(0, axes(B, S)), Factor(1, axes(S, T)))),
    Term((Factor(2, axes(B, S)), Factor(3, axes(S, T)))),
    Term((Factor(4, ((), (T,))),)),
)


def summed(*terms):
    """The sum as a module of x, a, y, c and a bias."""
    expression = Expression(axes(B, T), terms)
    found = networks(expression, [Operand()] * 5)
    plans = [Plan(each, (0, 1) if each.n == 2 else 0, "written", 0, 0, 0.0) for each in found]
    return candidate(Program(5, (expression,)), plans, leaves())


def leaves(dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(*shape, dtype=dtype) for shape in [(8, 16), (16, 12), (8, 16), (16, 12), (1, 12)]]


@pytest.mark.parametrize("terms", [(X_A, Y_C), (X_A, BIAS), (BIAS, Y_C, X_A), (X_A, Y_C, BIAS)])
def test_matmuls_of_a_sum_add_to_what_is_there(terms):
    module = summed(*terms)
    names = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert torch.add not in names and names.count(torch.addmm) == len(terms) - 1
    x, a, y, c, bias = leaves()
    true = {X_A: x @ a, Y_C: y @ c, BIAS: bias}
    torch.testing.assert_close(module(x, a, y, c, bias), sum(true[term] for term in terms))


def test_in_half_precision_terms_that_cancel_are_rounded_once_each():
    """Of two products that nearly cancel, one that is added exactly loses less than two that are rounded first."""
    module = summed(X_A, Y_C, BIAS)
    x, a, y, c, bias = leaves(torch.bfloat16)
    y, c = x, -a + c / 8
    true = x.double() @ a.double() + y.double() @ c.double() + bias.double()
    apart = x @ a + y @ c + bias
    together = module(x, a, y, c, bias)
    assert (together - true).norm() < 0.8 * (apart - true).norm()
