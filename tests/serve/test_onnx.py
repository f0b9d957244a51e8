"""ONNX files of optimised models, run by onnxruntime."""

import onnxruntime
import pytest
import torch

from tests.serve.chains import CHAINS, chain, free_sizes, optimised, rewritten


def run(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [given.name for given in session.get_inputs()]
    (found,) = session.run(None, {name: x.numpy()})
    return torch.from_numpy(found)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("door", ["view", "rewrite"])
def test_the_file_holds_the_rewritten_graph(name, dynamic, door, tmp_path):
    model, x, other = chain(name)
    shapes = free_sizes() if dynamic else None
    path = str(tmp_path / "model.onnx")
    with torch.no_grad():
        source = optimised(model) if door == "view" else rewritten(model, x, shapes)
        program = torch.onnx.export(source, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False)
        program.save(path)
        kinds = [node.op_type for node in program.model.graph]
        # The rewritten kernel is put together from weights only, which the exporter may compute at once.
        assert kinds.count("Conv") == 1
        for given in (x, other) if dynamic else (x,):
            torch.testing.assert_close(run(path, given), model(given), rtol=1e-4, atol=1e-4)
