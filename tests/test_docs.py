"""The pages say what is so: their code runs, commands print what they show, public names are documented."""

import inspect
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import ce_fx
from ce_fx import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md")) + [ROOT / "README.md"]
FENCE = re.compile(
    r"^(<!-- not run: (?P<why>.+?) -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)

GIVEN = {
    "README.md": """
import torch
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1, bias=False), torch.nn.Conv2d(8, 4, 1)).eval()
x = torch.randn(2, 3, 8, 8)
wt, ws, wh, ww = torch.randn(4, 5), torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3)
""",
    "nn.md": """
import torch
x = torch.randn(2, 64, 8, 8)
model = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(64, 128, 3))
""",
}
"""What a page takes for granted."""


def blocks(page, kind):
    return [found for found in FENCE.finditer(page.read_text(encoding="utf-8")) if found["kind"] == kind]


def runnable():
    return [page for page in PAGES if any(not found["why"] for found in blocks(page, "python"))]


@pytest.mark.parametrize("page", runnable(), ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """From the top, in one namespace, as a reader would paste it."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("a_page")  # Dynamo looks the globals of a function up in its module
    monkeypatch.setitem(sys.modules, "a_page", module)
    place = vars(module)
    exec(GIVEN.get(page.name, ""), place)
    text = page.read_text(encoding="utf-8")
    for found in blocks(page, "python"):
        if not found["why"]:
            line = text.count("\n", 0, found.start("code"))
            exec(compile("\n" * line + found["code"], str(page), "exec"), place)


def test_what_does_not_run_has_a_reason():
    skipped = [found["why"] for page in PAGES for found in blocks(page, "python") if found["why"]]
    assert 0 < len(skipped) < 12 and all(len(why) > 10 for why in skipped)


def consoles():
    """Commands on the pages that show what is printed: (page, command, output)."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            command, _, output = block["code"].partition("\n")
            if output.strip() and not output.startswith("$"):
                found.append(pytest.param(command, output, id=f"{page.name}: {command[:40]}"))
    return found


@pytest.mark.parametrize(("command", "output"), consoles())
def test_a_command_prints_what_the_page_shows(command, output, capsys, monkeypatch, tmp_path):
    """Times are those of the constants that come with the package, for one thread."""
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    prompt, program, *arguments = shlex.split(command)
    assert (prompt, program) == ("$", "ce-fx")
    assert cli.main(arguments) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == output.splitlines()


def test_every_command_on_the_pages_is_understood():
    lines = [line for page in PAGES for block in blocks(page, "console") for line in block["code"].splitlines()]
    commands = [line for line in lines if line.startswith("$ ")]
    assert len(commands) > 5
    for command in commands:
        _, program, *arguments = shlex.split(command)
        assert program == "ce-fx"
        cli.parser().parse_args(arguments)


def public():
    return [name for name in ce_fx.__all__ if callable(getattr(ce_fx, name))]


@pytest.mark.parametrize("name", public())
def test_every_public_name_is_documented(name):
    """Each parameter has its line, and functions say what they return or raise."""
    value = getattr(ce_fx, name)
    text = inspect.getdoc(value) or ""
    assert len(text) > 20
    if inspect.isclass(value):
        return
    for parameter in inspect.signature(value).parameters.values():
        assert re.search(rf"^ +\**{parameter.name}: ", text, re.MULTILINE), parameter.name
    assert "Raises:" in text or "Returns:" in text


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in ce_fx._HOMES if f"ce_fx.{name}\n" not in page] == []
    assert [name for name in ce_fx.nn.__all__ if f"ce_fx.nn.{name}\n" not in page] == []


def test_the_table_of_options_is_complete():
    from ce_fx.options import Options

    table = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    options = [f"`{name}`" for name in Options.__dataclass_fields__]
    assert [option for option in options if option not in table] == []
    text = inspect.getdoc(Options) or ""
    assert [name for name in Options.__dataclass_fields__ if f"    {name}: " not in text] == []
