"""Reshapes, permutations and no-ops, seen through one contraction."""

import pytest
import torch

from tests.lift.helpers import assert_lifts, rand, refusal, regions_of

W = (6, 5)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.reshape(4, 6),
        lambda x: x.view(2, 2, 6),
        lambda x: x.flatten(0, 1).unflatten(0, (4, 1)),
        lambda x: x.permute(1, 0, 2),
        lambda x: x.transpose(0, 1),
        lambda x: torch.movedim(x, 0, 1),
        lambda x: torch.movedim(x, (0, 1), (1, 0)),
        lambda x: x.unsqueeze(1).squeeze(1),
        lambda x: x.unsqueeze(0).squeeze(),
        lambda x: x.unsqueeze(0).expand(3, 2, 2, 6),
        lambda x: x.contiguous().clone(),
        lambda x: x.to(torch.float64),
        lambda x: x.detach(),
        lambda x: torch.nn.functional.dropout(x, 0.5, False),
    ],
)
def test_views_before_a_contraction(view):
    assert_lifts(lambda x, w: view(x) @ w, rand(2, 2, 6), rand(*W), factors=2)


def test_views_after_a_contraction():
    function = lambda x, w: (x @ w).reshape(2, 2, 5).permute(2, 0, 1).reshape(10, 2)  # noqa: E731
    assert_lifts(function, rand(4, 6), rand(*W), factors=2)


def test_channel_shuffle():
    def function(x, w):
        y = x.reshape(2, 2, 3, 4).transpose(1, 2).reshape(2, 6, 4)
        return torch.einsum("bsl,st->btl", y, w)

    assert_lifts(function, rand(2, 6, 4), rand(6, 3), factors=2)


def test_transposed_weights():
    assert_lifts(lambda x, w: x @ w.t(), rand(4, 6), rand(5, 6), factors=2)
    assert_lifts(lambda x, w: x @ w.T, rand(4, 6), rand(5, 6), factors=2)
    assert_lifts(lambda x, w: x @ w.mT, rand(3, 4, 6), rand(3, 5, 6), factors=2)


def test_reshape_across_a_boundary_is_refused():
    assert "boundary" in refusal(lambda x, w: (x @ w).reshape(3, 4) @ w.t()[:, :4].t().t(), rand(2, 6), rand(6, 6))


def test_casts_end_a_region():
    found, _ = regions_of(lambda x, w: (x @ w).to(torch.float32), rand(2, 6), rand(6, 6))
    assert [r.reason for r in found.refusals.values()] == ["to mixes dtypes ['torch.float32', 'torch.float64']"]


def test_detach_with_gradients_ends_a_region():
    gm = torch.fx.symbolic_trace(lambda x, w: (x @ w).detach())
    from ce_fx.capture.reading import read
    from ce_fx.lift.regions import find_regions

    x, w = rand(2, 6).requires_grad_(), rand(6, 6)
    found = find_regions(gm.graph, read(gm, [x, w]))
    assert [r.reason for r in found.refusals.values()] == ["detach cuts a gradient"]
