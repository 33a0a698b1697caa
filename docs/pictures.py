"""Takes the README's pictures anew: of a study's report, and of the dashboard over its database.

    python docs/pictures.py cnn --output studies

The study is finished and has its report. Chromium and the extra `dev` are needed.
"""

import io
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from search import load_study, open_storage
from search.database.url import default_url

FOLDER = Path(__file__).resolve().parent
SIZE = (1000, 1250)  # pixels of a picture
COLOURS = 256  # of its palette, which makes it a third as large


@click.command()
@click.argument("study")
@click.option("--output", type=click.Path(path_type=Path, exists=True), default="studies")
def main(study: str, output: Path) -> None:
    """Take both pictures."""
    number = load_study(open_storage(default_url(output)), study)._study_id
    with sync_playwright() as playwright, dashboard(output) as address:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take(browser, (output / study / "report.html").resolve().as_uri(), FOLDER / "report.png", zoom=0.85)
        take(browser, f"{address}dashboard/studies/{number}", FOLDER / "dashboard.png", zoom=0.7)
        browser.close()


@contextmanager
def dashboard(output: Path) -> Iterator[str]:
    """The address of a dashboard that is served meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    call = [sys.executable, "-m", "search", "dashboard", "--read-only", "--output", output, "--port", str(port)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield server.stdout.readline().split()[0]
        server.terminate()


def take(browser: Browser, address: str, to: Path, zoom: float) -> None:
    """Take the picture of a page's beginning, once it is drawn."""
    width, height = (round(side / zoom) for side in SIZE)
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=zoom)
    page.goto(address)
    page.wait_for_selector(".js-plotly-plot .main-svg")
    page.wait_for_load_state("networkidle")
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(to, optimize=True)


if __name__ == "__main__":
    main()
