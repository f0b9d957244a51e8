"""A small network with a stretch that is written in a bad order, and how it fares in a process of its own."""

import json
import os
import subprocess
import sys

import torch
from torch import nn


class Net(nn.Module):
    """Three matrices that are better joined from the right."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(24, 4, bias=False)
        self.second = nn.Linear(4, 24, bias=False)
        self.third = nn.Linear(24, 4, bias=False)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return torch.relu(self.norm(self.third(self.second(self.first(x)))))


SCRIPT = """
import json, sys, torch
from torch._dynamo.utils import counters
from tests.compile.net import Net

torch.manual_seed(0)
net, x = Net(), torch.randn(40, 24)
{setup}
fast = torch.compile(net, {arguments})
y = fast(x)
error = float((y - net(x)).abs().max())
found = {{name: dict(values) for name, values in counters.items() if name in ("inductor", "aot_autograd")}}
print(json.dumps({{"error": error, "counters": found, {more}}}))
"""


def in_process(folder, arguments, setup="", more=""):
    """What a new process counts that compiles the network, with caches in a folder."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "CE_FX_CACHE_DIR": str(folder / "ce_fx")}
    code = SCRIPT.format(arguments=arguments, setup=setup, more=more)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def gradients(model, run, x):
    """The value, and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]
