"""The page in a real browser: it sorts, filters, links, draws, fits its window, and says nothing on the console."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import pytest

from svdexp.report.__main__ import main
from tests.report.browser import CHROMIUM, DRIVER, opened
from tests.report.fake_sweeps import leave_cell

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver")

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">"
TRACKER = "https://wandb.ai/me/svdexp/runs/1f0c?a=1&b=2"
ERRORS = {"ppl_stderr/wiki": 0.3, "ppl_stderr_dense/wiki": 0.1}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three methods at two ratios, one with a name that wants to be a program."""
    folder = tmp_path_factory.mktemp("report")
    for method, quality in (("kron", 5.0), ("svd_llm", 5.5), (HOSTILE, 60.0)):
        for ratio in (0.8, 0.6):
            more = {
                "command": f"method={method} ratio={ratio}",
                "commit": "c" * 40,
                "device": "H200",
                "tracker_url": TRACKER,
                **ERRORS,
            }
            path = leave_cell(folder / "runs" / str(quality), "x", ratio, quality, **more) / "results.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"method": method}))
    begun = folder / "runs" / "failed" / ".hydra"
    begun.mkdir(parents=True)
    (begun / "config.yaml").touch()
    (begun.parent / "failed.json").write_text(json.dumps({"error": HOSTILE}))
    assert main([str(folder / "runs"), "--to", str(folder / "to")]) == 0
    return folder / "to" / "report.html"


@pytest.fixture(scope="module", params=[1440, 390])
def browser(request: pytest.FixtureRequest, page: Path) -> Iterator[Any]:
    with opened(page, request.param, dark=request.param == 390) as found:
        yield found


