"""Every example runs, in a process of its own as a user runs it."""

import pytest

from examples.__main__ import FOLDER, run

NAMES = sorted(file.stem for file in FOLDER.glob("plot_*.py"))
NEEDS = {"plot_2_tensorly_torch": "tltorch", "plot_3_peft_lora": "peft"}


def test_there_are_examples_and_each_has_its_output_beside_it():
    assert NAMES[0] == "plot_1_demo"
    assert sorted(file.stem for file in (FOLDER / "outputs").glob("*.txt")) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    done = run(FOLDER / f"{name}.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout
