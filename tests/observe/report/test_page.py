"""Tests of the page of a report: of its HTML, and of what readers see in a browser."""

import ast
import json
import re
import shlex
import sys
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from types import ModuleType

import pytest

from ignite_hooks.observe.report.chart_library import chart_library
from ignite_hooks.observe.report.key_numbers import compared_results
from ignite_hooks.observe.report.key_numbers import key_numbers
from ignite_hooks.observe.report.page import render
from ignite_hooks.observe.report.page_text import duration_text
from ignite_hooks.observe.report.page_text import number_text
from ignite_hooks.observe.report.page_text import percent_text
from ignite_hooks.observe.report.page_text import time_text
from ignite_hooks.observe.report.page_text import value_text
from tests.observe.report import example_pages
from tests.observe.report.browser import PATH
from tests.observe.report.browser import Browser
from tests.observe.report.example_pages import CASES
from tests.observe.report.example_pages import HOSTILE

pytest.importorskip("jinja2")
pytest.importorskip("vl_convert")
SHOWN_HOSTILE = HOSTILE.replace("\ud800", "?")  # UTF-8 has no lone surrogate


class Elements(HTMLParser):
    """The elements of a page: (name, attributes, text) of each."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), []))

    def handle_data(self, data):
        if self.found:
            self.found[-1][2].append(data)

    def texts(self, tag):
        return ["".join(text) for name, _, text in self.found if name == tag]


# ---- Without a browser.


def test_page_has_no_address_and_admits_its_own_scripts_only():
    elements = Elements(render(CASES["usual"]())).found
    addresses = [
        value
        for _, attributes, _ in elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "srcset")
    ]
    assert addresses == ["data:,"]
    policies = [a["content"] for _, a, _ in elements if "http-equiv" in a]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; script-src 'unsafe-eval' 'sha256-")
    scripts = [attributes for name, attributes, _ in elements if name == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}, {}]
    assert not any(name.startswith("on") for _, attributes, _ in elements for name in attributes)


def test_hostile_names_stay_text():
    data = CASES["hostile"]()
    html = render(data)
    html.encode()
    elements = Elements(html)
    assert [name for name, *_ in elements.found].count("script") == 3
    assert f"{SHOWN_HOSTILE}: finished at step 2,000: max_epochs" in elements.texts("title")[0]
    (embedded,) = [
        "".join(text) for _, attributes, text in elements.found if attributes.get("id") == "data"
    ]
    assert json.loads(embedded)["panels"] == data["panels"]
    code, command = elements.texts("pre")[1:3]
    path = next(
        e.value
        for e in ast.walk(ast.parse(code))
        if isinstance(e, ast.Constant) and e.value == HOSTILE
    )
    assert path == HOSTILE
    assert shlex.split(command)[-1] == SHOWN_HOSTILE


def test_tables_and_numbers_are_there_without_scripts():
    html = render(CASES["in_progress"]())
    text = re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(script|style).*?</\1>|<wbr>", "", html))
    text = " ".join(text.split())
    for part in (
        "The curves need JavaScript",
        "62 % done, 1 h 05 min left step 1,240, epoch 12.4 8 min 16 s of training",
        "val_accuracy 0.9586 highest, at step 1,200",
        "data 39 % backward 21 %",
        "set num_workers to 2 or more",
        "tensors [16, 10] float32 on cpu since step 400 : the limit of memory is reached after",
        "2 h 35 min, counted from step 1,800",
        "train.losses[1273].grad_fn ; train.losses is a list of 1,274 items",
        "resident memory 3.1 MiB per 1,000 steps",
        "From /home/ada/experiments/runs/digits/step_00001200 . 14 lines of the record after",
        "data approximate a stream without a state is iterated again",
        "weight_decay 0.01",
        "python train.py --lr 0.001 --name &#39;digits, the first&#39;",
        "Made by ignite_hooks on 2026-11-30 01:20 UTC",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("case", "is_said"), [("quiet", True), ("in_progress", False), ("usual", False)]
)
def test_run_that_has_long_reported_nothing_may_be_killed(case, is_said):
    html = render(CASES[case]())
    assert ("the run had reported nothing for 1 h 18 min." in html) is is_said
    assert ("may have been killed" in html) is is_said


def test_checkpoint_to_load_is_the_best_that_is_there():
    data = CASES["usual"]()
    checkpoints = data["runs"][0]["checkpoints"]
    assert "load_weights" in render(data)
    assert "path = &#39;/home/ada/experiments/runs/digits/step_00001600&#39;" in render(data)
    checkpoints[-2]["is_there"] = False
    assert "path = &#39;/home/ada/experiments/runs/digits/step_00002000&#39;" in render(data)
    checkpoints[-1]["is_there"] = False
    assert "load_weights" not in render(data)


def test_the_best_checkpoint_is_shown_before_removed_ones():
    data = CASES["usual"]()
    run = data["runs"][0]
    kept = {**run["checkpoints"][0], "metric": None, "is_best": False}
    run["checkpoints"] = [
        {**kept, "path": f"step_{step:02}", "is_there": step in (3, 19), "is_best": step == 3}
        for step in range(20)
    ]

    def rows(html):
        return re.findall(r"<code>step_(\d\d)</code>", html)

    html = render(data)
    shown, others = html.split("<summary>18 other checkpoints</summary>")
    assert rows(shown) == ["19", "03"]
    assert rows(others) == [f"{step:02}" for step in reversed(range(20)) if step not in (3, 19)]
    for each in run["checkpoints"]:
        each["is_there"] = False
    assert len(rows(render(data).split("<summary>11 other checkpoints</summary>")[0])) == 9


def test_key_numbers_are_those_of_validations_first():
    data = CASES["usual"]()
    run = data["runs"][0]
    run["summaries"][0]["metric"] = run["curves"][0]["metric"] = "accuracy"
    panels = [
        example_pages.panel("accuracy", ["accuracy"]),
        example_pages.panel("loss", ["val_loss"]),
        *example_pages.PANELS[1:],
    ]
    found = key_numbers(run, panels)
    names = ["val_loss", "val_accuracy", "accuracy", "samples_per_second", "max_ram_mib"]
    assert [each.metric for each in found] == names
    assert [each.note.split(",")[0] for each in found] == [
        "lowest",
        "highest",
        "lowest",
        "last",
        "highest",
    ]


def test_key_numbers_are_no_arbitrary_metrics():
    data = CASES["usual"]()
    run = data["runs"][0]
    grad_norm = [example_pages.panel("grad_norm", ["grad_norm"])]
    assert [each.metric for each in key_numbers(run, grad_norm)] == ["grad_norm"]
    found = key_numbers(run, [*grad_norm, example_pages.panel("loss", ["loss"])])
    assert [each.metric for each in found] == ["loss"]


def test_runs_are_compared_by_their_best_values():
    data = CASES["three_runs"]()
    found = {each.metric: each for each in compared_results(data["runs"])}
    assert [*found] == ["val_loss", "val_accuracy", "loss"]
    assert found["val_loss"].winner == min(found["val_loss"].values)
    assert found["val_accuracy"].winner == max(found["val_accuracy"].values)
    del data["runs"][1]["summaries"][:]
    assert compared_results(data["runs"])[0].values[1] is None
    assert "What differs" in render(data)


def test_library_cannot_end_its_script_element(cache):
    chart_library()
    (path,) = cache.rglob("vega-*.js")
    code = "window.vegaEmbed = '</script><!--';"
    path.write_text(f"{sha256(code.encode()).hexdigest()}\n{code}", encoding="utf-8")
    scripts = Elements(render(CASES["usual"]())).texts("script")
    assert len(scripts) == 3
    assert scripts[1].strip().endswith("';")


@pytest.mark.parametrize("value", [None, "Infinity", ["odd"]])
def test_growth_of_another_form_is_no_error(value):
    data = CASES["usual"]()
    finding = example_pages.GROWTH[0]
    data["runs"][0]["growth"] = [{}, *(finding | {name: value} for name in finding)]
    assert render(data).count('<div class="finding">') == 1 + len(finding)


def test_failure_comes_before_the_numbers():
    html = render(CASES["failed"]())
    places = [html.index(part) for part in ("<h1>", "<h2>torch.OutOfMemoryError", 'class="keys"')]
    assert places == sorted(places)


NUMBERS = {
    0.0001234: "1.23e-4",
    12345.4: "12,345",
    0.98612: "0.9861",
    0.03: "0.03",
    0: "0",
    -2.5: "-2.5",
    999.96: "1,000",
    1e-3: "0.001",
    999_999: "999,999",
    12_345_678: "1.23e7",
    2e-300: "2e-300",
    1e300: "1e300",
    100: "100",
    0.1 + 0.2: "0.3",
    1234.5678: "1,235",
    1000.5: "1,001",  # as JavaScript rounds it
    100.25: "100.3",
    1_005_000: "1.01e6",
}


def test_numbers_durations_and_times_are_for_people():
    assert {number: number_text(number) for number in NUMBERS} == NUMBERS
    assert number_text(None) == "–"
    durations = {
        -1: "0.0 s",
        4.24: "4.2 s",
        59.4: "59 s",
        187: "3 min 07 s",
        3900: "1 h 05 min",
        86_400: "1 d 0 h",
        183_600: "2 d 3 h",
    }
    assert {seconds: duration_text(seconds) for seconds in durations} == durations
    assert [percent_text(share) for share in (0, 0.0004, 0.004, 0.0996, 0.394, 1)] == [
        "0 %",
        "< 0.1 %",
        "0.4 %",
        "10 %",
        "39 %",
        "100 %",
    ]
    assert time_text("2026-11-30T03:20:59+02:00") == "2026-11-30 01:20 UTC"
    assert time_text("2026-11-30T01:20:59Z") == "2026-11-30 01:20 UTC"
    assert time_text("soon") == "soon"
    settings = {None: "–", True: "True", 0.1 + 0.2: "0.3", 3e-4: "0.0003", 10**20: str(10**20)}
    assert {value: value_text(value) for value in settings} == settings


@pytest.mark.parametrize("module", ["jinja2", "vl_convert"])
def test_missing_package_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ignite-hooks\[report\]'"):
        render(CASES["usual"]())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_chart_library_is_built_once(cache):
    code = chart_library()
    (path,) = cache.rglob("vega-*.js")
    assert path.read_text(encoding="utf-8").endswith(code)
    inode = path.stat().st_ino
    assert chart_library() == code
    assert path.stat().st_ino == inode
    damaged = path.read_text(encoding="utf-8").replace("function", "funktion", 1)
    path.write_text(damaged, encoding="utf-8")
    assert chart_library() == code
    assert path.read_text(encoding="utf-8").endswith(code)
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("bundle", ["window.vegaEmbed=vegaEmbed;", None])
def test_library_without_vega_is_an_error(cache, monkeypatch, bundle):
    module = ModuleType("vl_convert")
    if bundle is not None:
        module.javascript_bundle = lambda snippet: bundle
    monkeypatch.setitem(sys.modules, "vl_convert", module)
    with pytest.raises(RuntimeError, match=r"pip install 'vl-convert-python>=1\.7,<2'"):
        chart_library()
    assert not cache.exists()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG is for other systems")
def test_relative_path_to_the_cache_is_ignored(cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    chart_library()
    assert [*cache.glob(".cache/ignite-hooks/vega-*.js")]


def test_cache_that_cannot_be_written_is_no_error(cache):
    cache.write_text("a file, where a folder should be")
    assert "vegaEmbed" in chart_library()[-100:]


# ---- In a browser.


@pytest.fixture(scope="module")
def browser():
    if PATH is None:
        pytest.skip("needs chromium, which is not on the PATH")
    opened = Browser()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Returns a function that writes the page of a case, and returns its path."""
    folder = tmp_path_factory.mktemp("pages")

    def written(case):
        path = folder / f"{case}.html"
        if not path.exists():
            path.write_text(render(CASES[case]()), encoding="utf-8")
        return path

    return written


