"""Small models of every kind, each with inputs."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.models import Block, factorized_conv


class Calls(nn.Module):
    """Parameters of given shapes, and a function of the input and of them."""

    def __init__(self, function, *shapes):
        super().__init__()
        self.function = function
        self.names = [f"w{n}" for n in range(len(shapes))]  # torch 2.11's Dynamo does not unpack a ParameterList
        for name, shape in zip(self.names, shapes, strict=True):
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / max(shape) ** 0.5))

    def forward(self, *inputs):
        return self.function(*inputs, *[getattr(self, name) for name in self.names])


class Attention(nn.Module):
    """A transformer's block: attention by torch's fused op, and an MLP."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        parts = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Written(nn.Module):
    """Attention by two products and a softmax."""

    def __init__(self, width=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x):
        weights = torch.softmax(self.q(x) @ self.k(x).mT, -1)
        return weights @ self.v(x)


class LoRA(nn.Module):
    """A linear layer with a bypass of low rank."""

    def __init__(self, width=32, rank=4):
        super().__init__()
        self.base = nn.Linear(width, width)
        self.a, self.b = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)

    def forward(self, x):
        return self.base(x) + 0.5 * self.b(self.a(x))


class Gate(nn.Module):
    """Squeeze and excitation: a product of every position with its channel's gate."""

    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.down, self.up = nn.Linear(width, 2), nn.Linear(2, width)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class UNet(nn.Module):
    """Down, up by a resize, and a skip that is concatenated."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(14, 4, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.a(x))
        z = F.interpolate(torch.relu(self.b(y)), scale_factor=2)
        return self.c(torch.cat([y, z], 1))


class Mixer(nn.Module):
    """An MLP over positions, and one over channels."""

    def __init__(self, positions=9, width=8):
        super().__init__()
        self.tokens, self.channels = nn.Linear(positions, positions), nn.Linear(width, width)

    def forward(self, x):
        x = x + torch.relu(self.tokens(x.mT)).mT
        return x + torch.relu(self.channels(x))


class Branches(nn.Module):
    """Parallel branches, as RepVGG has."""

    def __init__(self, width=6):
        super().__init__()
        self.three, self.one = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        return torch.relu(self.three(x) + self.one(x) + x)


def conv(*args, **kwargs):
    return nn.Conv2d(*args, **kwargs)


IMAGE, TOKENS = (2, 3, 12, 12), (2, 9, 16)
ZOO = {
    "mlp": (lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), TOKENS),
    "linear without bias": (lambda: nn.Linear(16, 5, bias=False), TOKENS),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(9, 4, 3, padding=1), nn.Tanh(), nn.Conv1d(4, 4, 5)), TOKENS),
    "strided, dilated": (
        lambda: nn.Sequential(conv(3, 8, 5, 2, 2), nn.ReLU(), conv(8, 4, 3, dilation=2)),
        IMAGE,
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 3, 2)), (2, 2, 4, 6, 5)),
    "depthwise separable": (lambda: nn.Sequential(conv(3, 3, 3, groups=3), nn.ReLU(), conv(3, 8, 1)), IMAGE),
    "grouped": (lambda: nn.Sequential(conv(3, 8, 1), nn.ReLU(), conv(8, 12, 3, groups=4)), IMAGE),
    "transposed": (lambda: nn.Sequential(conv(3, 4, 3, 2), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2)), IMAGE),
    "residual block": (lambda: Block(3, 8, 2, lambda i, o, s: conv(i, o, 3, s, 1, bias=False)), IMAGE),
    "tensor train": (lambda: nn.Sequential(conv(3, 8, 1), nn.ReLU(), factorized_conv(8, 8, factorization="tt")), IMAGE),
    "cp": (lambda: nn.Sequential(conv(3, 8, 1), nn.ReLU(), factorized_conv(8, 8, factorization="cp")), IMAGE),
    "tucker": (lambda: nn.Sequential(conv(3, 8, 1), nn.ReLU(), factorized_conv(8, 8, factorization="tucker")), IMAGE),
    "attention block": (Attention, TOKENS),
    "attention as written": (Written, TOKENS),
    "lora": (LoRA, (4, 32)),
    "gate": (Gate, IMAGE),
    "unet": (UNet, IMAGE),
    "mixer": (Mixer, (2, 9, 8)),
    "branches": (Branches, (2, 6, 8, 8)),
    "chain of matrices": (lambda: Calls(lambda x, a, b, c: x @ a @ b @ c, (16, 4), (4, 30), (30, 5)), TOKENS),
    "einsum": (lambda: Calls(lambda x, a, b: torch.einsum("bts,sr,ru->btu", x, a, b), (16, 3), (3, 20)), TOKENS),
    "batched": (lambda: Calls(lambda x, a: torch.bmm(x, a), (2, 16, 7)), TOKENS),
    "bias added to a product": (lambda: Calls(lambda x, b, a: torch.addmm(b, x, a), (7,), (16, 7)), (5, 16)),
    "a scale for each channel": (lambda: Calls(lambda x, a, v: (x @ a) * v, (16, 6), (6,)), TOKENS),
}


def made(name):
    """(model, input)."""
    make, shape = ZOO[name]
    return make(), torch.randn(shape)
