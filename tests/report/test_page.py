"""The page: well-formed, self-contained, escaped; and in a real browser, where there is one."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ce_fx.report import Report
from ce_fx.report.drawing import _briefs, bar, network, tree
from ce_fx.report.product import Operand, Product
from tests.report.browser import CHROMIUM, DRIVER, browser
from tests.report.made import LAYERS, PLAN, REPORT, TERM, A, B, X, rewritten, same

VOID = {"meta", "link", "br", "wbr", "circle", "rect", "line", "path"}


class Reader(HTMLParser):
    """Reads a page; every element must be closed in its place."""

    def __init__(self):
        super().__init__()
        self.open, self.found, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def page():
    return REPORT.to_html()


@pytest.mark.parametrize("form", ["to_html", "_repr_html_"])
def test_it_is_well_formed_and_needs_no_network(form):
    html = getattr(REPORT, form)()
    reader = read(html)
    assert not re.search(r"(https?:)?//[\w.-]+\.\w", html) and "@import" not in html and "url(" not in html
    assert not any("src" in attributes for _, attributes in reader.found)
    assert {attributes["href"][0] for attributes in reader.all("a")} <= {"#"}
    assert reader.all("link") in ([], [{"rel": "icon", "href": "data:,"}])


def test_it_tells_all_that_the_text_tells(page):
    text = " ".join(" ".join(read(page).text).split())
    for words in ("Net, forward, eval", "1 multiply-add = 2 FLOPs", "coverage: 22%", "graph break at net.py:3"):
        assert words in text
    for layer in LAYERS:
        assert layer.name in text
    assert "2.436 G + ?" in text and "28.8x more" in text


def test_every_plan_is_drawn_once_and_linked(page):
    reader = read(page)
    details = reader.all("details")
    assert [one["id"] for one in details] == ["plan-1", "plan-2"] and "open" in details[0]
    assert [one["href"] for one in reader.all("a")] == ["#plan-1", "#plan-1", "#plan-2"]
    drawings = [one["aria-label"] for one in reader.all("svg") if one["class"] == "drawing"]
    assert len([name for name in drawings if name.startswith("tensor network")]) == 4, "before and after, of two plans"
    assert len([name for name in drawings if name.startswith("order of evaluation")]) == 2
    bars = [one["aria-label"] for one in reader.all("svg") if one["class"] == "bar"]
    assert bars[3:6] == [
        "FLOPs: 182.6 M → 64.23 M",
        "time, measured: 4 ms → 2 ms",
        "largest intermediate: 2.6 MB → 200 kB",
    ]


def test_headings_are_buttons_and_say_how_they_sort(page):
    reader = read(page)
    headings = [one for one in reader.all("th") if "data-kind" in one]
    assert len(headings) == 11 == len(reader.all("button"))
    assert {one["aria-sort"] for one in headings} == {"none"} and all(
        one["type"] == "button" for one in reader.all("button")
    )
    assert len({one["data-name"] for one in headings}) == 11


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in read(page).found if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("form", ["to_html", "_repr_html_"])
def test_everything_is_escaped(form):
    evil = '</script><img src=x onerror="alert(1)">&'
    layer = rewritten(evil, reason=evil, kind=evil, expression=evil, written=(evil,))
    report = Report((layer,), evil, "time", (evil,))
    reader = read(getattr(report, form)())
    assert not reader.all("img") and "onerror" not in {name for _, attributes in reader.found for name in attributes}
    assert evil in "".join(reader.text)


def test_refused_casts_share_a_row():
    casts = [same(name, "refused", f"reason of {name}", 0, 1e-6, "") for name in "ab"]
    text = " ".join("".join(read(Report((LAYERS[0], *casts)).to_html()).text).split())
    assert "(2 without multiply-adds)" in text and "2 refused" in text and "refused: b - reason of b" in text


def test_an_empty_report_has_a_page():
    assert "no multilinear layer was found" in Report(()).to_html()


def test_a_network_has_a_node_for_each_tensor_and_a_line_for_each_shared_index():
    reader = read(network(TERM))
    assert [one["class"] for one in reader.all("circle")].count("weight") == 2
    assert [one["class"] for one in reader.all("circle")].count("value") == 1
    assert [one["class"] for one in reader.all("circle")].count("dot open") == 1, "h and w, kept and convolved"
    text = "".join(reader.text)
    assert "r=2" in text and "s=64" in text and "h=56/3 w=56/3" in text
    assert "(2) r=2" in "".join(read(network(PLAN, numbered=True)).text)


def test_names_are_as_long_as_it_takes_to_tell_them_apart():
    adapter = ["base.conv.lora_A.default.weight", "base.conv.lora_B.default.weight", "base.conv.base_layer.weight"]
    assert _briefs(adapter) == ["lora_A.default.weight", "lora_B.default.weight", "base_layer.weight"]
    assert _briefs(["x", "net.0.weight", "f(net.1.factor)", "x"]) == ["x", "0.weight", "factor", "x"]
    assert _briefs(["a" * 40]) == ["…" + "a" * 21]


def test_module_paths_may_break_and_numbers_may_not():
    page = replace(REPORT, layers=(replace(LAYERS[1], name="a.0.b", reason="1.36x as b.c"),)).to_html()
    assert ">a.<wbr>0.<wbr>b</a>" in page and "1.36x as b.<wbr>c" in page


def test_a_drawing_is_as_large_as_what_is_drawn():
    leg = Operand("a.factor", ("x", "y"), (3, 4), weight=True)
    chain = Product("ab,bc,cx,xy->ay", (X, A, B, leg), ("a", "x", "y"))
    for drawn in (network(TERM), network(chain), tree(PLAN)):
        reader = read(drawn)
        left, top, width, height = map(float, reader.all("svg")[0]["viewbox"].split())
        for one in reader.found:
            for name, low, size in (("x", left, width), ("y", top, height)):
                for value in (one[1].get(key) for key in (name, f"{name}1", f"{name}2", f"c{name}")):
                    assert value is None or low <= float(value) <= low + size


def test_a_tree_has_a_circle_for_each_tensor_and_step():
    reader = read(tree(PLAN))
    assert len(reader.all("circle")) == 5 and len(reader.all("path")) == 4
    assert "57.8 M" in reader.text and tree(TERM) == ""


def test_bars_are_shares_of_the_largest():
    widths = [one["width"] for one in read(bar(2, 1, 2, "x")).all("rect")]
    assert widths == ["100.00", "50.00"]
    assert [one["width"] for one in read(bar(None, 0, 0, "x")).all("rect")] == ["0.00", "0.00"]


needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@needs_browser
def test_in_a_browser_it_sorts_by_mouse_and_keyboard_and_writes_nothing_to_the_console(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    names = "return [...document.querySelectorAll('#layers tbody th')].map((cell) => cell.textContent)"
    sorts = "return [...document.querySelectorAll('#layers thead th')].map((cell) => cell.ariaSort).join(' ')"
    graph = [layer.name for layer in LAYERS]
    with browser() as tab:
        tab.open(path)
        assert tab.run(names) == graph
        tab.click("#layers th:nth-child(8) button")  # gain in time
        assert tab.run(names)[0] == "layer1.10.conv1" and tab.run(names)[-1] == "layer2.mystery", "unknown is last"
        assert tab.run(sorts).split()[7] == "descending" and tab.run(sorts).count("none") == 10
        tab.click("#layers th:nth-child(8) button")
        assert tab.run(names)[-2:] == ["layer1.10.conv1", "layer2.mystery"]
        tab.keys(chr(0xE007))  # the enter key, at the button that has the focus
        assert tab.run(names) == graph and tab.run(sorts).count("none") == 11
        tab.click("#layers th:nth-child(1) button")
        assert tab.run(names)[:4] == ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.10.conv1"]
        assert tab.run("return document.getElementById('said').textContent") == "sorted by layer, ascending"
        tab.click("a[href='#plan-2']")
        assert tab.run("return document.getElementById('plan-2').open") is True
        assert tab.run("return document.documentElement.scrollWidth <= innerWidth") is True
        assert tab.console() == []


@needs_browser
def test_in_a_browser_it_is_readable_in_light_and_dark(page, tmp_path):
    """Contrast of text by WCAG 2: at least 4.5 to 1."""
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    contrast = """
        const level = (text) => {
          const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
            .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const paper = getComputedStyle(document.body).backgroundColor;
        const inks = ["body", ".soft", ".rewritten", ".refused", "a"].map((s) => document.querySelector(s));
        return [paper, ...inks.map((element) => {
          const [a, b] = [level(getComputedStyle(element).color), level(paper)].sort((x, y) => y - x);
          return (a + 0.05) / (b + 0.05);
        })];"""
    papers = []
    with browser() as tab:
        tab.open(path)
        for scheme in ("light", "dark"):
            tab.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            paper, *found = tab.run(contrast)
            papers.append(paper)
            assert min(found) >= 4.5, (scheme, found)
    assert papers[0] != papers[1]
