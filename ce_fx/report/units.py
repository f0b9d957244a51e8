"""Numbers for people: SI prefixes, times, ratios, shares; `?` for what is not known."""

from __future__ import annotations

UNKNOWN = "?"
"""What is printed for a number that could not be counted; never 0."""


def si(number: float | None, digits: int = 4) -> str:
    """A number with an SI prefix and a few significant digits: 1888000000 -> "1.888 G"; None -> "?"."""
    if number is None:
        return UNKNOWN
    for exponent, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(number) >= 10**exponent:
            return f"{_digits(number / 10**exponent, digits)} {prefix}"
    return f"{_digits(number, digits)} "


def _digits(number: float, digits: int) -> str:
    """At least so many significant digits, and all that are in front of the point: 320 with two is "320"."""
    return f"{number:.{max(digits, len(str(int(abs(number)))))}g}"


def number_of(flops: float | None) -> str:
    """FLOPs for a table, without the blank that `si` leaves for a unit."""
    return si(flops).rstrip()


def memory(size: float | None) -> str:
    """Bytes: "2.6 MB"; None -> "?"."""
    return UNKNOWN if size is None else f"{si(size, 2)}B"


def span(before: float | None, after: float | None) -> str:
    """Bytes before and after: "2.6 MB -> 0.2 MB"; once where both are the same."""
    same = before == after
    return memory(before) if same else f"{memory(before)} -> {memory(after)}"


def seconds(time: float | None, mark: str = "") -> str:
    """A time with three digits and a mark behind it: "4.57 ms p", "1.2 s m"; None -> "?"."""
    if time is None:
        return UNKNOWN
    shown = f"{time * 1e3:.3g}"
    return (f"{time:.3g} s {mark}" if float(shown) >= 1000 else f"{shown} ms {mark}").rstrip()


def ratio(before: float | None, after: float | None) -> str:
    """Before over after: "4.7x"; "-" where one is zero or not known."""
    return f"{before / after:.1f}x" if before and after else "-"


def percent(part: float | None, whole: float | None) -> str:
    """A share: "37%"; "?" where it is not known."""
    if part is None or not whole:
        return UNKNOWN
    return f"{part / whole:.0%}"


def signed_ratio(before: float, after: float) -> str:
    """A ratio in words: 3.1x fewer, 1.2x more."""
    if not before or not after:
        return "no change in"
    return f"{before / after:.1f}x fewer" if after <= before else f"{after / before:.1f}x more"
