"""What `tensorize` did, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate


@dataclass(frozen=True)
class Tensorized:
    """What became of one layer.

    Attributes:
        name: its module path; the first, of a module with several.
        kind: its class.
        decision: "replaced" or "kept".
        reason: why it was kept, in one sentence.
        ranks: of the new layer.
        weights_before, weights_after: the number of weights without biases.
        error: relative error `|kernel - new kernel| / |kernel|`, or None where no weights were decomposed.
        aliases: the other module paths of a shared module.
    """

    name: str
    kind: str
    decision: str
    reason: str = ""
    ranks: tuple[int, ...] = ()
    weights_before: int = 0
    weights_after: int = 0
    error: float | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorizeReport:
    """What `tensorize` did; `print` shows it as a table.

    Attributes:
        form: the form that was asked for.
        layers: one entry for each convolution and linear layer of the model.
    """

    form: str
    layers: tuple[Tensorized, ...]

    @property
    def replaced(self) -> tuple[Tensorized, ...]:
        """The layers that were replaced."""
        return tuple(layer for layer in self.layers if layer.decision == "replaced")

    @property
    def kept(self) -> tuple[Tensorized, ...]:
        """The layers that stayed; each says why."""
        return tuple(layer for layer in self.layers if layer.decision == "kept")

    @property
    def weights_before(self) -> int:
        """Weights of all these layers before, without biases; a shared layer counts once."""
        return sum(layer.weights_before for layer in self.layers)

    @property
    def weights_after(self) -> int:
        """Weights of all these layers now."""
        return sum(layer.weights_after for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        layers = [
            {**asdict(layer), "ranks": list(layer.ranks), "aliases": list(layer.aliases)} for layer in self.layers
        ]
        return {
            "form": self.form,
            "weights_before": self.weights_before,
            "weights_after": self.weights_after,
            "layers": layers,
        }

    def __str__(self) -> str:
        rows = [
            (
                ", ".join((layer.name or "(the model)", *layer.aliases)),
                layer.kind,
                layer.weights_before,
                layer.weights_after,
                "" if layer.error is None else f"{layer.error:.4f}",
                f"ranks {', '.join(map(str, layer.ranks))}" if layer.ranks else f"kept: {layer.reason}",
            )
            for layer in self.layers
        ]
        headers = ("layer", "kind", "weights", "now", "error", "decision")
        table = tabulate(
            rows, headers, disable_numparse=True, colalign=("left", "left", "right", "right", "right", "left")
        )
        share = f" ({self.weights_after / self.weights_before:.1%})" if self.weights_before else ""
        total = f"weights {self.weights_before} -> {self.weights_after}{share}"
        return (
            f"ce_fx.nn.tensorize: form {self.form}\n\n{table if rows else 'no convolution or linear layer'}\n\n"
            f"{len(self.replaced)} replaced, {len(self.kept)} kept; {total}, biases not counted"
        )
