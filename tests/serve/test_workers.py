"""An optimised model in the worker processes of a data loader: forked, or started anew from a pickle."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.serve.chains import chain, optimised


class Encoded(Dataset):
    def __init__(self, model, inputs):
        self.model, self.inputs = model, inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, n):
        with torch.no_grad():
            return self.model(self.inputs[n : n + 1])[0]


@pytest.mark.timeout(200)
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("called", [False, True], ids=["first", "after_a_call"])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader(start, called, fold):
    model, _, _ = chain("1d")
    inputs = torch.randn(6, 16, 30)
    fast = optimised(model, fold=fold)
    with torch.no_grad():
        expected = model(inputs)
        if called:
            fast(inputs[:1])
    loader = DataLoader(Encoded(fast, inputs), 3, num_workers=2, multiprocessing_context=start, timeout=90)
    torch.testing.assert_close(torch.cat(list(loader)), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(fast(inputs), expected, rtol=1e-4, atol=1e-5)
