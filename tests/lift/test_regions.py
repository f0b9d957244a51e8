"""Where regions begin and end."""

import torch
import torch.nn.functional as F

from tests.lift.helpers import rand, regions_of


def test_a_nonlinearity_parts_two_regions():
    found, _ = regions_of(lambda x, a, b: torch.relu(x @ a) @ b, rand(2, 3), rand(3, 4), rand(4, 5))
    assert [len(r.leaves) for r in found.regions] == [2, 2]


def test_a_value_with_two_users_ends_a_region():
    def function(x, a, b, c):
        y = x @ a
        return y @ b + torch.relu(y) @ c

    found, _ = regions_of(function, rand(2, 3), rand(3, 4), rand(4, 5), rand(4, 5))
    assert [str(r.expression) for r in found.regions][0] == str(found.regions[0].expression)
    assert [len(r.leaves) for r in found.regions] == [2, 4]


def test_a_value_used_twice_by_one_node_is_a_shared_leaf():
    found, _ = regions_of(lambda x, a: (lambda y: y @ y.t())(x @ a), rand(2, 3), rand(3, 4))
    last = found.regions[-1]
    assert len(last.leaves) == 1
    assert [f.leaf for f in last.expression.terms[0].factors] == [0, 0]


def test_in_place_write_between_leaves_ends_a_region():
    """x is written to after the first product has read it: moving that product down would change the result."""

    def function(x, a, b):
        y = x @ a
        x.add_(1)
        return y @ b

    found, _ = regions_of(function, rand(2, 3), rand(3, 4), rand(4, 5))
    assert [len(r.leaves) for r in found.regions] == [2, 2]
    assert found.regions[1].border == "an operand is written to in place within the region"


def test_in_place_write_before_a_region_is_harmless():
    def function(x, a, b):
        x.add_(1)
        return (x @ a) @ b

    found, _ = regions_of(function, rand(2, 3), rand(3, 4), rand(4, 5))
    assert [len(r.leaves) for r in found.regions] == [3]


def test_in_place_write_to_a_view_of_a_leaf_counts():
    def function(x, a, b):
        y = x @ a
        x.view(-1).mul_(2)
        return y @ b

    found, _ = regions_of(function, rand(2, 3), rand(3, 4), rand(4, 5))
    assert "written to" in found.regions[-1].border


def test_one_operand_is_cut_where_only_that_one_does_not_fit():
    """The product with a padded convolution's positions is refused, the weight's own chain still joins."""

    def function(x, a, b, p, q):
        return F.conv1d(F.conv1d(x, a, padding=1), torch.einsum("tr,rsk->tsk", p, q), padding=1)

    args = rand(1, 2, 9), rand(3, 2, 3), rand(1), rand(4, 2), rand(2, 3, 3)
    found, _ = regions_of(function, *args)
    assert sorted(len(r.leaves) for r in found.regions) == [2, 3]