@pytest.fixture
def opened(browser, pages):
    """Returns a function that opens a case, and checks afterwards that the browser is content."""

    def open_case(case, **options):
        browser.open(pages(case), **options)
        return browser

    yield open_case
    assert browser.messages == []
    assert len({each.partition("#")[0] for each in browser.requests}) == 1  # the page itself


def line_paths(number):
    """Returns the selector of the lines of a chart."""
    return f'[data-panel="{number}"] .chart svg .mark-line path'


def axis_labels(number):
    """Returns JavaScript for the labels of both axes of a chart."""
    return each_of(
        f'[data-panel="{number}"] svg .role-axis-label', "[...e.children].map(t => t.textContent)"
    )


def each_of(selector, expression):
    """Returns JavaScript for a list with a value for each element, which is called ``e``."""
    return f"[...document.querySelectorAll({json.dumps(selector)})].map(e => {expression})"


def drawable(curve):
    """Returns how many values of a curve can be drawn; Vega cannot draw the largest floats."""
    return sum(value is not None and abs(value) < 1e300 for value in curve["mean"])


def plot_of(browser, chart='[data-panel="0"] .chart'):
    """Returns the left, the top and the width of the plot of a chart, in the window."""
    found = f"document.querySelector({json.dumps(chart)})"
    browser.evaluate(f"{found}.scrollIntoView({{block: 'center'}})")
    browser.settle()
    box = browser.evaluate(f"(b => [b.left, b.top, b.width])({found}.getBoundingClientRect())")
    return box[0] + 52, box[1] + 10, box[2] - 72


