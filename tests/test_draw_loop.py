import re
from xml.etree import ElementTree

import pytest

from tests.draw_loop import IMAGES
from tests.draw_loop import KINDS
from tests.draw_loop import THEMES
from tests.draw_loop import drawing
from tests.draw_loop import main
from tests.draw_loop import picture
from tests.observe.report.browser import PATH
from tests.observe.report.browser import Browser
from tests.pages import ROOT

PAGE = ROOT / "docs" / "concepts" / "order_of_events.md"
SVG = "{http://www.w3.org/2000/svg}"
# Texts that overlap others, or reach over the edge of the innermost box that they begin in.
TOO_WIDE = """(() => {
    const rectangles = [...document.querySelectorAll('rect')].map(each => each.getBBox());
    const boxes = rectangles.filter(each => each.width > 10);
    const texts = [...document.querySelectorAll('text')];
    const right = box => box.x + box.width;
    return texts.filter(text => {
        const box = text.getBBox(), y = box.y + box.height / 2;
        const around = boxes.filter(
            each => each.x <= box.x && box.x < right(each)
                && each.y <= y && y < each.y + each.height
        );
        const limit = Math.min(378, ...around.map(right));
        const beside = texts.map(each => each.getBBox()).filter(
            each => Math.abs(each.y - box.y) < 3 && each.x > box.x
        );
        return right(box) > limit - 3 || beside.some(each => right(box) > each.x - 3);
    }).map(text => text.textContent);
})()"""


@pytest.fixture(params=THEMES)
def root(request):
    return ElementTree.fromstring(picture(THEMES[request.param]))


def is_box(rectangle):
    return float(rectangle.get("width")) > 10  # the squares of the legend are smaller


def events_in(text):
    return [word for word in re.findall(r"\w+", text) if word in KINDS]


def test_the_pictures_of_the_docs_are_drawn_from_events_py(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.draw_loop.IMAGES", tmp_path)
    main()
    for name in THEMES:
        is_same = (tmp_path / name).read_text() == (IMAGES / name).read_text()
        assert is_same, "run: python -m tests.draw_loop"


def test_the_page_has_the_drawing_of_events_py():
    assert f"```text\n{drawing()}\n```" in PAGE.read_text()
    for name in THEMES:
        assert f"../images/{name}" in PAGE.read_text()


def test_the_picture_has_all_words_of_the_drawing_in_order(root):
    lines = [line for line in drawing().splitlines() if not line.strip().startswith("end of ")]
    marks = re.compile(r"on_\w+ ┘|┐|on_\w+(?= ┐)")
    drawn = re.findall(r"[\w(),.:;]+", " ".join(marks.sub("", line) for line in lines))
    texts = [each for each in root.iter(f"{SVG}text") if each.get("text-anchor") is None]
    shown = re.findall(r"[\w(),.:;]+", " ".join("".join(each.itertext()) for each in texts))
    assert shown[: len(drawn)] == drawn


def test_the_box_of_a_channel_has_its_events(root):
    boxes = [each for each in root.iter(f"{SVG}rect") if is_box(each)]
    channels, lines = re.findall(r"(\w+) ┐", drawing()), drawing().splitlines()
    assert len(boxes) == len(channels)
    for box, channel in zip(boxes, channels, strict=True):
        top = float(box.get("y"))
        bottom = top + float(box.get("height"))
        within = [
            "".join(each.itertext())
            for each in root.iter(f"{SVG}text")
            if top < float(each.get("y")) < bottom
        ]
        assert channel in within
        opens, closes = (
            next(number for number, line in enumerate(lines) if line.endswith(f"{channel} {mark}"))
            for mark in "┐┘"
        )
        expected = events_in("\n".join(lines[opens : closes + 1]))
        assert events_in(" ".join(within)) == expected


@pytest.mark.browser
@pytest.mark.skipif(PATH is None, reason="needs Chromium")
def test_the_texts_of_the_picture_fit_into_their_boxes():
    browser = Browser()
    try:
        browser.open(IMAGES / "loop.svg", width=380)
        assert browser.evaluate(TOO_WIDE) == []
    finally:
        browser.close()
