"""Random programs with ops of all families that have lift rules, as in `tests.test_branches`."""

from collections import Counter

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.branches import program
from tests.branches.__main__ import counted, table
from tests.branches.compare import check, compare
from tests.branches.families import FAMILIES, families_of

_EXAMPLES = settings.get_profile(settings.get_current_profile_name()).max_examples
_AS_DRAWN = Phase.explicit, Phase.reuse, Phase.generate
ALL = families_of("all")


@pytest.mark.fuzz
@settings(max_examples=max(1, _EXAMPLES // 8), phases=_AS_DRAWN)
@given(st.integers(0, 2**40))
def test_programs_of_all_families_keep_values_and_gradients(seed):
    compare(program(seed, ALL), seed)


@pytest.mark.fuzz
@settings(max_examples=max(1, _EXAMPLES // 100), phases=_AS_DRAWN)
@given(st.integers(0, 2**40))
def test_programs_of_all_families_keep_values_when_folded(seed):
    compare(program(seed, ALL), seed, fold=True)


def test_every_family_is_drawn():
    drawn = Counter()
    for name in FAMILIES:
        for seed in range(16):
            whole = program(seed, [name])
            drawn[name] += any(line in whole.families for line in whole.lines)
    assert not [name for name in FAMILIES if drawn[name] < 4]


def test_programs_without_families_are_the_old_ones():
    """The seeds of failures that were found before still name them."""
    assert str(program(1)) == str(program(1, []))
    assert not program(1).families


def test_what_families_reach_is_counted_and_read_back():
    _, seen, failed = check(range(4), ["resize"])
    written = table(seen, ["resize"])
    assert not failed
    assert written["families"]["resize"]["programs"] >= written["families"]["resize"]["rewritten"] >= 1
    assert any("upsample" in op for op in written["ops"])
    assert counted(written) == seen


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="no family pools"):
        families_of("pools,norm")
