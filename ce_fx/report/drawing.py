"""Tensor networks and plan trees as inline SVG: plain shapes and texts, coloured by the page's style sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import cos, hypot, pi, sin

from ce_fx.report.product import Product
from ce_fx.report.units import number_of

_RADIUS = 15  # of a tensor
_LEG = 34  # length of an open index, from the rim
_LABEL = 12  # characters of a name

Point = tuple[float, float]


def network(product: Product, numbered: bool = False) -> str:
    """A product as a graph: a node for each tensor, a line for each index or group of indices that it shares.

    Open lines are indices of the result, dashed ones are convolved. A line between more than two tensors, or between
    two and the result, meets in a dot.

    Args:
        product: what is drawn.
        numbered: lines carry the number of the step that joins their tensors.
    """
    count = len(product.operands)
    ring = 0.0 if count == 1 else max(62.0, 26.0 * count)
    middle = (0.0, 0.0)
    places = [_on_circle(middle, ring, pi + 2 * pi * n / count) for n in range(count)]
    joined = _joined_at(product) if numbered else {}
    ends: list[Point] = []
    lines: list[str] = []
    dots: list[str] = []
    texts: list[str] = []
    for (holders, is_open, slid), letters in _groups(product).items():
        kind = "slid" if slid else "index"
        text = " ".join(_sized(product, letter) for letter in letters)
        step = joined.get(holders)
        text = f"({step}) {text}" if step is not None and len(holders) > 1 else text
        here = [places[n] for n in holders]
        if len(holders) == 2 and not is_open:
            lines.append(_line(here[0], here[1], kind))
            texts.append(_text(_beside(here[0], here[1], offset=9), text, "letters"))
            continue
        if len(holders) == 1:
            end = _outward(here[0], middle, _RADIUS + _LEG, ring, bend=0.5 if slid else 0.0)
            ends.append(end)
            lines.append(_line(here[0], end, kind))
            texts.append(_text(_outward(end, here[0], -9, 1), text, "letters"))
            continue
        hub = _hub(here, middle, len(dots))
        lines += [_line(place, hub, kind) for place in here]
        dots.append(f'<circle class="dot{" open" if is_open else ""}" cx="{hub[0]:.1f}" cy="{hub[1]:.1f}" r="4"/>')
        texts.append(_text((hub[0], hub[1] - 8), f"{text} →" if is_open else text, "letters"))
    nodes = []
    for operand, (x, y) in zip(product.operands, places, strict=True):
        shape = "weight" if operand.weight else "value"
        title = f"<title>{escape(operand.name)}: {escape(' '.join(operand.letters))}</title>"
        nodes.append(f'<g>{title}<circle class="{shape}" cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}"/></g>')
        below = _RADIUS + 13 if y > -1 else -_RADIUS - 6  # on the outer side, where few lines are
        texts.append(_text((x, y + below), _brief(operand.name), "name"))
    margins = _RADIUS + 40, _RADIUS + 22  # of a label, to the sides and up and down
    left, top = (min(point[axis] for point in (*places, *ends)) - margins[axis] for axis in (0, 1))
    right, bottom = (max(point[axis] for point in (*places, *ends)) + margins[axis] for axis in (0, 1))
    box = left, top, right - left, bottom - top
    return _svg(box, [*lines, *dots, *nodes, *texts], f"tensor network {product.expression}")


def tree(product: Product) -> str:
    """The order of evaluation from left to right: tensors, then steps with their number and FLOPs."""
    count = len(product.operands)
    if not product.steps:
        return ""
    order = list(_leaves(product, count + len(product.steps) - 1))
    y = {n: 22.0 + 34 * place for place, n in enumerate(order)}
    x = dict.fromkeys(order, 110.0)
    lines, nodes = [], []
    most = max(step.flops for step in product.steps) or 1
    for number, step in enumerate(product.steps):
        me = count + number
        x[me] = max(x[step.left], x[step.right]) + 92
        y[me] = (y[step.left] + y[step.right]) / 2
        lines += [_elbow((x[n], y[n]), (x[me], y[me])) for n in (step.left, step.right)]
        radius = 9 + 9 * (step.flops / most) ** 0.5
        kind = "weight" if step.weights_only else "value"
        title = f"<title>{escape(step.string)}: {step.flops} FLOPs, {step.elements} elements</title>"
        nodes.append(
            f'<g>{title}<circle class="{kind}" cx="{x[me]:.1f}" cy="{y[me]:.1f}" r="{radius:.1f}"/></g>'
            + _text((x[me], y[me] + 4), str(number + 1), "number")
            + _text((x[me], y[me] - radius - 4), number_of(step.flops), "letters")
        )
    for n in order:
        operand = product.operands[n]
        kind = "weight" if operand.weight else "value"
        title = f"<title>{escape(operand.name)}</title>"
        nodes.append(f'<g>{title}<circle class="{kind}" cx="{x[n]:.1f}" cy="{y[n]:.1f}" r="5"/></g>')
        label = f"{_brief(operand.name)} {''.join(operand.letters)}"
        nodes.append(_text((x[n] - 10, y[n] + 4), label, "name end"))
    width, height = max(x.values()) + 40, 22 + 34 * count
    return _svg((0.0, 0.0, width, height), [*lines, *nodes], f"order of evaluation of {product.expression}")


def bar(before: float | None, after: float | None, most: float, label: str) -> str:
    """Two bars, as written above and as it runs below, as shares of a largest number."""
    rows = []
    for place, (value, kind) in enumerate(((before, "before"), (after, "after"))):
        share = 0.0 if not value or not most else 100 * value / most
        rows.append(f'<rect class="{kind}" x="0" y="{place * 7}" width="{share:.2f}" height="5"/>')
    name = escape(label, quote=True)
    shape = 'class="bar" viewBox="0 0 100 12" preserveAspectRatio="none"'
    return f'<svg {shape} role="img" aria-label="{name}">{"".join(rows)}</svg>'


def _groups(product: Product) -> dict[tuple[tuple[int, ...], bool, bool], list[str]]:
    """Letters by the tensors that hold them, whether the result does, and whether they are convolved."""
    found: dict[tuple[tuple[int, ...], bool, bool], list[str]] = {}
    letters = dict.fromkeys(letter for operand in product.operands for letter in operand.letters)
    for letter in letters:
        holders = tuple(n for n, operand in enumerate(product.operands) if letter in operand.letters)
        found.setdefault((holders, letter in product.output, letter in product.slid), []).append(letter)
    return found


def _joined_at(product: Product) -> dict[tuple[int, ...], int]:
    """For each set of tensors that share an index: the step, from 1, after which they are one."""
    count = len(product.operands)
    under: list[set[int]] = [{n} for n in range(count)]
    for step in product.steps:
        under.append(under[step.left] | under[step.right])
    sets = {holders for holders, _, _ in _groups(product)}
    return {
        holders: next((n for n, have in enumerate(under[count:], 1) if have.issuperset(holders)), len(product.steps))
        for holders in sets
    }


def _leaves(product: Product, node: int) -> Iterable[int]:
    count = len(product.operands)
    if node < count:
        yield node
        return
    step = product.steps[node - count]
    yield from _leaves(product, step.left)
    yield from _leaves(product, step.right)


def _sized(product: Product, letter: str) -> str:
    return f"{letter}={'/'.join(map(str, product.sizes[letter]))}"


def _brief(name: str) -> str:
    """The end of a module path, which tells tensors of one layer apart."""
    last = name.rpartition("(")[2].rstrip(")") if "(" in name else name
    parts = last.split(".")
    short = parts[-1] if len(parts) < 2 or parts[-1] not in ("weight", "bias") else ".".join(parts[-2:])
    return short if len(short) <= _LABEL else f"…{short[1 - _LABEL :]}"


def _on_circle(middle: Point, radius: float, angle: float) -> Point:
    return middle[0] + radius * cos(angle), middle[1] + radius * sin(angle)


def _outward(place: Point, middle: Point, length: float, ring: float, bend: float = 0.0) -> Point:
    """A point further from (or, with a negative length, beyond) the middle, turned by an angle."""
    dx, dy = place[0] - middle[0], place[1] - middle[1]
    size = hypot(dx, dy)
    if size < 1e-6 or not ring:
        dx, dy, size = -1.0, -0.6, hypot(1.0, 0.6)
    if length < 0:
        length = -length
    dx, dy = dx / size, dy / size
    dx, dy = dx * cos(bend) - dy * sin(bend), dx * sin(bend) + dy * cos(bend)
    return place[0] + length * dx, place[1] + length * dy


def _beside(a: Point, b: Point, offset: float) -> Point:
    """A point beside the middle of a line."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    size = hypot(dx, dy) or 1.0
    return (a[0] + b[0]) / 2 + offset * dy / size, (a[1] + b[1]) / 2 - offset * dx / size + 3


