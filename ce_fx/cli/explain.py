"""`ce-fx explain STRING SIZES..`: how one expression is planned, beside the orders that one would write."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ce_fx.cli.inputs import dtype_of, shape_of
from ce_fx.cli.machine import add_machine, set_machine
from ce_fx.cli.mistake import Mistake

if TYPE_CHECKING:
    from ce_fx.algebra.parser import ParsedExpression

_WORDS = ("same", "valid", "full")


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command's parser."""
    one: argparse.ArgumentParser = commands.add_parser(
        "explain",
        help="how one conv_einsum expression is planned",
        description="Plan one expression, and show the plan beside the orders that one would write. Nothing is run.",
        epilog='example: ce-fx explain "bshw,rt,rs,rh,rw->bthw|hw" 8x64x56x56 16x64 16x64 16x3 16x3',
    )
    one.add_argument("string", help='such as "bshw,rt,rs,rh,rw->bthw|hw"; letters after | are convolved')
    one.add_argument("sizes", nargs="*", metavar="SIZES", help="one for each operand, such as 8x64x56x56")
    for name, what in (("stride", "1"), ("padding", "same"), ("dilation", "1")):
        text = f"for all convolution letters or by letter: 2, or h=2,w=1 (default: {what})"
        one.add_argument(f"--{name}", default=what, help=text)
    one.add_argument("--padding-mode", choices=("zeros", "circular"), default="zeros", help="what is outside")
    one.add_argument("--flip", action="store_true", help="reverse kernels: a true convolution")
    one.add_argument("--objective", choices=("time", "flops", "memory"), default="time", help="default: time")
    one.add_argument("--optimize", choices=("auto", "optimal", "greedy", "written"), default="auto", help="the search")
    one.add_argument("--train", action="store_true", help="count forward and backward; every operand needs a gradient")
    one.add_argument("--dtype", default="float32", help="of the operands, for bytes and times (default: float32)")
    add_machine(one)
    return one


def run(given: argparse.Namespace) -> int:
    """Plan and print.

    Raises:
        Mistake: a size or an option is no such thing.
        ExpressionError: string and sizes do not fit each other.
    """
    parsed = _parsed(given)
    device, dtype = set_machine(given), dtype_of(given.dtype, "--dtype")
    from ce_fx.cli.orders import compared
    from ce_fx.tune.calibrate import time_model

    model = time_model(device, dtype)
    print(compared(parsed, model, given.objective, given.optimize, given.train))
    where = f"{device}, {_threads()}, {given.dtype}"
    if model.calibrated:
        print(f"predicted times are for {where}, as calibrated here")
    else:
        print(f"predicted times are for {where}, by built-in constants; `ce-fx calibrate` fits them to this machine")
    return 0


def _threads() -> str:
    import torch

    count = torch.get_num_threads()
    return f"{count} thread{'' if count == 1 else 's'}"


def _parsed(given: argparse.Namespace) -> ParsedExpression:
    from ce_fx.algebra.parser import parse

    shapes = [_shape(number, word) for number, word in enumerate(given.sizes)]
    if not shapes:
        count = given.string.partition("->")[0].count(",") + 1
        raise Mistake(f"give the sizes of the {count} operands of {given.string!r}, such as 8x64x56x56")
    return parse(
        given.string,
        shapes,
        stride=_by_letter(given.stride, "--stride", _integer),
        padding=_by_letter(given.padding, "--padding", _padding),
        dilation=_by_letter(given.dilation, "--dilation", _integer),
        padding_mode=given.padding_mode,
        flip=given.flip,
    )


def _shape(number: int, word: str) -> tuple[int, ...]:
    shape = shape_of(word)
    if shape is None:
        raise Mistake(f"the sizes of operand {number}, {word!r}, are none; write them with x between: 8x64x56x56")
    return shape


def _by_letter(text: str, option: str, value: Any) -> Any:
    """`2`, or `h=2,w=1` as a dict."""
    if "=" not in text:
        return value(text, option)
    found = {}
    for part in text.split(","):
        letter, equals, rest = part.partition("=")
        if not equals or not letter.strip():
            raise Mistake(f"{option} {text!r}: {part!r} has no letter; write h=2,w=1, or one value for all")
        found[letter.strip()] = value(rest, option)
    return found


def _integer(text: str, option: str) -> int:
    if not text.strip().isdecimal():
        raise Mistake(f"{option}: {text!r} is no whole number; write 2, or h=2,w=1")
    return int(text)


def _padding(text: str, option: str) -> Any:
    if text in _WORDS:
        return text
    sides = text.split(":")
    if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
        raise Mistake(f"{option}: {text!r} must be same, valid, full, a number, or left:right such as 1:2")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))
