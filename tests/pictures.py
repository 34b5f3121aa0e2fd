"""
Draws the pictures of the documentation again, from a run of the demo.

    python tests/pictures.py                # docs/demo.svg and docs/dashboard.png
    python tests/pictures.py FOLDER [HOME]  # every page of a home, or of the demo's

Needs Playwright (extra `test`) and chromium. It takes a minute, and asks no network.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

import command
from kinship_daemon.home import Home
from kinship_daemon.web.app import PAGES
from kinship_daemon.web.serving import served

DOCS = Path(__file__).parents[1] / "docs"
CARD = {"viewport": {"width": 1080, "height": 604}, "device_scale_factor": 1.5}
SCREENS = {
    "desk": {"viewport": {"width": 1280, "height": 860}},
    "dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def demo(place: Path) -> Path:
    """The home of a run of the demo, with its defaults."""
    done = command.run(["run", "--base", "demo", "--until-converged", "--home", place], place)
    assert done.code == 0, done.err
    return place


def shoot(browser: Browser, url: str, to: Path, *, whole: bool, **screen: object) -> None:
    context = browser.new_context(**screen)
    page = context.new_page()
    page.goto(url)
    page.wait_for_timeout(500)  # the tree moves into its place
    page.screenshot(path=to, full_page=whole)
    context.close()


def main(folder: Path | None = None, given: Path | None = None) -> None:
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as play:
        home = given or demo(Path(scratch))
        # Its sandbox does not work for root, as whom containers run.
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        with served(Home(home), "127.0.0.1", 0, None) as server:
            if folder is None:
                plot = ["analyze", "--home", home, "--plot", DOCS / "demo.svg"]
                assert command.run(plot, Path(scratch)).code == 0
                to = DOCS / "dashboard.png"
                shoot(browser, f"{server.url}tree", to, whole=False, **CARD)
                return
            folder.mkdir(parents=True, exist_ok=True)
            for name, screen in SCREENS.items():
                for page in PAGES:
                    asked = "model?id=model-1-1" if page.name == "model" else page.name
                    to = folder / f"{page.name}-{name}.png"
                    shoot(browser, server.url + asked, to, whole=True, **screen)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