@pytest.mark.browser
@pytest.mark.parametrize("case", CASES)
def test_every_page_is_drawn_and_fits(opened, case):
    browser = opened(case, height=20_000)
    sideways = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    data = CASES[case]()
    for width in (1280, 390):
        browser.resize(width, 20_000)
        browser.set_dark(width == 390)
        browser.settle()
        assert browser.evaluate(sideways) <= 0
        for number, panel in enumerate(data["panels"]):
            curves = [c for run in data["runs"] for c in run["curves"]]
            shown = [drawable(c) for c in curves if c["metric"] in panel["metrics"]]
            paths = browser.evaluate(each_of(line_paths(number), "e.getAttribute('d') ?? ''"))
            assert not any(wrong in "".join(paths) for wrong in ("NaN", "Infinity"))
            assert sum("L" in path for path in paths) >= sum(count > 1 for count in shown)
            assert any(shown) or not any("L" in path for path in paths)
            chart = f'[data-panel="{number}"] .chart'
            marks = browser.count(f"{chart} .mark-symbol path, {line_paths(number)}")
            assert marks > 0 or not any(shown)
            for axis in browser.evaluate(axis_labels(number)):
                assert len({*axis}) == len(axis), (panel["title"], axis)
            box, drawn = browser.evaluate(each_of(f"{chart}, {chart} svg", "e.clientWidth"))
            assert drawn <= box


