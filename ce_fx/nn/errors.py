"""What the layers of `ce_fx.nn` raise."""

from __future__ import annotations

from ce_fx.errors import CeFxError


class LayerError(CeFxError, ValueError):
    """A layer cannot be built or called like this; the message names what does not fit, and says what does."""


class RateError(LayerError):
    """No rank gives the rate that was asked for.

    Attributes:
        nearest: the possible rate that is nearest: weights of the layer over weights of the dense layer.
    """

    def __init__(self, message: str, nearest: float = float("nan")) -> None:
        super().__init__(message)
        self.nearest = nearest

    def __reduce__(self) -> tuple[type[RateError], tuple[str, float]]:
        return type(self), (str(self), self.nearest)
