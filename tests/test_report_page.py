"""The demo's report in a real browser, at desktop and phone width."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from tests.making import FinishedDemo
from tinyssl.reporting.command import report

pytest.importorskip("plotly")
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"
)
HOSTILE = "<img src=x onerror=alert(1)>.png"
DESKTOP, PHONE = (1280, 900), (390, 844)
SLOW = 60_000  # ms; a machine with other work takes long to start a script

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as tool:
        # As root, as in containers, Chromium starts without its sandbox only.
        chromium = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a page; at the end nothing may have been complained of or asked from outside."""
    told: list[str] = []
    contexts = []

    def open_it(path: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Any:
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            has_touch=size == PHONE,
            reduced_motion="reduce",
        )
        context.set_default_timeout(SLOW)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda r: None if _inside(r.url) else told.append(r.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#map[data-ready]")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert told == []


def _inside(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:"))


def look_at_all(page: Any) -> None:
    """Opens what is folded, and scrolls past everything, so that all of it is drawn."""
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.evaluate("document.querySelectorAll('[data-figure]').forEach((f) => f.scrollIntoView())")
    page.wait_for_function(
        "[...document.querySelectorAll('[data-figure]')].every((f) => {"
        "if (!f.dataset.drawn) f.scrollIntoView(); return f.dataset.drawn; })"
    )
    page.evaluate("scrollTo(0, 0)")


def spot_of(page: Any, row: int) -> tuple[float, float]:
    """Where a picture's point is on the screen."""
    page.locator("#map").scroll_into_view_if_needed()
    x, y = page.evaluate(
        """(row) => {
          const data = JSON.parse(document.getElementById("map-data").textContent);
          const map = document.getElementById("map");
          const box = map.getBoundingClientRect();
          const { xaxis, yaxis } = map._fullLayout;
          return [box.left + xaxis._offset + xaxis.l2p(data.x[row]),
                  box.top + yaxis._offset + yaxis.l2p(data.y[row])];
        }""",
        row,
    )
    return x, y


def width_of_view(page: Any) -> float:
    low, high = page.evaluate("document.getElementById('map').layout.xaxis.range")
    return float(high - low)


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_everything_is_drawn_and_nothing_sticks_out(
    size: tuple[int, int],
    scheme: str,
    finished_demo: FinishedDemo,
    open_page: Open,
    tmp_path: Path,
) -> None:
    page = open_page(finished_demo.run / "report.html", size, scheme)
    look_at_all(page)
    broken = "[...document.images].filter((i) => !i.complete || !i.naturalWidth).length"
    assert page.evaluate("document.images.length") > 200
    assert page.evaluate(broken) == 0
    assert page.locator(".plot svg.main-svg").count() >= 2 * page.locator(".plot").count()
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    # TINYSSL_SCREENSHOTS=folder keeps them for a person to look at.
    folder = Path(os.environ.get("TINYSSL_SCREENSHOTS", tmp_path))
    shot = folder / f"report-{size[0]}-{scheme}.png"
    page.screenshot(path=shot, full_page=True)
    with Image.open(shot) as image:
        assert image.width == size[0]
        colours = image.convert("RGB").resize((50, 50)).getcolors(2500)
    assert colours is not None
    assert len(colours) > 50
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", paper)[:3])) > 384
    assert light == (scheme == "light")


def _most_alone(places: Any) -> int:
    """The point whose nearest is farthest: no other lies under the mouse there."""
    points = np.array(places, dtype=float).T
    return int(NearestNeighbors(n_neighbors=1).fit(points).kneighbors()[0][:, 0].argmax())


def test_hover_shows_the_picture(finished_demo: FinishedDemo, open_page: Open) -> None:
    page = open_page(finished_demo.run / "report.html")
    data = "JSON.parse(document.getElementById('map-data').textContent)"
    row = _most_alone(page.evaluate(f"[{data}.x, {data}.y]"))
    page.mouse.move(*spot_of(page, row))
    page.wait_for_selector(f"#picked[data-row='{row}']")
    assert page.locator("#picked h3").text_content() == page.evaluate(f"{data}.names[{row}]")
    assert page.evaluate("document.querySelector('#picked img.big').naturalWidth") > 0
    assert page.locator("#picked .near img").count() == 6
    assert page.locator(".ring").is_visible()


def test_zoom_by_button_wheel_and_key(finished_demo: FinishedDemo, open_page: Open) -> None:
    page = open_page(finished_demo.run / "report.html")
    whole = width_of_view(page)
    page.click("#zoom-in")
    first = width_of_view(page)
    assert first < whole
    x, y = spot_of(page, 0)
    page.focus("#map")
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -100)
    page.wait_for_function(f"() => {{ const r = {VIEW}; return r[1] - r[0] < {first} - 1e-9; }}")
    assert spot_of(page, 0) != (x, y)
    page.keyboard.press("0")
    assert width_of_view(page) == pytest.approx(whole)
    page.keyboard.press("+")
    assert width_of_view(page) < whole


VIEW = "document.getElementById('map').layout.xaxis.range"


def test_keys_walk_over_the_map(finished_demo: FinishedDemo, open_page: Open) -> None:
    page = open_page(finished_demo.run / "report.html")
    page.focus("#map")
    seen = []
    for key in ("ArrowLeft", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
        seen.append(page.get_attribute("#picked", "data-row"))
    assert len(set(seen)) == 3
    page.locator("#picked .near button").first.focus()
    page.keyboard.press("Enter")
    assert page.get_attribute("#picked", "data-row") not in seen[-1:]


def test_colours_faces_and_search(finished_demo: FinishedDemo, open_page: Open) -> None:
    page = open_page(finished_demo.run / "report.html")
    assert page.locator("#legend button").count() == 4
    page.select_option("#colour-by", "cluster")
    assert page.locator("#legend button").count() == 12
    page.check("#faces")
    page.wait_for_function("document.getElementById('map').layout.images.length > 50")
    page.fill("#find", "cell0007")
    assert page.locator("#picked h3").text_content() == "cell0007.png"
    page.fill("#find", "no such file")
    assert "No file name" in page.locator("#picked").text_content()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_hostile_names_are_text(hostile_report: Path, open_page: Open) -> None:
    page = open_page(hostile_report)
    look_at_all(page)
    assert page.locator("img[src='x']").count() == 0
    assert page.locator(".file", has_text=HOSTILE).count() > 0
    page.fill("#find", "onerror")
    assert HOSTILE in page.locator("#picked h3").text_content()
    assert page.locator("#picked img[src='x']").count() == 0
    assert page.locator("#legend b").count() == 0


def test_paper_has_all_charts_and_what_is_folded_in_dark_ink(
    hostile_report: Path, open_page: Open
) -> None:
    page = open_page(hostile_report, scheme="dark")
    assert page.locator("[data-figure]:not([data-drawn])").count() > 0
    folded = page.locator("details:not([open])").count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("[data-figure]:not([data-drawn])").count() == 0
    assert page.locator("details:not([open])").count() == 0
    assert _ink(page) == LIGHT_INK
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == folded > 0
    assert _ink(page) != LIGHT_INK


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_long_class_name_does_not_widen_the_page(
    size: tuple[int, int],
    hostile_place: Path,
    open_page: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINYSSL_CACHE", str(hostile_place / "cache"))
    pictures, labels = hostile_place / "pictures", tmp_path / "labels.csv"
    classes = {folder: 9 * f"{folder.name[-4:]}_long" for folder in pictures.iterdir()}
    rows = [f"{path},{name}" for folder, name in classes.items() for path in folder.glob("0*.png")]
    labels.write_text("\n".join(["path,label", *rows]))
    page = open_page(report(hostile_place / "run", labels=labels, out=tmp_path / "r.html"), size)
    look_at_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]


LIGHT_INK = "rgb(28, 31, 35)"


def _ink(page: Any) -> str:
    return str(page.evaluate("getComputedStyle(document.body).color"))


def test_keys_stay_where_they_pressed(hostile_report: Path, open_page: Open) -> None:
    page = open_page(hostile_report)
    focused = "document.activeElement"
    page.locator("#picked .near button").nth(2).focus()
    page.keyboard.press("Enter")
    places = "[...document.querySelectorAll('#picked .near button')]"
    assert page.evaluate(f"{places}.indexOf({focused})") == 2
    page.locator("#legend button").nth(1).focus()
    for pressed in ("true", "false"):
        page.keyboard.press("Enter")
        assert page.evaluate(f"{focused}.getAttribute('aria-pressed')") == pressed


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_of_the_matrix_can_be_read_on_their_colour(
    scheme: str, hostile_report: Path, open_page: Open
) -> None:
    page = open_page(hostile_report, scheme=scheme)
    ink, paper, cell = page.evaluate(
        """() => {
          const cell = document.querySelector("td.cell");
          cell.style.setProperty("--share", 1);
          const [on, at] = [getComputedStyle(document.body), getComputedStyle(cell)];
          const colours = [at.color, on.backgroundColor, at.backgroundColor];
          return colours.map((colour) => colour.match(/[\\d.]+/g).map(Number));
        }"""
    )
    share = cell[3]
    under = [share * c + (1 - share) * p for c, p in zip(cell, paper, strict=False)]
    dark, light = sorted((_luminance(ink), _luminance(under)))
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA


def _luminance(colour: list[float]) -> float:
    parts = np.array(colour[:3]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