@pytest.mark.browser
def test_hostile_names_are_text_in_the_browser(opened):
    browser = opened("hostile", height=20_000)
    assert browser.evaluate("document.querySelector('h1').textContent") == SHOWN_HOSTILE
    assert browser.count("script") == 3
    assert browser.text('[data-panel="8"] h4').startswith("__proto__")
    left, top, width = plot_of(browser, '[data-panel="8"] .chart')
    browser.mouse("mouseMoved", left + width, top + 50)
    assert "__proto__\t0.95" in browser.text("#tooltip")


@pytest.mark.browser
def test_charts_follow_a_change_to_dark(opened):
    browser = opened("usual")
    colour = f"getComputedStyle(document.querySelector('{line_paths(0)}')).stroke"
    light = browser.evaluate(colour)
    browser.set_dark(True)
    browser.settle()
    assert light == "rgb(0, 114, 178)"
    assert browser.evaluate(colour) == "rgb(78, 169, 230)"


@pytest.mark.browser
def test_charts_are_drawn_when_they_come_into_view(opened):
    browser = opened("forty")
    assert 0 < browser.count(".chart svg") < 15
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    browser.settle()
    assert browser.count(".chart svg") == len(CASES["forty"]()["panels"]) + 1  # and the events


@pytest.mark.browser
def test_filter_shows_the_charts_of_a_name(opened):
    browser = opened("forty", fragment="#show=recall/class_07")
    shown = each_of(".cell:not([hidden]) h4", "e.textContent")
    assert browser.evaluate(shown) == ["val/recall/class_07"]
    assert browser.text(".cell:not([hidden]) h3") == "Metrics"
    browser.fill("#filter", "GRAD")
    assert browser.evaluate(shown) == ["grad_norm"]
    assert browser.text(".cell:not([hidden]) h3") == "Optimization"
    browser.fill("#filter", "nothing like it")
    assert browser.text("#nothing") == "No metric has this name."
    assert opened("usual").count("#filter") == 0


