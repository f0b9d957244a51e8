"""Imports follow the data: capture, lift, algebra, plan, lower, report; no arrow points back.

Read from the source, so that an import inside a function or under TYPE_CHECKING counts as well.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ce_fx"

# What each room may import besides itself and the leaves. The front doors, modules of ce_fx/ itself, see every room.
MAY_IMPORT = {
    "algebra": set(),
    "plan": {"algebra"},
    "capture": set(),
    "lift": {"algebra", "capture"},
    "lower": {"algebra", "plan"},
    "tune": {"algebra", "plan", "lower", "capture"},
    "report": {"algebra", "plan"},
    "nn": {"algebra", "conv_einsum"},  # layers call the front door, as a user's own would
}
DOORS = {"cli"}  # front doors that are packages
LEAVES = {"errors", "options", "provenance", "sizes"}
NO_TORCH = {"algebra", "plan"}
HEAVY = {"networkx", "cotengra", "matplotlib", "tensorly", "tltorch", "peft"}


def imported(source, module):
    """Dotted names that a module imports, `from a import b` as `a.b`, relative ones resolved."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            names += [".".join([*base, alias.name]) for alias in node.names]
    return names


def faults(source, module):
    """Each import of a module that points back or leaves its room's bounds, as a sentence."""
    room = module.split(".")[1]
    allowed = LEAVES if room in LEAVES else MAY_IMPORT.get(room, set()) | LEAVES | {room}
    found = []
    for name in imported(source, module):
        head, *rest = name.split(".")
        if head == "torch" and room in NO_TORCH:
            found.append(f"{module} imports {name}: {room}/ knows no torch")
        if head == "ce_fx" and (not rest or rest[0] not in allowed):
            found.append(f"{module} imports {name}: {room} may import {sorted(allowed)} only")
    return found


def module_of(path):
    """`ce_fx/plan/grid.py` is `ce_fx.plan.grid`; an `__init__` keeps its name, so that `.` means its package."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def files(room):
    return sorted((PACKAGE / room).rglob("*.py")) if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]


@pytest.mark.parametrize("room", [*MAY_IMPORT, *sorted(LEAVES)])
def test_no_arrow_points_back(room):
    present = [path for path in files(room) if path.exists()]
    if not present:
        pytest.skip(f"ce_fx has no {room} yet")
    assert [fault for path in present for fault in faults(path.read_text(), module_of(path))] == []


def test_every_room_has_its_line_here():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= set(MAY_IMPORT) | DOORS


@pytest.mark.parametrize(
    ("module", "source", "named"),
    [
        ("ce_fx.algebra.index", "import torch", "torch"),
        ("ce_fx.plan.grid", "def f():\n    from torch.fx import Node", "torch.fx.Node"),
        ("ce_fx.algebra.index", "from ce_fx.plan.grid import Grid", "ce_fx.plan.grid.Grid"),
        ("ce_fx.plan.grid", "from ..lower import emit", "ce_fx.lower.emit"),
        ("ce_fx.lift.rules.__init__", "from ...plan import grid", "ce_fx.plan.grid"),
        ("ce_fx.lower.emit", "if TYPE_CHECKING:\n    from ce_fx import lift", "ce_fx.lift"),
        ("ce_fx.capture.reading", "import ce_fx.lift.regions", "ce_fx.lift.regions"),
        ("ce_fx.report.report", "import ce_fx", "ce_fx"),
        ("ce_fx.errors", "from ce_fx.algebra import Index", "ce_fx.algebra.Index"),
    ],
)
def test_a_planted_arrow_is_found(module, source, named):
    (fault,) = faults(source, module)
    assert fault.startswith(f"{module} imports {named}:")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ce_fx.plan.grid", "from ce_fx.algebra import Index\nfrom .tree import Step\nimport math"),
        ("ce_fx.algebra.parser", "from ce_fx.errors import ExpressionError"),
        ("ce_fx.lower.emit", "import torch\nfrom ce_fx.plan.plan import Plan"),
    ],
)
def test_what_follows_the_data_is_allowed(module, source):
    assert faults(source, module) == []


def test_import_is_light():
    """Planners and plotters beyond what torch itself imports wait until they are used."""
    code = "import sys, ce_fx; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "ce_fx" in loaded
    assert loaded & HEAVY == set()


BARE = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: None if name.partition(".")[0] in {missing!r} else find(name, *args)
import torch
net, x = torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.Linear(12, 2)), torch.randn(48, 12)
fast = torch.compile(net, backend="ce_fx", options={{"inner": "eager", "objective": "flops", "tune": False}})
torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-4)
import ce_fx
view = ce_fx.optimize(net, (x,), objective="flops", tune=False)
print(ce_fx.report(view).count("rewritten"))
"""
EXTRAS = ("tensorly", "tltorch", "peft", "accelerate", "transformers", "cotengra", "matplotlib", "scipy")
EXTRAS += ("onnx", "onnxscript", "onnxruntime", "hypothesis", "pytest")


