"""`--input 8x3x224x224:bfloat16`: an input of a model, from a word.

8x3x224x224          a float32 tensor of normal random numbers; `8,3,224,224` is the same
8x128:bfloat16       of another dtype; complex ones are random too
8x128:int64          ones: an index that most tables have
8x128:int64:30522    random indices from 0 to 30521
8x128:bool           all True: a mask that hides nothing
scalar:float64       a tensor of no axes
int:3, float:0.5, bool:true, str:mean, none    a Python value
mask=8x128:bool      any of these for the keyword argument `mask`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ce_fx.cli.mistake import Mistake, did_you_mean

if TYPE_CHECKING:
    import torch

_SHORT = {"fp16": "float16", "fp32": "float32", "fp64": "float64", "bf16": "bfloat16"}

_TRUTH = {"true": True, "false": False, "1": True, "0": False}

_PYTHON: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": lambda text: _TRUTH[text.lower()],
    "str": str,
}
"""What makes a Python value of the text after the colon."""

HELP = "8x3x224x224[:dtype], 8x128:int64[:below], scalar[:dtype], int:3, float:0.5, bool:true, str:mean or none; "
HELP += "name=.. for a keyword input; once for each input"


def inputs_of(words: Sequence[str], device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs.

    Args:
        words: one for each input.
        device: where tensors are put.

    Raises:
        Mistake: a word is no input; the message shows it and what would be one.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        if not equals:
            args.append(value_of(word, device))
        elif not name.isidentifier():
            raise Mistake(f"--input {word!r}: {name!r} is no name of an argument; write mask=8x128:bool")
        elif name in kwargs:
            raise Mistake(f"--input {name}=.. is given twice")
        else:
            kwargs[name] = value_of(rest, device)
    return tuple(args), kwargs


def value_of(word: str, device: torch.device) -> Any:
    """One input.

    Raises:
        Mistake: the word is none.
    """
    if word.lower() == "none":
        return None
    head, _, tail = word.partition(":")
    if head in _PYTHON and tail:
        try:
            return _PYTHON[head](tail)
        except (ValueError, KeyError):
            raise Mistake(f"--input {word!r}: {tail!r} is no {head}") from None
    dtype, _, below = tail.partition(":")
    return _tensor(_shape(word, head), dtype_of(dtype or "float32", f"--input {word!r}"), below, word, device)


def shape_of(text: str) -> tuple[int, ...] | None:
    """`8x3x224` or `8,3,224` as a shape, `scalar` as (); None if it is neither."""
    if text == "scalar":
        return ()
    sizes = re.split(r"[x,*×]", text.strip("()[]"))
    return tuple(map(int, sizes)) if all(size.strip().isdecimal() for size in sizes) else None


def dtype_of(name: str, where: str) -> torch.dtype:
    """A dtype by torch's name for it, or a short one such as bf16.

    Args:
        name: such as "float32", "torch.float32", "long", "bf16".
        where: begins the message.

    Raises:
        Mistake: torch has no such dtype; the message names the nearest.
    """
    import torch

    plain = name.removeprefix("torch.")
    dtype = getattr(torch, _SHORT.get(plain, plain), None)
    if isinstance(dtype, torch.dtype):
        return dtype
    known = sorted(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))
    raise Mistake(f"{where}: torch has no dtype {name!r}{did_you_mean(name, known)}")


def _shape(word: str, text: str) -> tuple[int, ...]:
    shape = shape_of(text)
    if shape is None:
        raise Mistake(
            f"--input {word!r}: {text!r} is no shape; write sizes with x between, such as 8x3x224x224:float32"
        )
    if 0 in shape:
        raise Mistake(f"--input {word!r}: a size is 0; every size must be at least 1")
    return shape


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, below: str, word: str, device: torch.device) -> torch.Tensor:
    import torch

    if dtype.is_floating_point or dtype.is_complex:
        if below:
            raise Mistake(f"--input {word!r}: a number after the dtype bounds integers only; leave it out")
        wide = dtype if dtype.itemsize > 1 or dtype.is_complex else torch.float32  # float8 has no random numbers
        return torch.randn(shape, dtype=wide, device=device).to(dtype)
    if not below:
        return torch.ones(shape, dtype=dtype, device=device)
    if not below.isdecimal() or int(below) < 1:
        raise Mistake(f"--input {word!r}: {below!r} must be a number of at least 1: indices are random below it")
    return torch.randint(int(below), shape, device=device).to(dtype)