@pytest.mark.browser
def test_x_axis_smoothing_and_zoom_survive_a_reload(opened):
    browser = opened("usual", fragment="")
    axis = each_of('[data-panel="0"] svg .role-axis-label', "e.textContent")
    title = """document.querySelector('[data-panel="0"] svg .role-axis-title').textContent"""
    assert browser.evaluate(title) == "step"
    for value, name in (("epoch", "epoch"), ("seconds", "training time, min")):
        browser.click(f"input[value={value}]")
        assert browser.evaluate(title) == name
    browser.fill("#smoothing", "5")
    assert browser.text("#smoothing-text") == "5 %"
    left, top, width = plot_of(browser)
    browser.mouse("mousePressed", left + width / 2, top + 50, button="left", clickCount=1)
    browser.mouse("mouseMoved", left + width + 40, top + 50, button="left", buttons=1)
    browser.mouse("mouseReleased", left + width + 40, top + 50, button="left", clickCount=1)
    browser.reload()
    assert browser.evaluate(title) == "training time, min"
    assert browser.text("#smoothing-text") == "5 %"
    assert browser.evaluate("location.hash").startswith("#x=seconds&smoothing=5&zoom=40")
    (labels, _) = browser.evaluate(axis)
    assert labels.startswith("8")
    left, top, width = plot_of(browser)
    for count in (1, 2):
        browser.mouse("mousePressed", left + 9, top + 50, button="left", clickCount=count)
        browser.mouse("mouseReleased", left + 9, top + 50, button="left", clickCount=count)
    assert "zoom" not in browser.evaluate("location.hash")
    assert browser.text("#reset") is None


@pytest.mark.browser
def test_smoothing_is_an_average_weighted_by_distance(opened):
    browser = opened("usual", fragment="#smoothing=0")
    lines = each_of(line_paths(0), "e.getAttribute('d')")
    plain = browser.evaluate(lines)
    assert len(plain) == 2  # training and validation
    browser.fill("#smoothing", "4")
    raw, smooth, validation = browser.evaluate(lines)
    assert (raw, validation) == (plain[0], plain[1])
    travelled = [
        sum(abs(b - a) for a, b in pairwise(ys))
        for ys in ([float(y) for y in re.findall(r",(-?[\d.]+)", d)] for d in (raw, smooth))
    ]
    assert travelled[1] < 0.3 * travelled[0]
    assert browser.count(line_paths(2)) == 1  # the learning rate, which is smooth, stays as it is


@pytest.mark.browser
def test_values_are_shown_under_the_mouse_and_by_keys(opened):
    browser = opened("usual")
    left, top, width = plot_of(browser)
    browser.mouse("mouseMoved", left + width / 2, top + 50)
    text = browser.text("#tooltip")
    step = int(
        re.match(r"step ([\d,]+) · epoch (9|10|10\.\d+|9\.\d+) · 6 min", text)[1].replace(",", "")
    )
    assert abs(step - 1000) <= 8  # a pixel is eight steps wide
    curve = CASES["usual"]()["runs"][0]["curves"][0]
    assert f"training\t{number_text(curve['mean'][curve['step'].index(step)])}\t" in text
    assert sum(browser.evaluate(each_of(".cursor", "e.checkVisibility()"))) > 3  # also elsewhere
    browser.mouse("mouseMoved", 1, 1)
    assert browser.text("#tooltip") is None
    browser.evaluate("""document.querySelector('[data-panel="0"] .chart').focus()""")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        browser.press(key)
    assert browser.text("#tooltip").startswith(f"step {number_text(step + 2)} ·")
    browser.press("+")
    browser.settle()
    assert "zoom=" in browser.evaluate("location.hash")
    browser.press("Escape")
    assert "zoom=" not in browser.evaluate("location.hash")


