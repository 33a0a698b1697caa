"""The report in headless Chromium, offline."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest

from fmnist.data import DataSet
from search.database.connection import lock, open_storage
from search.database.url import default_url
from search.queue import tickets
from search.report import write
from search.report.comparison import compare
from search.report.page import render_comparison
from search.results.finalists import define, place_of
from search.study.places import Place
from search.study.store import open_study
from search.worker.loop import WorkerSettings, work
from tests.conftest import NEEDS_CHROMIUM
from tests.factories import HIGH, LOW, contrast, definition, study_of, trained

pytestmark = NEEDS_CHROMIUM

EVIL = "<img src=x onerror=alert(1)><b>bold</b>"
CONTRAST = 4.5  # minimum for text: WCAG 2.2, 1.4.3
DESKTOP, PHONE = (1200, 900), (360, 740)

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tiny: DataSet, tiny_folder: Path) -> Path:
    """The report of a search with pruned trials, finalists and a hostile name."""
    folder = tmp_path_factory.mktemp("out")
    url, defined = (
        default_url(folder),
        definition(
            description=EVIL,
            sampler="random",
            pruner="median",
            defaults={"architecture": "simple", "epochs": 2, "filters": 4, "learning_rate": 0.002},
            space={
                "filters": {"low": 2, "high": 5},
                "learning_rate": {"low": 1e-4, "high": 0.05, "log": True},
                "batch_size": {"choices": [32, 64]},
            },
        ),
    )
    settings = WorkerSettings(url, EVIL, tiny_folder)
    storage = open_storage(url, "create")
    with lock(url):
        study = open_study(storage, EVIL, defined, tiny, Place(folder / "s"))
        tickets.top_up(study, defined, 24)
    work(settings, lambda: False)
    chosen = define(study, 2, 2)
    assert chosen is not None
    with lock(url):
        finalist_study = open_study(storage, f"{EVIL}.finalists", chosen, tiny, place_of(study, folder / "s"))
        tickets.top_up(finalist_study, chosen, None)
    work(settings, lambda: False)
    return write(study, folder / "s", folder / "report.html", lambda: tiny, url)


@pytest.fixture
def opened(browser: Any) -> Open:
    """Open a file; any network request and any error on the page fails the test."""

    @contextmanager
    def open_(path: Path, size: tuple[int, int] = DESKTOP, **options: Any) -> Iterator[Any]:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, offline=True, **options)
        page, failures = context.new_page(), []
        page.on("request", lambda request: failures.append(request.url) if not is_local(request.url) else None)
        page.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("dialog", lambda dialog: failures.append(dialog.message))
        page.goto(path.as_uri())
        yield page
        context.close()
        assert failures == []

    return open_


def is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:"))


def test_every_figure_is_drawn_offline(report: Path, opened: Open) -> None:
    with opened(report) as page:
        marks = page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll(".plot")].map((plot) => [plot.id,
                plot.querySelectorAll(".main-svg .points path, .main-svg .js-line, .main-svg .hm image,"
                    + ".main-svg .contourfill path, .main-svg .contourlines path").length]))"""
        )
        assert {"history", "history_by_time", "intermediate_values", "timeline", "finalists", "contour"} <= marks.keys()
        assert {"slice_filters", "slice_batch_size", "parallel_coordinates", "cost_seconds"} <= marks.keys()
        assert all(marks.values()), marks
        missing = page.evaluate("[...document.images].filter((image) => !image.complete || !image.naturalWidth).length")
        assert missing == 0
        assert page.locator(".gallery img").count() > 0
        assert page.locator(".filters img").count() > 0


