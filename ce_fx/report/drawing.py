"""Tensor networks and plan trees as inline SVG: plain shapes and texts, coloured by the page's style sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import cos, hypot, pi, sin

from ce_fx.report.product import Product
from ce_fx.report.units import number_of

_RADIUS = 15  # of a tensor
_LEG = 34  # length of an open index, from the rim
_ASIDE = 18  # from the straight line between two tensors to a dot beside it
_LABEL = 22  # characters of a name, at most
_CHARACTER = 6.2  # width of one, about

_LEANS = 0.4  # how far an open line goes to a side, from which its label stands beside its end, not above or below

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
    lines: list[str] = []
    dots: list[str] = []
    texts: list[tuple[Point, str, str]] = []
    for (holders, is_open, slid), letters in _groups(product).items():
        kind = "slid" if slid else "index"
        text = " ".join(_sized(product, letter) for letter in letters)
        step = joined.get(holders)
        text = f"({step}) {text}" if step is not None and len(holders) > 1 else text
        here = [places[n] for n in holders]
        if len(holders) == 2 and not is_open:
            lines.append(_line(here[0], here[1], kind))
            texts.append((_beside(here[0], here[1], offset=9), text, "letters"))
            continue
        if len(holders) == 1:
            end = _outward(here[0], middle, _RADIUS + _LEG, ring, bend=0.5 if slid else 0.0)
            lines.append(_line(here[0], end, kind))
            lean = (end[0] - here[0][0]) / (_RADIUS + _LEG)
            side = " end" if lean < -_LEANS else " start" if lean > _LEANS else ""
            x, y = _outward(end, here[0], 5 if side else 9, 1)
            texts.append(((x, y + 4), text, f"letters{side}"))
            continue
        hub = _hub(here, len(dots))
        lines += [_line(place, hub, kind) for place in here]
        dots.append(f'<circle class="dot{" open" if is_open else ""}" cx="{hub[0]:.1f}" cy="{hub[1]:.1f}" r="4"/>')
        text = f"{text} →" if is_open else text
        away = hub[0] - sum(x for x, _ in here) / len(here) if len(here) == 2 else 0.0
        side = " end" if away < -_LEANS * _ASIDE else " start" if away > _LEANS * _ASIDE else ""
        shift = {" end": (-8, 4), " start": (8, 4), "": (0, -8)}[side]
        texts.append(((hub[0] + shift[0], hub[1] + shift[1]), text, f"letters{side}"))
    nodes = []
    names = _briefs([operand.name for operand in product.operands])
    for operand, name, (x, y) in zip(product.operands, names, places, strict=True):
        shape = "weight" if operand.weight else "value"
        title = f"<title>{escape(operand.name)}: {escape(' '.join(operand.letters))}</title>"
        nodes.append(f'<g>{title}<circle class="{shape}" cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}"/></g>')
        below = _RADIUS + 13 if y > -1 else -_RADIUS - 6  # on the outer side, where few lines are
        texts.append(((x, y + below), name, "name"))
    drawn = [_text(*text) for text in texts]
    return _svg(_box(places, texts), [*lines, *dots, *nodes, *drawn], f"tensor network {product.expression}")


def _box(places: Sequence[Point], texts: Sequence[tuple[Point, str, str]]) -> tuple[float, float, float, float]:
    """Left, top, width and height of tensors and texts, with a margin."""
    sides = [x + side * _RADIUS for x, _ in places for side in (-1, 1)]
    levels = [y + side * _RADIUS for _, y in places for side in (-1, 1)]
    for (x, y), text, kind in texts:
        width = _CHARACTER * len(text)
        left = x - (width if kind.endswith(" end") else 0 if kind.endswith(" start") else width / 2)
        sides += [left, left + width]
        levels += [y - 11, y + 4]
    left, top = min(sides) - 6, min(levels) - 6
    return left, top, max(sides) + 6 - left, max(levels) + 6 - top


def tree(product: Product) -> str:
    """The order of evaluation from left to right: tensors, then steps with their number and FLOPs."""
    count = len(product.operands)
    if not product.steps:
        return ""
    order = list(_leaves(product, count + len(product.steps) - 1))
    names = _briefs([operand.name for operand in product.operands])
    labels = {n: f"{names[n]} {''.join(product.operands[n].letters)}" for n in order}
    y = {n: 22.0 + 34 * place for place, n in enumerate(order)}
    x = dict.fromkeys(order, 16 + _CHARACTER * max(map(len, labels.values())))
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
        nodes.append(_text((x[n] - 10, y[n] + 4), labels[n], "name end"))
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


def _briefs(names: Sequence[str]) -> list[str]:
    """The ends of module paths, as much of them as tells the tensors of one product apart."""
    inside = [name.rpartition("(")[2].rstrip(")") if "(" in name else name for name in names]
    paths = {name: name.split(".") for name in inside}

    def end(name: str, count: int) -> str:
        return ".".join(paths[name][-count:])

    briefs = {}
    for name, parts in paths.items():
        counts = range(1 + (parts[-1] in ("weight", "bias")), len(parts) + 1)
        alone = (n for n in counts if all(end(name, n) != end(other, n) for other in paths if other != name))
        briefs[name] = end(name, next(alone, len(parts)))
    return [one if len(one) <= _LABEL else f"…{one[1 - _LABEL :]}" for one in (briefs[name] for name in inside)]


def _on_circle(middle: Point, radius: float, angle: float) -> Point:
    return middle[0] + radius * cos(angle), middle[1] + radius * sin(angle)


def _outward(place: Point, middle: Point, length: float, ring: float, bend: float = 0.0) -> Point:
    """A point further from the middle, turned by an angle."""
    dx, dy = place[0] - middle[0], place[1] - middle[1]
    size = hypot(dx, dy)
    if size < 1e-6 or not ring:
        dx, dy, size = -1.0, -0.6, hypot(1.0, 0.6)
    dx, dy = dx / size, dy / size
    dx, dy = dx * cos(bend) - dy * sin(bend), dx * sin(bend) + dy * cos(bend)
    return place[0] + length * dx, place[1] + length * dy


def _beside(a: Point, b: Point, offset: float) -> Point:
    """A point beside the middle of a line."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    size = hypot(dx, dy) or 1.0
    return (a[0] + b[0]) / 2 + offset * dy / size, (a[1] + b[1]) / 2 - offset * dx / size + 3


def _hub(places: Sequence[Point], number: int) -> Point:
    """Where a line of several ends meets: their middle, each a little apart from the ones before.

    That of two tensors is beside the straight line between them, which other indices may take.
    """
    if len(places) == 2:
        return _beside(places[0], places[1], offset=-_ASIDE - 8 * (number % 2))
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
