"""`ce-fx explain`: the plan, and what it is compared with."""

import pytest

import ce_fx
from ce_fx import cli
from ce_fx.algebra.parser import parse
from ce_fx.cli.orders import _trees, dense_tree
from ce_fx.plan.network import Network

CP = ["bshw,rt,rs,rh,rw->bthw|hw", "8x64x56x56", "16x64", "16x64", "16x3", "16x3"]


def printed(capsys, *arguments):
    assert cli.main(["explain", *arguments]) == 0
    return capsys.readouterr().out


def test_the_plan_is_that_of_contract_path(capsys):
    out = printed(capsys, *CP, "--objective", "flops")
    shapes = [tuple(map(int, word.split("x"))) for word in CP[1:]]
    _, info = ce_fx.contract_path(CP[0], *shapes, shapes=True)
    assert info.eq in out
    assert all(step.string in out for step in info.steps)
    assert f"{2 * info.opt_cost / 1e6:.4g} M" in out


def test_the_drawing_shows_every_operand_and_step(capsys):
    lines = printed(capsys, *CP).splitlines()
    tree = [line for line in lines if "──" in line]
    assert len(tree) == 8  # 5 operands and 3 steps below the last
    assert sum("operand" in line for line in tree) == 5
    assert any(line.startswith("bthw ") and "step 4" in line for line in lines)


def test_orders_stand_beside_each_other(capsys):
    out = printed(capsys, *CP)
    for name in ("planned", "left to right", "greedy", "dense"):
        assert any(line.startswith(name) for line in out.splitlines())
    dense = next(line for line in out.splitlines() if line.startswith("dense "))
    assert "1.851 G" in dense  # 2 * 8*56*56 * 64*64*9, and 0.1 M for the kernel


def test_training_and_geometry_change_the_count(capsys):
    string, *sizes = "bsh,tsh->bth|h", "2x4x32", "8x4x3"
    base = printed(capsys, string, *sizes)
    strided = printed(capsys, string, *sizes, "--stride", "h=2", "--padding", "h=1:1", "--dilation", "1")
    assert "12.29 k" in base and "6.144 k" in strided
    assert "forward + backward" in printed(capsys, string, *sizes, "--train")
    assert "36.86 k" in printed(capsys, string, *sizes, "--train")


def test_small_expressions(capsys):
    assert "one operand: there is nothing to put in order" in printed(capsys, "ab->a", "2x3")
    assert "the only order" in printed(capsys, "ab,bc->ac", "2x3", "3x5")
    out = printed(capsys, "ab,bc->ac", "2x3", "3x5")
    assert "dense" not in out and "left to right" in out
    assert "x(r1)" in printed(capsys, "x(r1),(r1)y->xy", "2x3", "3x4").replace(" ", "")


def test_times_say_where_they_are_from(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(tmp_path))
    assert "built-in constants" in printed(capsys, *CP)


@pytest.mark.parametrize(("count", "trees"), [(1, 1), (2, 1), (3, 3), (4, 15), (5, 105)])
def test_all_trees_of_few_kernels(count, trees):
    found = list(_trees(range(count)))
    assert len(found) == len(set(map(str, found))) == trees


def test_dense_joins_the_kernels_first():
    parsed = parse(CP[0], [tuple(map(int, word.split("x"))) for word in CP[1:]])
    tree = dense_tree(Network(parsed.term, parsed.output))
    assert tree[0] == 0
    leaves = [int(c) for c in str(tree[1]) if c.isdigit()]
    assert sorted(leaves) == [1, 2, 3, 4]


def test_no_dense_order_where_two_operands_are_convolved():
    shapes = [(2, 9), (2, 9), (2, 3), (2, 3)]
    parsed = parse("ah,bw,ch,dw->abcdhw|hw", shapes)
    assert dense_tree(Network(parsed.term, parsed.output)) is None


@pytest.mark.parametrize("objective", ["time", "flops"])
@pytest.mark.parametrize("more", [[], ["--train"]])
def test_the_times_of_the_steps_add_up(capsys, objective, more):
    lines = printed(capsys, *CP, "--objective", objective, *more).splitlines()
    steps = [float(line.split()[-2]) for line in lines if line.endswith(" ms")]
    total = next(line for line in lines if line.startswith("planned")).partition(" ms")[0].split()[-1]
    assert sum(steps) == pytest.approx(float(total), rel=0.02)
