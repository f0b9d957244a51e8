"""The command as a process: what reaches the terminal, signals, pipes, and what is imported."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CE_FX = [sys.executable, "-m", "ce_fx.cli"]

SLOW = """
import time
import torch
from torch import nn
@torch.compiler.disable
def wait():
    print("running", flush=True)
    time.sleep(60)
class Slow(nn.Module):
    def forward(self, x):
        wait()
        return x
def factory():
    print("loading", flush=True)
    return Slow()
"""


def run(*arguments, **more):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CE_FX_TUNE": "0"}
    return subprocess.run([*CE_FX, *arguments], capture_output=True, text=True, env=env, **more)


def test_help_needs_no_torch():
    code = "import sys; from ce_fx import cli; cli.parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["False"], done.stderr
    done = run("--help")
    assert done.returncode == 0 and all(name in done.stdout for name in ("audit", "explain", "calibrate", "demo"))


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_is_130_and_no_traceback(tmp_path):
    (tmp_path / "slow_here.py").write_text(SLOW)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CE_FX_TUNE": "0"}
    with subprocess.Popen(
        [*CE_FX, "audit", "slow_here:factory", "--input", "2x2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=tmp_path,
        # A shell that runs the suite in the background has it ignore the signal, and so what it starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.readline() == "loading\n"
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "Traceback" not in err and err.splitlines()[-1] == "ce-fx: stopped"


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_reader_that_has_enough_is_no_error():
    command = f"{sys.executable} -m ce_fx.cli explain 'ab,bc,cd->ad' 8x8 8x8 8x8 | true"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=env)
    assert done.stderr == ""


def test_traceback(tmp_path):
    (tmp_path / "bad_here.py").write_text("def factory():\n    raise KeyError('x')\n")
    plain = run("audit", "bad_here:factory", cwd=tmp_path)
    assert plain.returncode == 2 and len(plain.stderr.splitlines()) == 1
    assert "Traceback" in run("audit", "bad_here:factory", "--traceback", cwd=tmp_path).stderr


def test_no_progress_bar_where_nobody_looks(tmp_path):
    done = run("audit", "ce_fx.cli.demo_network:Demo", "--input", "1x64x8x8", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.slow
def test_the_demo_is_true(tmp_path):
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tt1" in done.stdout and "measured in turn" in done.stdout and "rewritten" in done.stdout


TERMINAL = """
import sys, time
from ce_fx import cli, rewrite
module = sys.modules["ce_fx.rewrite"]
decide = module.decide
def slowly(*args):
    time.sleep(1.2)
    return decide(*args)
module.decide = slowly
cli.main(["audit", "ce_fx.cli.demo_network:Demo", "--input", "1x64x8x8", "--objective", "flops", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="terminals")
@pytest.mark.parametrize(("more", "seen"), [([], True), (["--quiet"], False)])
def test_a_terminal_sees_progress(more, seen):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CE_FX_TUNE": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *more], stdout=subprocess.PIPE, stderr=theirs, env=env
    ) as process:
        os.close(theirs)
        out, _ = process.communicate(timeout=200)
    shown = b""
    with pytest.raises(OSError):  # how the end of a terminal reads
        while True:
            shown += os.read(ours, 4096)
    os.close(ours)
    assert b"tt1" in out and b"planning" not in out
    assert (b"ce_fx: planning" in shown) is seen
