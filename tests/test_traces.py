"""torch's own switches show what was done: logs, the debug folder, the structured trace."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import torch

import ce_fx

CODE = """
import torch
net = torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.Linear(12, 2), torch.nn.ReLU())
fast = torch.compile(net, backend="ce_fx", options={"inner": "eager", "objective": "flops", "tune": False})
fast(torch.randn(48, 12))
"""


def run(folder, **switches):
    """What a process with these switches writes to its standard error."""
    root = str(Path(ce_fx.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, **switches}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def test_all_switches_at_once(tmp_path):
    logs = run(tmp_path, TORCH_LOGS="+ce_fx", TORCH_COMPILE_DEBUG="1", TORCH_TRACE=str(tmp_path / "trace"))
    assert "1 of 1 layers rewritten" in logs and "ce_fx/rewrite.py" in logs and "total (1 layer)" in logs
    (folder,) = tmp_path.glob("torch_compile_debug/run_*/ce_fx/graph_*")
    texts = {path.stem: path.read_text() for path in folder.iterdir()}
    assert set(texts) == {"graph_before", "graph_after", "report"}
    assert texts["graph_before"] != texts["graph_after"] and "def forward" in texts["graph_after"]
    assert "total (1 layer)" in texts["report"] and "as written: 2 linear" in texts["report"]
    assert "objective: flops" in texts["report"] and "relu 1 (elementwise" in texts["report"]
    trace = "".join(path.read_text() for path in (tmp_path / "trace").iterdir())
    for name in ("graph_before", "graph_after", "report"):
        assert f'{{"artifact": {{"name": "ce_fx_{name}", "encoding": "string"}}, "frame_id": 0' in trace
    assert "total (1 layer)" in trace


def test_without_switches_nothing_is_said_or_written(tmp_path):
    assert "ce_fx" not in run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_by_code(caplog):
    """`torch._logging.set_logs(modules={"ce_fx": ..})` sets a level; there is no handler of ours."""
    net = torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.Linear(12, 2))
    with caplog.at_level(logging.INFO, "ce_fx"):
        ce_fx.optimize(net, (torch.randn(48, 12),), objective="flops")
    said = [record.getMessage() for record in caplog.records if record.name == "ce_fx.traces"]
    assert said == ["1 of 1 layers rewritten, 5.3x fewer FLOPs"]
    assert logging.getLogger("ce_fx").handlers == []


def test_a_folder_that_cannot_be_written_to_fails_nothing(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_COMPILE_DEBUG", "1")
    monkeypatch.setattr(sys.modules["ce_fx.traces"], "_folder", lambda: tmp_path / "file" / "graph")
    net = torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.Linear(12, 2))
    fast = ce_fx.optimize(net, (torch.randn(48, 12),), objective="flops")
    assert ce_fx.report(fast).count("rewritten") == 1
    assert "debug folder cannot be written to" in caplog.text


def test_a_graph_that_cannot_be_printed_fails_nothing(tmp_path, monkeypatch):
    def broken(self):
        raise ArithmeticError("planted")

    traces = sys.modules["ce_fx.traces"]
    monkeypatch.setattr(traces, "_folder", lambda: tmp_path / "graph")
    monkeypatch.setattr(traces.Trace, "_graph", broken)
    net = torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.Linear(12, 2))
    fast = ce_fx.optimize(net, (torch.randn(48, 12),), objective="flops")
    assert ce_fx.report(fast).count("rewritten") == 1
    assert "planted" in (tmp_path / "graph" / "graph_after.txt").read_text()
