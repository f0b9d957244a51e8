"""Nothing that computes is passed over: it is counted, or a question mark with a reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

import ce_fx

LIBRARY = torch.library.Library("ce_fx_counted", "DEF")
LIBRARY.define("gram(Tensor x) -> Tensor")
LIBRARY.impl("gram", lambda x: x @ x.mT, "CPU")
LIBRARY.impl("gram", lambda x: x.new_empty(*x.shape[:-1], x.shape[-2]), "Meta")


class Computes(nn.Module):
    """A function of inputs, with what else it needs."""

    def __init__(self, function, module=None):
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *inputs):
        return self.function(self.module, *inputs) if self.module is not None else self.function(*inputs)


def attention():
    return Computes(lambda m, x: m(x, x, x, need_weights=False)[0], nn.MultiheadAttention(16, 2, batch_first=True))


def sparse():
    return Computes(lambda a, x: torch.sparse.mm(a, x), torch.eye(4).to_sparse())


def quantised():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(16, 4)), {nn.Linear})


TOKENS = 2, 5, 16
PROJECTED = 2 * (4 * 10 * 16 * 16 + 2 * 10 * 5 * 16)  # four projections, scores and what they weigh

CASES = {  # what makes the model, the shape of its input, its FLOPs (None: a question mark)
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        TOKENS,
        PROJECTED + 4 * 10 * 512,
    ),
    "attention": (attention, TOKENS, PROJECTED),
    "scaled dot product": (
        lambda: Computes(lambda x: F.scaled_dot_product_attention(x, x, x)),
        TOKENS,
        4 * 2 * 25 * 16,
    ),
    "flex attention": (lambda: Computes(lambda x: flex_attention(x, x, x)), (1, 2, 16, 16), None),
    "lstm": (lambda: nn.LSTM(16, 5), TOKENS, None),
    "gru": (lambda: nn.GRU(16, 5), TOKENS, None),
    "lstm cell": (lambda: nn.LSTMCell(16, 5), (2, 16), None),
    "custom op": (lambda: Computes(lambda x: torch.ops.ce_fx_counted.gram(x)), (4, 16), None),
    "fft": (lambda: Computes(lambda x: torch.fft.rfft(x).abs()), (4, 16), None),
    "stft": (lambda: Computes(lambda x: torch.stft(x, 16, window=x[0, :16], return_complex=True)), (2, 64), None),
    "sparse": (sparse, (4, 3), None),
    "quantised": (quantised, (2, 16), None),
    "inverse": (lambda: Computes(torch.inverse), (4, 4), None),
    "matrix exponential": (lambda: Computes(torch.matrix_exp), (4, 4), None),
    "solve": (lambda: Computes(lambda x: torch.linalg.solve(x, x)), (4, 4), None),
    "covariance": (lambda: Computes(torch.cov), (4, 9), None),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_what_computes_is_counted_or_a_question_mark(name):
    make, shape, flops = CASES[name]
    torch._dynamo.reset()
    report = ce_fx.audit(make().eval(), (torch.randn(shape),), tune=False)
    assert report.layers and all(layer.reason for layer in report.layers)
    if flops is None:
        assert report.uncounted
        assert "?" in str(report)
    else:
        assert report.flops_before == flops and not report.uncounted


@pytest.mark.parametrize("size", [10, 200])
def test_an_embedding_is_a_copy(size):
    report = ce_fx.audit(nn.Embedding(size, 4), (torch.tensor([1, 2]),), tune=False)
    assert "not counted: embedding 1" in str(report)


def test_a_layer_of_the_model_itself_goes_by_its_op():
    report = ce_fx.audit(nn.Bilinear(3, 4, 5).eval(), (torch.randn(2, 3), torch.randn(2, 4)), tune=False)
    assert [layer.name for layer in report.layers] == ["bilinear"]


def test_a_model_that_raises_raises_its_own_error():
    with pytest.raises(ZeroDivisionError):
        ce_fx.audit(Computes(lambda x: 1 / 0), (torch.ones(2),))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        ce_fx.audit(nn.Linear(5, 4), (torch.ones(2, 3),))


def test_reports_of_nothing_are_plain():
    identity = ce_fx.optimize(nn.Identity())
    assert "not captured yet: call the model first" in str(ce_fx.report(identity))
    identity(torch.ones(1))
    assert "no multilinear layer was found, and nothing else that takes time" in str(ce_fx.report(identity))
    relu = str(ce_fx.audit(nn.ReLU(), (torch.ones(1),)))
    assert "no multilinear layer was found\nnot counted: relu 1" in relu
    broken = str(ce_fx.audit(Computes(lambda m, x: m(x) if x.sum() > 0 else x, nn.Linear(4, 4)), (torch.ones(4),)))
    assert "what runs next depends on data" in broken and "what runs between graphs is not counted" in " ".join(
        broken.split()
    )
