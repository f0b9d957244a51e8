"""Windows compose exactly when their indicator tensors do: checked entry by entry, in both directions."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ce_fx.algebra import Index, Tap, Window, compose, is_identity, positions


def indicator(window: Window) -> np.ndarray:
    """[features, out, *kernels]: 1 where the relation holds."""
    shape = (window.features.size, window.out.size, *(t.index.size for t in window.taps))
    values = np.zeros(shape, dtype=np.int64)
    for o, *ks in product(*map(range, shape[1:])):
        position = window.stride * o + sum(t.dilation * k for t, k in zip(window.taps, ks, strict=True)) - window.pad
        if 0 <= position < window.features.size:
            values[(position, o, *ks)] += 1
    return values


@st.composite
def windows(draw, features: Index, name: str, kernels: int = 1) -> Window:
    taps = tuple(Tap(Index(f"{name}k{n}", draw(st.integers(1, 4))), draw(st.integers(1, 3))) for n in range(kernels))
    reach = sum(t.reach for t in taps)
    pad = draw(st.integers(-1, reach + 1))
    out = draw(st.integers(1, 6))
    return Window(features, Index(f"{name}o", out), taps, draw(st.integers(1, 3)), pad)


@given(st.data())
def test_compose_is_exact_and_complete(data):
    first = data.draw(windows(Index("i", data.draw(st.integers(1, 8))), "a", data.draw(st.integers(1, 2))))
    second = data.draw(windows(first.out, "b"))
    kernels = "klm"[: len(first.taps)]
    both = np.einsum(f"io{kernels},opz->ip{kernels}z", indicator(first), indicator(second))
    composed = compose(first, second)
    if isinstance(composed, str):
        # refused: the plain substitution, evaluated without the crop in between, must really differ
        taps = first.taps + tuple(Tap(t.index, first.stride * t.dilation) for t in second.taps)
        pad = first.pad + first.stride * second.pad
        merged = Window(first.features, second.out, taps, first.stride * second.stride, pad)
        assert not np.array_equal(indicator(merged), both), composed
    else:
        assert np.array_equal(indicator(composed), both)


def test_padded_after_padded_is_refused():
    """3x3 pad 1 after 3x3 pad 1 on one axis: the border ring would change."""
    i, m, o = Index("i", 8), Index("m", 8), Index("o", 8)
    first = Window(i, m, (Tap(Index("k", 3)),), pad=1)
    second = Window(m, o, (Tap(Index("l", 3)),), pad=1)
    assert compose(first, second) == ("padding between two kernels on one axis: composing them would change the border")


def test_fully_padded_first_composes_with_any_padding():
    i, m, o = Index("i", 8), Index("m", 10), Index("o", 10)
    first = Window(i, m, (Tap(Index("k", 3)),), pad=2)
    second = Window(m, o, (Tap(Index("l", 3)),), pad=1)
    composed = compose(first, second)
    assert isinstance(composed, Window)
    assert (composed.pad, composed.stride, composed.out) == (3, 1, o)


def test_strided_pointwise_then_padded_kernel_composes():
    """A 1-wide first kernel reads nothing outside, so its stride goes into the second's dilation."""
    first = Window(Index("i", 8), Index("m", 4), (Tap(Index("k", 1)),), stride=2)
    second = Window(first.out, Index("o", 4), (Tap(Index("l", 3)),), pad=1)
    composed = compose(first, second)
    assert isinstance(composed, Window)
    assert (composed.stride, composed.pad) == (2, 2)
    assert [t.dilation for t in composed.taps] == [1, 2]
    assert str(composed) == "i = 2*o + k + 2*l - 2"


@pytest.mark.parametrize("kind", ["circular", "transposed"])
def test_circular_and_transposed_do_not_compose(kind):
    first = Window(Index("i", 8), Index("m", 6), (Tap(Index("k", 3)),), **{kind: True})
    second = Window(first.out, Index("o", 4), (Tap(Index("l", 3)),))
    assert kind in compose(first, second)


def test_windows_that_are_not_in_series():
    a = Window(Index("i", 8), Index("m", 6), (Tap(Index("k", 3)),))
    b = Window(Index("n", 6), Index("o", 4), (Tap(Index("l", 3)),))
    assert "not in series" in compose(a, b)


def test_positions_and_identity():
    assert positions((Tap(Index("k", 2), 3), Tap(Index("l", 2), 1))) == {0, 1, 3, 4}
    assert positions(()) == {0}
    same = Window(Index("i", 8), Index("o", 8), (Tap(Index("k", 1)),))
    assert is_identity(same)
    assert not is_identity(Window(Index("i", 8), Index("o", 4), (Tap(Index("k", 1)),), stride=2))


def test_windows_print_as_their_relation():
    i, o, k = Index("i", 9), Index("o", 8), Index("k", 3)
    assert str(Window(i, o, (Tap(k, 2),), stride=2, pad=-1)) == "i = 2*o + 2*k + 1"
    assert str(Window(i, o, (Tap(k),), pad=1, circular=True)) == "i = o + k - 1 mod 9"
    assert str(Window(i, o, (Tap(k),), stride=3, transposed=True)) == "o = 3*i + k"


def test_a_composition_over_a_symbolic_size_is_exact_for_longer_axes():
    """Over two positions what the second kernel reads outside falls beside the features by chance."""
    for symbol in ("", "s0"):
        i, o1, o2 = (Index(name, 2, symbol) for name in ("i", "o1", "o2"))
        first = Window(i, o1, (Tap(Index("k", 3), 3),), 1, 3)
        second = Window(o1, o2, (Tap(Index("l", 3)),), 1, 1)
        assert isinstance(compose(first, second), str if symbol else Window)