def until(browser: Any, found: Callable[[], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda _: found())


def script(browser: Any, words: str, *values: Any) -> Any:
    return browser.execute_script(words, *values)


def test_a_run_leads_to_its_tracker(page: Path) -> None:
    assert page.read_text().count(f'<a href="{escape(TRACKER)}">') == 6


ROWS = """
const table = [...document.querySelectorAll("table")].find((table) => table.tHead.textContent.includes(arguments[0]));
const shown = [...table.tBodies[0].rows].filter((row) => row.offsetParent);
return shown.map((row) => [...row.cells].map((cell) => cell.textContent));
"""


def rows(browser: Any, heading: str) -> list[list[str]]:
    found: list[list[str]] = script(browser, ROWS, heading)
    return found


def click(browser: Any, selector: str, words: str) -> None:
    script(
        browser,
        "[...document.querySelectorAll(arguments[0])].find((one) => one.textContent.startsWith(arguments[1])).click()",
        selector,
        words,
    )


def test_headings_sort_by_number_and_back(browser: Any) -> None:
    heads = script(
        browser,
        "return [...document.querySelectorAll('th')].map((h) => h.textContent).filter((h) => h.startsWith('ppl/'))",
    )
    assert heads == ["ppl/ptb", "ppl/wiki"]
    at = 9
    click(browser, "button.sort", "ppl/wiki")
    up = [float(row[at]) for row in rows(browser, "ppl/wiki")]
    assert up == sorted(up)
    assert len(set(up)) == 6
    click(browser, "button.sort", "ppl/wiki")
    assert [float(row[at]) for row in rows(browser, "ppl/wiki")] == up[::-1]
    click(browser, "button.sort", "run")


def test_words_filter_rows(browser: Any) -> None:
    set_filter = """
    const table = [...document.querySelectorAll("table")].find((table) => table.tHead.textContent.includes("achieved"));
    const field = table.closest(".table").querySelector(".filter");
    if (!field) return false;
    field.value = arguments[0];
    field.dispatchEvent(new Event("input", { bubbles: true }));
    return true
    """
    assert script(browser, set_filter, "svd_llm 11.28")
    assert [row[2] for row in rows(browser, "achieved")] == ["svd_llm"]
    script(browser, set_filter, "")
    assert len(rows(browser, "achieved")) == 6


def test_a_chip_hides_its_line_in_tables_and_pictures(browser: Any) -> None:
    marks = """
    const paths = [...document.querySelectorAll("#s3 .picture svg .mark-symbol path")];
    return paths.map((path) => path.getAttribute("fill"));
    """
    script(browser, "document.querySelector('[data-picture]').scrollIntoView()")
    until(browser, lambda: "#e0561a" in script(browser, marks))
    click(browser, ".chip", "kron")
    until(browser, lambda: "#e0561a" not in script(browser, marks))
    assert {row[2] for row in rows(browser, "achieved")} == {"svd_llm", HOSTILE}
    script(browser, "document.getElementById('all-lines').click()")
    until(browser, lambda: "#e0561a" in script(browser, marks))
    assert len(rows(browser, "achieved")) == 6


def test_a_row_leads_to_its_run(browser: Any, page: Path) -> None:
    click(browser, "td a", "3")
    shown = (
        "return [...document.querySelectorAll('.run')].filter((run) => run.offsetParent).map((run) => run.innerText)"
    )
    (text,) = until(browser, lambda: script(browser, shown))
    assert "python -m svdexp method=kron ratio=0.8" in text
    assert "c" * 40 in text
    assert "H200" in text
    assert "ppl/wiki" in text
    folder = script(browser, "return document.querySelector('.run:target .folder').href")
    assert folder == (page.parent.parent / "runs" / "5.0" / "x_0.8").as_uri()
    until(browser, lambda: script(browser, "return document.querySelectorAll('.run:target svg').length") == 2)


def test_two_runs_are_held_against_each_other(browser: Any) -> None:
    choose = """
    for (const [id, value] of [["run-a", arguments[0]], ["run-b", arguments[1]]]) {
      document.getElementById(id).value = value;
      document.getElementById(id).dispatchEvent(new Event("change", { bubbles: true }));
    }
    """
    at_08 = {row[2]: row[0] for row in rows(browser, "achieved") if row[6] == "0.8"}
    script(browser, choose, at_08["kron"], at_08["svd_llm"])
    found = {row[0]: row for row in rows(browser, "B − A")}
    assert found["ppl/wiki"][5] == "inside the errors"
    assert found["ppl/ptb"][5] == "worse"
    script(browser, choose, at_08["svd_llm"], at_08["kron"])
    assert {row[0]: row for row in rows(browser, "B − A")}["ppl/ptb"][5] == "better"
    assert ["method", "svd_llm", "kron"] in rows(browser, "settingAB")
    at_06 = {row[2]: row[0] for row in rows(browser, "achieved") if row[6] == "0.6"}
    script(browser, choose, at_08["kron"], at_06["kron"])
    pictures = """
    return [...document.querySelectorAll("#difference svg")].map((one) => {
      const [, y] = one.querySelectorAll(".role-axis-label");
      const ends = [...y.querySelectorAll("text")].map((text) => Number(text.textContent.replace("−", "-")));
      return [one.querySelector(".role-title-text").textContent, ends];
    });
    """
    until(browser, lambda: len(script(browser, pictures)) == 2)
    found = dict(script(browser, pictures))
    assert min(found["Rank, B − A"]) < 0  # less is kept
    assert max(found["Energy lost, B − A"]) > 0 >= min(found["Energy lost, B − A"])


def test_a_point_says_what_it_is(browser: Any) -> None:
    point = "#s3 .picture svg .mark-symbol path[fill='#e0561a']"
    script(browser, "document.querySelector('[data-picture]').scrollIntoView()")
    until(browser, lambda: script(browser, "return !!document.querySelector(arguments[0])", point))
    move = """
    const mark = document.querySelector(arguments[0]), box = mark.getBoundingClientRect();
    const at = { bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 };
    for (const kind of ["pointermove", "mousemove", "mouseover"]) mark.dispatchEvent(new MouseEvent(kind, at));
    """
    script(browser, move, point)
    said = until(browser, lambda: script(browser, "return document.querySelector('#vg-tooltip-element')?.innerText"))
    assert "kron" in said
    assert "kept" in said


def test_the_page_fits_its_window_and_the_console_is_silent(browser: Any) -> None:
    script(browser, "scrollTo(0, document.documentElement.scrollHeight)")
    # A picture is drawn when a frame shows its place: to scroll on before that frame would pass it by.
    drawn = """
    const place = document.querySelector(`[data-picture='${arguments[0]}']`);
    place.scrollIntoView();
    return !!place.querySelector("svg")
    """
    places = script(browser, "return [...document.querySelectorAll('[data-picture]')].map((p) => p.dataset.picture)")
    assert places
    for place in places:
        until(browser, partial(script, browser, drawn, place))
    width = script(browser, "return innerWidth")
    assert script(browser, "return document.documentElement.scrollWidth") <= width
    over = """
    const pictures = [...document.querySelectorAll(".picture svg")];
    return pictures.filter((one) => one.getBoundingClientRect().right > innerWidth).length;
    """
    assert script(browser, over) == 0
    assert browser.title == "svdexp: report"
    assert browser.get_log("browser") == []
    dark = width == 390
    assert script(browser, "return getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)"
    )


LABELS = """
const overlapping = [];
for (const axis of document.querySelectorAll(".picture svg .role-axis")) {
  const shown = [...axis.querySelectorAll("text")].filter((text) => text.getAttribute("opacity") !== "0");
  const boxes = shown.map((text) => text.getBoundingClientRect());
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
    const apart = a.left >= b.right || b.left >= a.right || a.top >= b.bottom || b.top >= a.bottom;
    if (!apart) overlapping.push(axis.textContent);
  }));
}
return overlapping
"""


def test_no_labels_overlap(browser: Any) -> None:
    assert script(browser, LABELS) == []