def test_it_runs_with_what_it_requires_and_nothing_else():
    code = [sys.executable, "-W", "ignore", "-c", BARE.format(missing=EXTRAS)]
    done = subprocess.run(code, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "1"


LATER = {"networkx", "sympy", "mpmath", "opt_einsum", "tabulate", "tqdm", "platformdirs", "cotengra", "matplotlib"}
LATER |= {"torch._dynamo", "torch._inductor", "torch._functorch", "torch.fx.experimental.symbolic_shapes"}
LATER |= {"torch.distributed.fsdp", "tensorly", "tltorch", "peft", "scipy", "pandas"}

ADDED = """
import sys, torch
before = set(sys.modules)
import ce_fx, ce_fx.compile_backend, ce_fx.cli
print(*sorted(set(sys.modules) - before))
"""


def fresh(code):
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_import_adds_none_of_the_slow_modules_to_torch():
    """`import ce_fx` takes 0.1 s at most beside `import torch`: what is imported is checked, since times vary."""
    added = set(fresh(ADDED).split())
    assert {"ce_fx", "ce_fx.compile_backend", "ce_fx.cli"} <= added
    assert [name for name in added if any(name == slow or name.startswith(f"{slow}.") for slow in LATER)] == []
    assert len([name for name in added if name.startswith("ce_fx")]) < 20


def test_import_of_the_package_alone_needs_no_torch():
    assert fresh("import sys, ce_fx; print('torch' in sys.modules, ce_fx.__version__)").split()[0] == "False"


def test_the_table_of_homes_is_the_list_of_public_names():
    import ce_fx

    assert list(ce_fx._HOMES) == [name for name in ce_fx.__all__ if name not in ce_fx._PACKAGES]
    assert sorted(ce_fx.__all__) == ce_fx.__all__
    assert set(ce_fx.__all__) <= set(dir(ce_fx))
    for name, home in ce_fx._HOMES.items():
        assert getattr(ce_fx, name) is getattr(sys.modules[home], name)


HIDING = """
import ce_fx.audit, ce_fx.capture, ce_fx.lift.rules, ce_fx.report.names, ce_fx.rewrite
import ce_fx.optimize, ce_fx.conv_einsum, importlib
print(all(callable(getattr(ce_fx, name)) for name in ce_fx._HOMES))
import ce_fx
importlib.reload(ce_fx)
from ce_fx import *
print(callable(audit), callable(report), ce_fx.audit is audit)
"""


def test_importing_a_module_does_not_hide_the_function_of_its_name():
    assert set(fresh(HIDING).split()) == {"True"}


def test_an_unknown_name_is_an_attribute_error():
    import ce_fx

    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        ce_fx.optimise  # noqa: B018
    with pytest.raises(ImportError):
        from ce_fx import optimise  # noqa: F401


def test_a_first_use_inside_a_compiled_function():
    """Dynamo looks the name up in the module, where it is not yet."""
    code = """
import torch, ce_fx
x, w = torch.randn(2, 3, 8), torch.randn(4, 3, 3)
run = torch.compile(lambda: ce_fx.conv_einsum("bsh,tsh->bth|h", x, w), fullgraph=True, backend="eager")
print("conv_einsum" in vars(ce_fx), tuple(run().shape), torch.equal(run(), ce_fx.conv_einsum("bsh,tsh->bth|h", x, w)))
"""
    assert fresh(code).split("\n")[0] == "False (2, 4, 8) True"
