"""Random programs of sums, values read twice and writes in place, through the whole pass, without verification."""

from collections import Counter
from dataclasses import replace
from time import perf_counter

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ce_fx.tune import candidates
from tests.branches import Program, program, shortest
from tests.branches.compare import compare

_EXAMPLES = settings.get_profile(settings.get_current_profile_name()).max_examples
_AS_DRAWN = Phase.explicit, Phase.reuse, Phase.generate  # another seed is no smaller program: see `reduced`


@pytest.mark.fuzz
@settings(max_examples=max(1, _EXAMPLES // 2), phases=_AS_DRAWN)
@given(st.integers(0, 2**40))
def test_programs_keep_values_and_gradients(seed):
    compare(program(seed), seed)


@pytest.mark.fuzz
@settings(max_examples=max(1, _EXAMPLES // 10), phases=_AS_DRAWN)
@given(st.integers(0, 2**40))
def test_programs_run_end_to_end(seed):
    compare(program(seed), seed, end_to_end=True)


def test_the_programs_reach_what_they_are_for():
    """Otherwise the tests above could not fail."""
    seen = Counter()
    for seed in range(40):
        try:
            seen.update(dict.fromkeys(compare(program(seed), seed), 1))
        except Exception:  # a failure, for the tests above
            continue
    assert seen["regions"] >= 24
    assert seen["sums"] >= 20
    assert seen["leaves in several terms"] >= 16
    assert seen["groups"] >= 12
    assert seen["nested groups"] >= 2
    assert seen["values read twice"] >= 4
    assert seen["writes"] >= 5
    assert seen["trained"] >= 20


def test_a_program_is_the_same_each_time_and_prints_as_source():
    assert str(program(7)) == str(program(7)) != str(program(8))
    assert str(program(7)).startswith("def forward(self, x0")


def test_a_failing_program_is_cut_down():
    small = shortest(program(3), lambda whole: any("F.conv2d" in line for line in whole.lines))
    assert len(small.lines) <= 2 and len(small.outputs) == 1


def written_as(text, inputs, weights, outputs=None):
    """A program from its lines; what it returns is its last value by default."""
    lines = tuple(line.strip() for line in text.strip().splitlines())
    last = lines[-1].partition(" = ")[0]
    return Program(lines, outputs or (last,), inputs, {name: (shape, True) for name, shape in weights.items()})


def rewrites_of(whole, **options):
    """How many of the regions of a program are rewritten, over all objectives and some choices."""
    return sum(compare(whole, seed, how=how, **options)["regions"] for seed in range(6) for how in ("best", "any"))


def test_a_weight_that_cancels_is_read_by_the_nodes():
    text = """
        v0 = self.w0 + self.w1
        v1 = v0 - self.w0
        v2 = F.conv2d(x0, v1)
        v3 = F.conv2d(x0, v1)
        v4 = v2 + v3
        v5 = v4 / 2
    """
    assert rewrites_of(written_as(text, {"x0": (2, 3, 4, 4)}, {"w0": (2, 3, 2, 2), "w1": (2, 3, 2, 2)}))


def test_a_matrix_and_its_transpose():
    text = """
        v0 = x0 @ self.w0
        v1 = F.linear(x0, self.w0)
        v2 = x0 + v0 + v1
    """
    assert rewrites_of(written_as(text, {"x0": (3, 4)}, {"w0": (4, 4)}))


def test_an_expanded_weight_is_verified():
    text = """
        v0 = self.w0.expand((2, 2))
        v1 = x0 @ v0
        v2 = v1 @ v0
        v3 = torch.baddbmm(x1, v2, self.w1, alpha=-1.5)
    """
    whole = written_as(text, {"x0": (2, 3, 2), "x1": (2, 1, 4)}, {"w0": (1, 2), "w1": (2, 2, 4)})
    assert rewrites_of(whole, end_to_end=True)


def test_two_long_products_that_share_all_but_one_leaf(monkeypatch):
    """Planning is bounded: 16 terms of 8 operands take 2 s; these are 2 of 8."""
    names = [f"w{n}" for n in range(6)]
    text = "\n".join(
        [*(f"v{n} = {f'v{n - 1}' if n else 'x0'} @ self.w{n}" for n in range(6)), "v6 = self.w6 - self.w7"]
    )
    whole = written_as(text + "\nv7 = v5 @ v6", {"x0": (3, 4)}, dict.fromkeys([*names, "w6", "w7"], (4, 4)))
    until, plans = perf_counter() + 15, candidates.make_plans

    def limited(*args, **options):
        if perf_counter() > until:
            raise TimeoutError
        return plans(*args, **options)

    monkeypatch.setattr(candidates, "make_plans", limited)
    compare(whole, 0, how="real")


def test_one_channel_of_a_signal_keeps_the_layout_of_what_follows():
    text = """
        v0 = F.conv1d(x1 + x0, self.w0.permute([0, 2, 1]), None, 1, 1)
        v1 = F.conv1d(v0, x2, None, [1], [1], [1], 1)
    """
    whole = written_as(text, {"x0": (2, 3, 5), "x1": (2, 3, 5), "x2": (2, 1, 1)}, {"w0": (1, 2, 3)})
    compare(whole, 11032420, how="real")


def test_a_write_behind_an_idle_dropout_writes_to_its_input():
    text = """
        v0 = F.dropout(x0, 0.3, False)
        v1 = v0.add_(x1, alpha=0.5)
        v2 = torch.baddbmm(self.w1, v1, self.w0, alpha=1.0)
    """
    whole = written_as(text, {"x0": (2, 4, 5), "x1": (2, 4, 5)}, {"w0": (2, 5, 1), "w1": (2, 1, 1)})
    for seed in range(4):
        compare(whole, seed)


def test_one_row_of_convolutions_with_a_bias():
    text = """
        v0 = F.conv2d(x0, self.w0, self.w1, 1, 1)
        v1 = F.conv2d(v0, self.w2)
        v2 = F.conv2d(v1, self.w3)
        v3 = v2.select(2, 0)
    """
    weights = {"w0": (3, 3, 3, 3), "w1": (3,), "w2": (2, 3, 1, 1), "w3": (4, 2, 1, 1)}
    assert rewrites_of(written_as(text, {"x0": (3, 3, 5, 4)}, weights))


def test_a_leaf_that_is_written_to_later_is_not_saved_for_the_backward():
    text = """
        v0 = x0 - x1
        v1 = F.conv2d(v0, self.w0, None, 1, 1)
        v2 = x0 - v1
        v3 = x1.add_(v2)
    """
    whole = written_as(text, {"x0": (2, 4, 6, 3), "x1": (2, 4, 6, 3)}, {"w0": (4, 4, 3, 3)})
    assert rewrites_of(whole)


def test_a_convolution_of_a_padded_product_of_positions():
    text = """
        v0 = x0 * self.w0
        v1 = F.pad(v0, (1, 1))
        v2 = F.conv2d(v1, self.w1, None, 1, 1)
    """
    whole = written_as(text, {"x0": (3, 3, 7, 3)}, {"w0": (3,), "w1": (5, 3, 3, 1)})
    rewrites_of(whole)


def test_the_one_position_of_a_convolution_is_repeated_along_a_new_axis():
    text = """
        v0 = F.conv1d(x0, self.w0, None, 2)
        v1 = v0 * self.w1
        v2 = v1.expand(-1, -1, 3)
    """
    assert rewrites_of(written_as(text, {"x0": (2, 3, 3)}, {"w0": (3, 3, 2), "w1": (3, 1)}))


def test_what_is_written_over_as_a_whole_is_still_read():
    text = """
        v0 = x0 * 1.5
        setitem(v0, (slice(None), slice(None), slice(-2, None)), self.w0.view(-1, 1))
        setitem(v0, (slice(None), slice(None), slice(None), slice(-2, None)), self.w0)
        v1 = v0 @ self.w1
    """
    rewrites_of(written_as(text, {"x0": (3, 2, 4, 2)}, {"w0": (2,), "w1": (2, 2)}))


def test_an_einsum_of_three_saves_a_product_of_two():
    text = """
        v0 = torch.einsum('...i,ir,or->...o', x1, self.w0, self.w1)
        v1 = v0 + x1
        v2 = x1.add_(x0)
    """
    whole = written_as(text, {"x0": (3, 2, 4), "x1": (3, 2, 4)}, {"w0": (4, 2), "w1": (4, 2)}, ("v1",))
    rewrites_of(replace(whole, weights={**whole.weights, "w0": ((4, 2), False)}))


def test_a_tensordot_over_an_axis_of_size_one_saves_a_sum():
    text = """
        v0 = torch.einsum('ar,br->ab', self.w0, self.w0)
        v1 = torch.tensordot(x0, v0, ([-1], [0]))
        v2 = x0.add_(v1)
    """
    rewrites_of(written_as(text, {"x0": (1, 4, 1)}, {"w0": (1, 2)}))
