"""Pages in a real browser: Chromium, light and dark, on a telephone and on a desk.

`make test-web` runs this, and leaves what the browser showed in the folder of screenshots beside
it: look at them. A browser that can't be had skips the tests, unless WEB_TEST is `required`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from made import place
from playwright.sync_api import Browser, Error, sync_playwright
from test_unfinished import begun, end, saved

from job.catalog import history_page
from job.errors import TemporaryError
from job.process.progress import Progress
from job.report import complete, material, runs
from job.results.publishing import read_json

pytestmark = pytest.mark.web
SCREENSHOTS = Path(__file__).parent / "screenshots"
WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
README_SHOWS = ("run", "light", 1280)  # readme.png is to be copied to scripts/report.png
BROWSERS = ("chromium", "google-chrome")
# Of each text of a drawing whether all of it is seen: within the page, and below no other edge.
CUT_OFF = """() => [...document.querySelectorAll("svg text")].filter(text => {
  const seen = text.getBoundingClientRect();
  return seen.left < 0 || seen.right > document.documentElement.clientWidth + 1 ||
    seen.width === 0;
}).map(text => text.textContent)"""
PICTURES = """async () => {
  const urls = [...document.images].map(image => image.src);
  const tile = document.querySelector(".tile");
  if (tile) urls.push(getComputedStyle(tile).backgroundImage.slice(5, -2));
  return Promise.all(urls.map(async url => {
    const image = new Image();
    image.src = url;
    await image.decode();
    return image.naturalWidth;
  }));
}"""


def job(*words: object) -> list[dict]:
    """Run the job, and return the events it told."""
    ended = subprocess.run(
        [sys.executable, "-m", "job", *map(str, words), "--log", "json"],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of all defaults."""
    output = tmp_path_factory.mktemp("runs")
    job("train", "--output", output, "--run-id", "mlp-default")
    return output / "mlp-default"


@pytest.fixture(scope="module")
def pages(default_run, mnist, tmp_path_factory) -> dict[str, Path]:
    """Return pages by name: of a default run, one that was stopped, a night, and a history."""
    folder = tmp_path_factory.mktemp("pages")
    unfinished = begun(folder / "unfinished", attempts=2, run_id="mlp-stopped", epochs=20, seed=7)
    end(unfinished, 2, TemporaryError("--time-limit 60 reached, the work is saved"))
    saved(unfinished, 4, 1234)
    runs.draw(unfinished.place, None, to=place(folder / "unfinished.html").place)
    data, nights = folder / "data", folder / "nights"
    data.mkdir()
    test = {"x_test": mnist.x_test, "y_test": mnist.y_test}
    np.savez(data / "base.npz", x_train=mnist.x_train[:8000], y_train=mnist.y_train[:8000], **test)
    words = ("--data", data, "--output", nights, "--epochs", "2", "--batch-size", "64")
    job("retrain", *words, "--night", "first")
    more = {"x_train": mnist.x_train[8000:12_000], "y_train": mnist.y_train[8000:12_000]}
    np.savez(data / "train-more.npz", **more)
    job("retrain", *words, "--night", "second")
    history_page.draw(place(nights).place, None, Progress("json"), datetime.now(UTC))
    return {
        "run": default_run / "report.html",
        "unfinished": folder / "unfinished.html",
        "night": nights / "nights" / "second.html",
        "history": nights / "index.html",
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a Chromium: the system's, else the one that Playwright brought."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            # Its own sandbox needs namespaces, which few containers let their root have.
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            if os.environ.get("WEB_TEST") == "required":
                raise
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.mark.parametrize("name", ["run", "unfinished", "night", "history"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_is_seen_as_it_is_meant(browser, pages, name, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT_OFF) == []
    widths = page.evaluate(PICTURES)
    assert all(widths)
    assert bool(widths) is (name in {"run", "night"})
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}-{width}.png", full_page=True)
    if (name, scheme, width) == README_SHOWS:
        top = {"x": 0, "y": 0, "width": width, "height": 1270}
        page.screenshot(path=SCREENSHOTS / "readme.png", full_page=True, clip=top)
    assert said == []  # nothing that the policy forbids was tried
    assert {url for url in asked if not url.startswith("data:")} == {pages[name].as_uri()}
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    context.close()


def test_a_page_can_be_printed(browser, pages):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(pages["run"].as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    page.pdf(path=SCREENSHOTS / "run.pdf", format="A4")
    context.close()


def test_the_page_of_a_default_run_is_small_and_soon_made(default_run):
    """Within two megabytes and four seconds of a processor, not counting what else runs."""
    folder = place(default_run)
    began = time.process_time()
    content = complete.page_of(material.of_complete(folder, read_json(folder.metrics)))
    spent = time.process_time() - began
    print(f"\nreport.html of a default run: {len(content):,} bytes, {spent:.2f} s of CPU")
    assert content == (default_run / "report.html").read_bytes()
    assert len(content) < 2_000_000
    assert spent < 4
