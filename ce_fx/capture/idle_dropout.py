"""The one op of torch that gives its input itself where its fake implementation gives a copy."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_DROPOUTS = (functional.dropout, torch.dropout, torch.ops.aten.dropout, torch.ops.aten.dropout.default)


class IdleDropout(TorchFunctionMode):
    """A dropout that drops nothing gives its input itself; fake tensors would have it copied.

    What writes to its result in place writes to its input.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            given = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
            idle = given["p"] == 0 or not given.get("training", given.get("train"))
            if idle and not given.get("inplace"):
                return given["input"]
        return func(*args, **kwargs)
