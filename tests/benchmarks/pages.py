"""Time of a report: to write it once features exist, and to open it in a browser.

    python -m tests.benchmarks.pages runs/clothing --data sets/clothing/train \
        --out tests/benchmarks/results/report-cpu.json

The page counts as open when its map is drawn. Needs playwright and Debian's Chromium.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from tests.benchmarks.epochs import spread
from tests.benchmarks.machine import machine


def write(run: Path, data: Path, out: Path) -> float:
    """Seconds of the command."""
    command = [sys.executable, "-m", "tinyssl", "report", str(run), "--data", str(data)]
    start = time.perf_counter()
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    return time.perf_counter() - start


def open_page(browser: Browser, page_file: Path) -> tuple[float, list[str]]:
    """Seconds until the map is drawn, and the messages of the console."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    start = time.perf_counter()
    page.goto(page_file.as_uri())
    page.wait_for_selector("#map[data-ready]")
    seconds = time.perf_counter() - start
    page.close()
    return seconds, told


def measure(run: Path, data: Path, rounds: int) -> dict[str, Any]:
    """Measures on a copy of the run, since the first report saves features in it."""
    chromium = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        copy, out = Path(name, "run"), Path(name, "report.html")
        shutil.copytree(run, copy)
        first = write(copy, data, out)
        writing = [write(copy, data, out) for _ in range(rounds)]
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = [open_page(browser, out) for _ in range(rounds)]
        browser.close()
        return {
            "first_s": first,
            "written_s": spread(writing),
            "opened_s": spread([seconds for seconds, _ in opened]),
            "console": [line for _, told in opened for line in told],
            "mb": out.stat().st_size / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the run's pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    result = {"machine": machine()} | measure(given.run, given.data, given.rounds)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
