"""The layer: any conv_einsum string as a module."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ce_fx.conv_einsum import conv_einsum
from ce_fx.nn.errors import LayerError
from ce_fx.nn.geometry import Geometry, make_geometry, padded_by_hand
from ce_fx.nn.kernel import kernel_of
from ce_fx.nn.layout import read_layout
from ce_fx.nn.spec import DenseSize, Rank, make_spec

_DENSE = (F.linear, F.conv1d, F.conv2d, F.conv3d)
_MODULES: tuple[type[torch.nn.Module], ...] = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


class ConvEinsum(torch.nn.Module):
    """A convolution or linear layer whose kernel is given by a conv_einsum string (arXiv 2401.03384).

    The first operand of the string is the input, the others are the layer's factors. Input and output are of the usual
    layout, `(batch, channels, *spatial)` or, without convolution letters, (.., features); where the string has several
    channel letters, they are the channels, row-major. The geometry is that of `torch.nn.Conv2d`.

    Called as it is, the product is evaluated in the order that `ce_fx.conv_einsum` plans for the shapes. Under
    `torch.compile`, `ce_fx.optimize` and `torch.export` it is written as plain torch ops, the kernel by `torch.einsum`
    and one dense convolution: sizes may be dynamic there, and the ce_fx pass finds its order around the whole layer.

    Example: `ConvEinsum("bshw,rt,rs,rh,rw->bthw|hw", (8, 32), (8, 64), (8, 3), (8, 3), padding=1)` is a CP convolution
    from 64 to 32 channels of rank 8; see `ConvEinsum.of_form` for forms by name.

    Args:
        string: such as above; input and output are the batch letter, channel letters, then the letters of the pipe.
        *shapes: one for each factor.
        stride, padding, dilation: an int, or one for each convolution letter; padding may be "same" or "valid".
        bias: add a learnt bias to every output channel.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device, dtype: of the parameters.

    Attributes:
        factors: `torch.nn.ParameterList`, in the order of the string: `factors.0`, .. in the state_dict.
        bias: a parameter of shape (out channels,), or None.
        string: the string.
        num_weights: how many weights the factors have; the bias is not counted.
        rate: `num_weights` over the number of weights of the dense layer.
        in_channels, out_channels, kernel_size, groups, stride, padding, dilation, padding_mode: as of
            `torch.nn.Conv2d`; of a linear layer, `in_features` and `out_features` name the channels, too.
        form, ranks: what `of_form` was given and chose; "" and () for a string.

    Raises:
        ExpressionError: the string or a shape is wrong.
        LayerError: it is no string of a layer, or the geometry does not fit.
    """

    bias: torch.nn.Parameter | None

    def __init__(
        self,
        string: str,
        *shapes: Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layout = read_layout(string, shapes)
        self._kernel = kernel_of(self.layout)
        dims = len(self.layout.conv)
        self._geometry: Geometry = make_geometry(
            self._kernel.shape[2:], stride=stride, padding=padding, dilation=dilation, padding_mode=padding_mode
        )
        self.string = string
        self.form = ""
        self.ranks: tuple[int, ...] = ()
        self.in_channels = self.layout.size(self.layout.inputs)
        self.out_channels = self.layout.size(self.layout.outputs)
        self.kernel_size = self._kernel.shape[2:]
        self.groups = self._kernel.groups
        self.stride, self.padding = self._geometry.stride, self._geometry.padding
        self.dilation, self.padding_mode = self._geometry.dilation, padding_mode
        if not dims:
            self.in_features, self.out_features = self.in_channels, self.out_channels
        empty = [torch.nn.Parameter(torch.empty(tuple(shape), device=device, dtype=dtype)) for shape in shapes]
        self.factors = torch.nn.ParameterList(empty)
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @classmethod
    def of_form(
        cls,
        form: str,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int] = (),
        *,
        rate: float | None = None,
        rank: Rank | None = None,
        groups: int = 1,
        num_factors: int = 3,
        in_factors: Sequence[int] | None = None,
        out_factors: Sequence[int] | None = None,
        **options: Any,
    ) -> ConvEinsum:
        """A layer of a form by name.

        Args:
            form: a key of `ce_fx.nn.FORMS`: "cp", "tucker", "tt", "rtt", ..
            in_channels: as of `torch.nn.Conv2d`, or the features that a linear layer takes.
            out_channels: as of `torch.nn.Conv2d`, or the features that a linear layer gives.
            kernel_size: one int for each spatial axis; empty for a linear layer.
            rate: weights of the layer over those of the dense layer: the ranks come closest from below.
            rank: instead of a rate: an int for all ranks (less where more would add nothing), or one for each.
            groups: as of `torch.nn.Conv2d`. Every group has factors of its own: the letter `g` in every operand.
            num_factors: M, the number of channel factors of the reshaped forms, chosen as equal as can be.
            in_factors: the factors of a group's input channels instead.
            out_factors: the factors of a group's output channels instead.
            **options: stride, padding, dilation, bias, padding_mode, device, dtype of `ConvEinsum`.

        Returns:
            The layer, with `form` and `ranks` set.

        Raises:
            LayerError: the form or a size does not fit.
            RateError: no rank has this rate; the message and its `nearest` name the nearest.
        """
        if isinstance(kernel_size, int):
            raise LayerError(
                f"kernel_size must be a tuple, one size for each axis, not {kernel_size}: ({kernel_size},) "
                f"for a 1-d convolution, ({kernel_size}, {kernel_size}) for a 2-d one"
            )
        size = DenseSize(in_channels, out_channels, tuple(kernel_size), groups)
        spec = make_spec(
            form, size, rate=rate, rank=rank, num_factors=num_factors, in_factors=in_factors, out_factors=out_factors
        )
        layer = cls(spec.string, *spec.shapes, **options)
        layer.form, layer.ranks = form, spec.ranks
        return layer

    @property
    def num_weights(self) -> int:
        """How many weights the factors have; the bias is not counted."""
        return sum(factor.numel() for factor in self.factors)

    @property
    def rate(self) -> float:
        """`num_weights` over the number of weights of the dense layer."""
        return self.num_weights / prod(self._kernel.shape)

    @property
    def weight(self) -> Tensor:
        """The dense kernel, `(out channels, in channels / groups, *kernel size)`, computed from the factors each time.

        It is differentiable, for code that reads the `weight` of any layer. Writing into it changes nothing.
        """
        return self._kernel(list(self.factors))

    def reset_parameters(self) -> None:
        """Draw the factors anew, so that the output has the variance of a dense layer with He's initialisation.

        He et al. 2015, eq. 10: a dense layer has Var[W] = 2 / fan_in, so that Var[y] = 2 E[x^2]. An output of this
        layer sums n uncorrelated products of one entry of each of m factors; with entries of variance (2 / n)^(1/m) it
        is the same. The bias is zero.
        """
        deviation = (2 / self.layout.summands) ** (0.5 / len(self.factors))
        for factor in self.factors:
            torch.nn.init.normal_(factor, 0.0, deviation)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output.

        Args:
            x: `(batch, in channels, *spatial)` or `(in channels, *spatial)`; of a linear layer, (.., in features).

        Returns:
            The same with out channels, and spatial sizes as of `torch.nn.Conv2d`.

        Raises:
            LayerError: x has other channels or another number of axes.
        """
        if isinstance(x, torch.fx.Proxy):  # symbolic_trace: shapes are not known, and a batch is taken for granted
            return self._dense(x)
        dims = len(self.kernel_size)
        axis = x.dim() - dims - 1
        if axis < 0 or (dims and axis > 1) or x.shape[axis] != self.in_channels:
            raise LayerError(self._misfit(x))
        if dims and axis == 0:
            return self._run(x.unsqueeze(0)).squeeze(0)
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        """The output for an input with a batch axis (or, of a linear layer, with any leading axes)."""
        if self._as_written(x):
            return self._dense(x)
        geometry, dims = self._geometry, len(self.kernel_size)
        lead = x.shape[: x.dim() - dims - 1]
        x, pairs, _ = padded_by_hand(x, geometry)
        x = x.reshape(-1, *self.layout.shape(self.layout.inputs), *x.shape[x.dim() - dims :])
        values = {"stride": geometry.stride, "padding": pairs, "dilation": geometry.dilation}
        options: Any = {name: dict(zip(self.layout.conv, each, strict=True)) for name, each in values.items()}
        y = conv_einsum(self.string, x, *self.factors, **options)
        y = y.reshape(*lead, self.out_channels, *y.shape[y.dim() - dims :])
        return y if self.bias is None else y + self.bias.to(y.dtype).reshape(-1, *(1 for _ in range(dims)))

    def _as_written(self, x: Tensor) -> bool:
        """Whether the layer runs as plain torch ops.

        Under a tracer, planning would fix the sizes. On an axis that is shorter than the kernel, conv_einsum would take
        the kernel for the features. An empty batch is torch's matter.
        """
        if torch.compiler.is_compiling() or x.numel() == 0:
            return True
        return any(x.shape[n - len(self.kernel_size)] < size for n, size in enumerate(self.kernel_size))

    def _dense(self, x: Tensor) -> Tensor:
        """The kernel put together, and one dense layer."""
        kernel = self.weight
        if not self.kernel_size:
            return F.linear(x, kernel, self.bias)
        x, _, padding = padded_by_hand(x, self._geometry)
        run: Any = _DENSE[len(self.kernel_size)]
        y: Tensor = run(x, kernel, self.bias, self.stride, padding, self.dilation, self.groups)
        return y

    def _misfit(self, x: Tensor) -> str:
        axes = ("channels", "length", "height, width", "depth, height, width")[len(self.kernel_size)]
        layout = f"(batch, channels, {axes})" if self.kernel_size else "(.., channels)"
        return f"the input has shape {tuple(x.shape)}; this layer takes {layout} with {self.in_channels} channels"

    def to_dense(self) -> torch.nn.Module:
        """A `torch.nn.Linear` or `torch.nn.Conv1d`, `2d`, `3d` with the same function.

        Returns:
            A new module on the same device, of the same dtype and mode, with weights of its own.
        """
        with torch.no_grad():
            weight = self.weight.clone()
        options: dict[str, Any] = {"bias": self.bias is not None, "device": weight.device, "dtype": weight.dtype}
        if self.kernel_size:
            options.update(stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups)
            options.update(kernel_size=self.kernel_size, padding_mode=self.padding_mode)
        skip_init: Any = torch.nn.utils.skip_init
        dense = skip_init(_MODULES[len(self.kernel_size)], self.in_channels, self.out_channels, **options)
        dense.weight = torch.nn.Parameter(weight, any(factor.requires_grad for factor in self.factors))
        if self.bias is not None:
            dense.bias = torch.nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        module: torch.nn.Module = dense.train(self.training)
        return module

    def extra_repr(self) -> str:
        """The string, the sizes, and the geometry where it is not the default."""
        parts = [repr(self.string), f"{self.in_channels}, {self.out_channels}"]
        if self.kernel_size:
            parts.append(f"kernel_size={self.kernel_size}")
        if self.form:
            parts.append(f"form={self.form!r}, ranks={self.ranks}")
        plain = {"stride": 1, "padding": 0, "dilation": 1}
        for name, usual in plain.items():
            value = getattr(self, name)
            if value != tuple(usual for _ in self.kernel_size):
                parts.append(f"{name}={value!r}")
        parts += [f"groups={self.groups}"] * (self.groups != 1)
        parts += [f"padding_mode={self.padding_mode!r}"] * (self.padding_mode != "zeros")
        parts += ["bias=False"] * (self.bias is None)
        return ", ".join([*parts, f"weights={self.num_weights} ({self.rate:.4g} of dense)"])