def _hub(places: Sequence[Point], middle: Point, number: int) -> Point:
    """Where a line of several ends meets: their middle, each a little apart from the ones before."""
    x, y = (sum(place[axis] for place in places) / len(places) for axis in (0, 1))
    return x + 16 * cos(2.4 * number) * (number > 0), y + 16 * sin(2.4 * number) * (number > 0) - 6


def _line(a: Point, b: Point, kind: str) -> str:
    return f'<line class="{kind}" x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"/>'


def _elbow(a: Point, b: Point) -> str:
    half = (a[0] + b[0]) / 2
    ends = f"M{a[0]:.1f} {a[1]:.1f}C{half:.1f} {a[1]:.1f} {half:.1f} {b[1]:.1f} {b[0]:.1f} {b[1]:.1f}"
    return f'<path class="index" d="{ends}"/>'


def _text(place: Point, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{place[0]:.1f}" y="{place[1]:.1f}">{escape(text)}</text>'


def _svg(box: tuple[float, float, float, float], parts: Sequence[str], label: str) -> str:
    name = escape(label, quote=True)
    size = f'viewBox="{" ".join(f"{number:.0f}" for number in box)}" width="{box[2]:.0f}" height="{box[3]:.0f}"'
    return f'<svg class="drawing" {size} role="img" aria-label="{name}">{"".join(parts)}</svg>'