@pytest.mark.browser
def test_steps_have_all_their_digits(opened):
    browser = opened("narrow")
    assert "step 3,001,980, epoch" in browser.text(".facts")
    (xs, _) = browser.evaluate(axis_labels(0))
    assert xs[:2] == ["3,000,000", "3,000,500"]
    left, top, width = plot_of(browser)
    browser.mouse("mouseMoved", left + width, top + 50)
    assert browser.text("#tooltip").startswith("step 3,001,980 ·")


@pytest.mark.browser
def test_ticks_of_steps_are_whole(opened):
    browser = opened("usual", fragment="#zoom=100~101")
    (xs, _) = browser.evaluate(axis_labels(0))
    assert xs == ["100", "101"]


@pytest.mark.browser
def test_zoom_between_two_points_shows_their_line(opened):
    browser = opened("usual", fragment="#zoom=120~180")
    curves = {each["metric"]: each for each in CASES["usual"]()["runs"][0]["curves"]}
    before, after = curves["val_accuracy"]["mean"][:2]  # at the steps 100 and 200
    (_, ys) = browser.evaluate(axis_labels(1))
    assert len(ys) > 2
    assert all(before < float(y) < after for y in ys)


@pytest.mark.browser
def test_values_that_differ_by_rounding_make_a_flat_line(opened):
    browser = opened("narrow", fragment="#smoothing=0")
    path = browser.evaluate(each_of(line_paths(3), "e.getAttribute('d')"))[0]
    ys = [float(y) for y in re.findall(r",(-?[\d.]+)", path)]
    assert max(ys) - min(ys) < 0.1


@pytest.mark.browser
def test_tap_shows_values_until_the_next_tap_or_scroll(opened):
    browser = opened("usual", width=390)
    left, top, width = plot_of(browser)
    browser.tap(left + width / 2, top + 50)
    assert "training" in browser.text("#tooltip")
    browser.tap(5, 5)
    assert browser.text("#tooltip") is None
    browser.tap(left + width / 2, top + 50)
    browser.evaluate("scrollBy(0, 40)")
    browser.settle()
    assert browser.text("#tooltip") is None


@pytest.mark.browser
def test_events_are_on_the_time_axis(opened):
    browser = opened("failed")
    marks = CASES["failed"]()["runs"][0]["marks"]
    assert browser.count("#events .mark-rect.role-mark path") == len(marks)
    rules = '[data-panel="0"] .mark-rule.role-mark line'
    assert browser.count(rules) == 3  # the stop before the resume, the resume, and the error
    left, top, width = plot_of(browser, "#events .chart")
    browser.mouse("mouseMoved", left + width - 5, top + 5 * 22 + 6)  # in the last row
    assert browser.text("#tooltip").startswith("step 1,873 ·")
    assert "torch.OutOfMemoryError" in browser.text("#tooltip")


@pytest.mark.browser
def test_address_that_makes_no_sense_is_ignored(opened):
    fragment = "#x=bogus&smoothing=99&zoom=9e9~9e99&hidden=0&log=a.7&show=%F0"
    browser = opened("usual", fragment=fragment)
    assert browser.count(line_paths(0)) == 3
    assert browser.text("#smoothing-text") == "1 %"
    assert browser.text("#reset") is None


@pytest.mark.browser
def test_command_can_be_copied(opened):
    browser = opened("usual")
    browser.allow_clipboard()
    browser.click("section:last-of-type button.copy")
    copied = browser.evaluate("navigator.clipboard.readText()")
    assert copied == "python train.py --lr 0.001 --name 'digits, the first'"


@pytest.mark.browser
def test_wheel_zooms_with_ctrl_only(opened):
    browser = opened("usual")
    left, top, width = plot_of(browser)
    browser.evaluate("addEventListener('wheel', e => window.isTaken = e.defaultPrevented)")
    place = {"x": left + width / 2, "y": top + 50, "deltaX": 0, "deltaY": -100}
    browser.mouse("mouseWheel", **place)
    assert "zoom" not in browser.evaluate("location.hash")
    left, top, width = plot_of(browser)
    browser.mouse("mouseWheel", **(place | {"y": top + 50}), modifiers=2)
    assert "zoom=200~1800" in browser.evaluate("decodeURIComponent(location.hash)")
    assert browser.evaluate("isTaken")  # or the browser would zoom, too


