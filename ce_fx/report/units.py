"""Numbers for people: SI prefixes, ratios."""

from __future__ import annotations


def si(number: float, digits: int = 4) -> str:
    """A number with an SI prefix and a few significant digits: 1888000000 -> "1.888 G"."""
    for exponent, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(number) >= 10**exponent:
            return f"{number / 10**exponent:.{digits}g} {prefix}"
    return f"{number:.{digits}g} "


def signed_ratio(before: float, after: float) -> str:
    """A ratio in words: 3.1x fewer, 1.2x more."""
    if not before or not after:
        return "no change in"
    return f"{before / after:.1f}x fewer" if after <= before else f"{after / before:.1f}x more"