def test_the_title_of_an_axis_is_below_its_ticks(report: Path, opened: Open) -> None:
    with opened(report) as page:
        gaps = page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll(".plot")].flatMap((plot) => {
                const [title, tick] = [".xtitle", ".xtick text"].map((each) => plot.querySelector(each));
                if (!title || !tick) return [];
                return [[plot.id, title.getBoundingClientRect().top - tick.getBoundingClientRect().bottom]];
            }))"""
        )
        assert {"history", "timeline", "finalists", "contour", "slice_filters", "cost_seconds"} <= gaps.keys()
        assert all(gap > 0 for gap in gaps.values()), gaps


OVERLAPS = """() => [...document.querySelectorAll(".plot")].flatMap((plot) => {
    const labels = ".xtick text, .ytick text, .xtitle, .ytitle, .annotation-text, .legendtext";
    const texts = [...plot.querySelectorAll(labels)].map((each) => [each.textContent, each.getBoundingClientRect()]);
    const meet = (one, other) => one.left < other.right && other.left < one.right
        && one.top + 2 < other.bottom && other.top + 2 < one.bottom; // boxes include the space between lines
    return texts.flatMap(([text, box], place) => texts.slice(place + 1).filter(([_, other]) => meet(box, other))
        .map(([other]) => `${plot.id}: ${text} / ${other}`));
})"""


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_labels_of_figures_do_not_overlap(report: Path, opened: Open, size: tuple[int, int]) -> None:
    with opened(report, size) as page:
        assert page.locator(".xtick text").count() > 20
        assert page.evaluate(OVERLAPS) == []


def test_a_slice_shows_all_choices_and_the_key_shows_the_marker_of_the_best(report: Path, opened: Open) -> None:
    with opened(report) as page:
        assert page.locator("#slice_batch_size .xtick text").all_text_contents() == ["32", "64"]
        assert page.locator("#slice_filters .xtick text").all_text_contents() == ["2", "3", "4", "5"]
        assert page.evaluate("document.getElementById('slice_filters').data.at(-1).marker.symbol") == "diamond"
        key = page.evaluate(
            """() => {
                const { borderRadius, transform } = getComputedStyle(document.querySelector(".key.diamond"));
                const { a, b } = new DOMMatrix(transform);
                return [borderRadius, (Math.atan2(b, a) * 180) / Math.PI];
            }"""
        )
        assert key == ["0px", pytest.approx(45)]


def test_user_text_is_escaped(report: Path, opened: Open) -> None:
    with opened(report) as page:
        assert page.inner_text("h1") == f"Study {EVIL}"
        assert page.locator("main b, header b, img[src=x]").count() == 0


def test_names_in_figures_are_escaped(tmp_path: Path, opened: Open) -> None:
    storage = optuna.storages.InMemoryStorage()
    found = compare([study_of(storage, name, trained(*values)) for name, values in ((EVIL, LOW), ("b & c", HIGH))])
    file = tmp_path / "comparison.html"
    file.write_text(render_comparison(found, [EVIL, "b & c"]), encoding="utf-8")
    with opened(file) as page:
        legend = page.locator("#by_epochs .legendtext").all_text_contents()
        assert legend == [EVIL, "b & c"]
        labels = page.locator("#answers .ytick text").all_text_contents()
        assert re.sub(r"\s", "", labels[-1]) == re.sub(r"\s", "", EVIL)
        assert page.locator("#answers [style*='bold'], #answers a").count() == 0


def test_no_figure_offers_an_upload(report: Path, opened: Open) -> None:
    with opened(report) as page:
        buttons = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map((each) => each.dataset.title)")
        assert "Download plot as a PNG" in buttons
        assert not [button for button in buttons if re.search("share|cloud|edit", button, re.IGNORECASE)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_page_does_not_scroll_sideways(report: Path, opened: Open, scheme: str) -> None:
    with opened(report, PHONE, has_touch=True, is_mobile=True, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
        wide = page.evaluate(
            """() => [...document.querySelectorAll("main *")].filter((each) => !each.closest(".scroll, .wide, pre")
                && each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML.slice(0, 80))"""
        )
        assert wide == []


def test_on_a_phone_tables_show_their_first_columns_and_the_others_below(report: Path, opened: Open) -> None:
    with opened(report, PHONE, has_touch=True, is_mobile=True) as page:
        assert page.locator(".scroll").count() > 5
        scrolled = """() => [...document.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth)
            .map((box) => box.textContent)"""
        assert page.evaluate(scrolled) == []
        titles, tops, labels = page.evaluate(
            """() => {
                const table = document.querySelector("#finalists").closest("figure").nextElementSibling.firstChild;
                const [head, row] = [table.rows[0], table.rows[1]].map((row) => [...row.cells]);
                return [head.map((cell) => cell.textContent), row.map((cell) => cell.getBoundingClientRect().top),
                    row.map((cell) => getComputedStyle(cell, "::before").content)];
            }"""
        )
        assert len(set(tops[:3])) == 1
        assert min(tops[3:]) > tops[0]
        assert labels == ["none"] * 3 + [f'"{title}: "' for title in titles[3:]]


def test_boxes_that_scroll_are_reached_by_keyboard(report: Path, opened: Open) -> None:
    with opened(report, PHONE) as page:
        box = page.get_by_role("region", name="Study definition")
        assert box.get_attribute("tabindex") == "0"
        box.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.activeElement.matches('pre') && document.activeElement.scrollLeft > 0")
        page.set_viewport_size({"width": 1200, "height": 740})
        page.wait_for_function("!document.querySelector('.scroll[tabindex]')")


COLOURS = """() => {
    const of = (selector, property) => getComputedStyle(document.querySelector(selector))[property];
    const texts = ["body", ".note", ".answer", "figcaption", "th", "a", "code"].map((each) => of(each, "color"));
    const figures = [of("#history .xtick text", "fill"), of("#history .legendtext", "fill")];
    return { page: of("body", "backgroundColor"), card: of(".card", "backgroundColor"), texts: [...texts, ...figures] };
}"""


def test_page_and_figures_follow_changes_of_the_colour_scheme(report: Path, opened: Open) -> None:
    with opened(report, color_scheme="light") as page:
        light = page.evaluate(COLOURS)
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(
            "colour => getComputedStyle(document.querySelector('#history .xtick text')).fill !== colour",
            arg=light["texts"][-1],
        )
        dark = page.evaluate(COLOURS)
    with opened(report, color_scheme="dark") as page:
        assert page.evaluate(COLOURS) == dark
    assert contrast(light["page"], "255, 255, 255") < 1.2
    assert contrast(dark["page"], "0, 0, 0") < 1.5
    for found in (light, dark):
        for text in found["texts"]:
            for background in (found["page"], found["card"]):
                assert contrast(text, background) >= CONTRAST, (text, background)


def test_in_print_no_page_break_follows_a_heading(report: Path, opened: Open) -> None:
    with opened(report) as page:
        page.emulate_media(media="print")
        apart = page.evaluate(
            """() => [...document.querySelectorAll("h2, h3, h2 + p, h3 + p")].filter((each) => !each.closest(".card")
                && getComputedStyle(each).breakAfter !== "avoid").map((each) => each.textContent)"""
        )
        assert apart == []


@pytest.mark.parametrize("rows", [4, 30])
def test_in_print_no_table_breaks_after_its_first_row_or_before_its_last(report: Path, opened: Open, rows: int) -> None:
    """Columns break like sheets: fill all but some pixels of the first, and count the rows in each."""
    with opened(report) as page:
        page.emulate_media(media="print")
        counts = page.evaluate(
            """(rows) => {
                const sheet = document.createElement("div");
                const lines = "<tr><th>1</th><td>2</td></tr>".repeat(rows);
                sheet.style = "columns: 3; column-fill: auto; height: 300px";
                sheet.innerHTML = `<div class="filler"></div><div class="scroll"><table><caption>numbers</caption>
                    <thead><tr><th>a</th><th>b</th></tr></thead><tbody>${lines}</tbody></table></div>`;
                document.querySelector("main").prepend(sheet);
                return [...Array(290).keys()].map((height) => {
                    sheet.firstChild.style.height = `${height}px`;
                    const found = {};
                    for (const row of sheet.querySelectorAll("tbody tr")) {
                        const { left } = row.getBoundingClientRect();
                        found[left] = (found[left] ?? 0) + 1;
                    }
                    return Object.values(found);
                });
            }""",
            rows,
        )
        assert {sum(each) for each in counts} == {rows}
        if rows == 4:
            assert {len(each) for each in counts} == {1}
        else:
            assert len({tuple(each) for each in counts}) > 5
            assert min(min(each) for each in counts) > 1


def test_in_print_the_page_is_light_and_figures_fit_the_sheet(report: Path, opened: Open) -> None:
    with opened(report, color_scheme="dark") as page:
        page.evaluate(
            """() => addEventListener("beforeprint", () => {
                const plots = [...document.querySelectorAll(".plot")];
                window.printed = {
                    page: getComputedStyle(document.body).backgroundColor,
                    text: getComputedStyle(document.querySelector("#history .xtick text")).fill,
                    sheet: document.body.clientWidth,
                    overlaps: (OVERLAPS)(),
                    widths: plots.map((plot) => plot.querySelector(".main-svg").getBoundingClientRect().width),
                };
            })""".replace("OVERLAPS", OVERLAPS)
        )
        assert len(page.pdf(format="A4", print_background=True)) > 50_000
        printed = page.evaluate("window.printed")
        assert contrast(printed["page"], "255, 255, 255") < 1.2
        assert contrast(printed["text"], printed["page"]) >= CONTRAST
        assert printed["overlaps"] == []
        assert 600 < printed["sheet"] < 700  # an A4 sheet's 794 pixels minus the margins
        assert 0 < min(printed["widths"]) <= max(printed["widths"]) <= printed["sheet"]
        assert max(printed["widths"]) > 0.9 * printed["sheet"]
        page.wait_for_function("document.querySelector('#history .main-svg').getBoundingClientRect().width > 900")
        assert not page.evaluate("document.documentElement.classList.contains('paper')")


def test_numbers_are_shown_without_javascript(report: Path, opened: Open) -> None:
    with opened(report, java_script_enabled=False) as page:
        assert "The figures need JavaScript" in page.inner_text("noscript")
        assert re.search(r"\d\d\.\d\d %", page.inner_text(".answer"))