@pytest.mark.browser
def test_values_that_are_not_finite_are_marked_below(opened):
    browser = opened("not_finite", fragment="#smoothing=0")
    path = browser.evaluate(f"document.querySelector('{line_paths(0)}').getAttribute('d')")
    assert path.count("M") == 3  # a gap of 40 points, and one of a single point
    marks = each_of('[data-panel="0"] .mark-symbol', "e.children.length")
    assert 41 in browser.evaluate(marks)  # crosses


@pytest.mark.browser
def test_best_value_is_marked_where_it_is_known(opened):
    browser = opened("usual")
    labels = '[data-panel="{}"] svg .role-mark.mark-text text'
    summaries = {each["metric"]: each for each in CASES["usual"]()["runs"][0]["summaries"]}
    lowest = f"lowest {number_text(summaries['val_loss']['lowest']['value'])}"
    assert {*browser.evaluate(each_of(labels.format(0), "e.textContent"))} == {lowest}
    assert browser.count(labels.format(2)) == 0


@pytest.mark.browser
def test_logarithmic_scale_is_for_one_chart(opened):
    browser = opened("usual")
    labels = [
        each_of(f'[data-panel="{number}"] .role-axis-label text', "e.textContent")
        for number in (0, 1)
    ]
    other = browser.evaluate(labels[1])
    browser.click('[data-panel="0"] .log')
    assert "0.1" in browser.evaluate(labels[0])
    assert browser.evaluate(labels[1]) == other
    browser.click('[data-panel="2"] .log')  # the learning rate ends at 0
    assert browser.count(line_paths(2)) == 1


@pytest.mark.browser
def test_narrow_logarithmic_axis_has_labels(opened):
    browser = opened("narrow", fragment="#log=0")
    (_, ys) = browser.evaluate(axis_labels(0))
    assert len({*ys}) == 3


@pytest.mark.browser
def test_runs_have_colours_and_can_be_hidden(opened):
    browser = opened("three_runs", height=3000)
    colours = each_of(line_paths(2), "getComputedStyle(e).stroke")
    assert len({*browser.evaluate(colours)}) == 3
    dashes = each_of(line_paths(0), "e.getAttribute('stroke-dasharray')")
    assert browser.evaluate(dashes).count("5,3") == 3
    before = browser.evaluate(colours)
    left, top, width = plot_of(browser)
    browser.mouse("mouseMoved", left + width, top + 50)
    # The runs have reached this step at different times.
    assert browser.text("#tooltip").startswith("step 2,000\n")
    browser.click('.shown[value="0"]')
    assert browser.evaluate(colours) == before[1:]
    browser.reload()
    assert browser.evaluate(colours) == before[1:]


@pytest.mark.browser
def test_page_without_scripts_has_the_tables(browser, pages):
    browser.without_scripts(True)
    try:
        browser.open(pages("in_progress"), wait=False)
        assert browser.evaluate("document.querySelector('#curves').checkVisibility()") is False
        assert browser.text("noscript").startswith("The curves need JavaScript.")
        assert browser.text("table") is not None
    finally:
        browser.without_scripts(False)


@pytest.mark.browser
def test_numbers_of_the_charts_are_written_as_in_the_tables(opened):
    browser = opened("usual", height=5000)
    curves = CASES["usual"]()["runs"][0]["curves"]
    last = {curve["metric"]: number_text(curve["mean"][-1]) for curve in curves}
    shown = browser.evaluate(each_of(".last span", "e.textContent"))
    names = [name for panel in example_pages.PANELS for name in panel["metrics"]]
    assert shown == [last[name] for name in names]


@pytest.mark.browser
def test_run_in_progress_can_be_reloaded_every_minute(opened):
    browser = opened("in_progress")
    browser.click("#reload")
    browser.reload()
    assert browser.evaluate("document.querySelector('#reload').checked")
    assert browser.text(".ago").endswith(" ago")
    assert opened("usual").count("#reload, .facts .ago") == 0
