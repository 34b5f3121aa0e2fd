"""The dashboard and the report in a real browser: Debian's chromium, driven by Playwright."""

import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

import large_home
from kinship_daemon.cli import app
from kinship_daemon.home import Home
from kinship_daemon.web.serving import served
from small_lineage import finetune, merge, open_lineage, score

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra: test)")

CHROMIUM = shutil.which("chromium")
NPM = Path(os.environ.get("KINSHIP_NPM", Path(__file__).parent / "npm"))
AXE = NPM / "node_modules" / "axe-core" / "axe.min.js"
HOSTILE = "<img src=x onerror=alert(1)>"
PAGES = [
    "now",
    "tree",
    "kinship",
    "evolution",
    "candidates",
    "candidates?status=refused",
    "model?id=model-2-2",
]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 860}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="NO BROWSER: needs chromium (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three generations, and a model with a name that would act if it were let."""
    path = tmp_path_factory.mktemp("home")
    large_home.make(path, founders=8, generations=3, merges=9, candidates=130)
    with open_lineage(path / "lineage.db") as lineage:
        lineage.put("settings_then", {"limits.merges_per_day": 100})
        hostile = merge(HOSTILE, ("demo/founder-000", "demo/founder-001"), why=HOSTILE)
        lineage.add_model(hostile)
        lineage.add_scores([score(hostile.weights, 1, 0)])
        lineage.move_model(HOSTILE, "quarantine", reason=HOSTILE, cause="model")
        lineage.add_model(finetune("odd", status="refused", reason=HOSTILE, cause="model"))
    return path


@pytest.fixture(scope="module")
def site(home):
    with served(Home(home), "127.0.0.1", 0, None) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        # Its sandbox does not work for root, as whom containers run.
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def watched(browser, own, **options):
    """A page; what it complains of, opens or asks of anyone else fails the test."""
    context = browser.new_context(**{"viewport": DESK, **options})
    page = context.new_page()
    trouble = []
    page.on("console", lambda m: trouble.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda r: None if r.url.startswith((own, "data:")) else trouble.append(f"asked {r.url}"),
    )
    yield page
    context.close()
    assert trouble == []


@pytest.mark.parametrize(
    ("scheme", "viewport"), [("light", DESK), ("dark", PHONE)], ids=["light desk", "dark phone"]
)
def test_every_page_is_shown_without_trouble_and_can_be_read(browser, site, scheme, viewport):
    if not AXE.is_file():
        pytest.skip(f"NOT CHECKED: needs axe-core: npm ci in {NPM}")
    axe = AXE.read_text()
    with watched(browser, site, color_scheme=scheme, viewport=viewport) as page:
        for address in PAGES:
            page.goto(site + address)
            assert page.locator("h1").count() == 1
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{address} is {wide} px too wide"
            page.evaluate(axe)
            found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
            told = [(f["id"], [node["html"][:120] for node in f["nodes"]]) for f in found]
            assert told == [], address


# Least contrast of texts with what they stand on, in drawings, which axe leaves out: of the tree's
# models in every shade, and of the matrix's values on every shade.
LEAST = """() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = (color) => {
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [low, high] = [a, b].map((each) => luminance(getComputedStyle(each).fill))
      .sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  for (const node of document.querySelectorAll(".node")) {
    found.push(contrast(node.querySelector("rect:not(.ring)"), node.querySelector("text")));
  }
  const text = document.querySelector(".matrix text");
  for (const [i, shade] of document.querySelectorAll(".scale rect").entries()) {
    text.setAttribute("class", `v${i}`);
    found.push(contrast(shade, text));
  }
  return [found.length, Math.min(...found)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_and_values_can_be_read_on_every_shade(browser, site, scheme):
    with watched(browser, site, color_scheme=scheme) as page:
        for address, most in (("tree", 36), ("kinship", 21)):
            page.goto(site + address)
            number, least = page.evaluate(LEAST)
            assert number >= most
            assert least >= 4.5


def test_the_tree_is_searched_and_a_click_opens_a_model(browser, site):
    with watched(browser, site) as page:
        page.goto(site + "tree")
        page.fill("#find", "model-2-2")
        assert page.text_content("#found").startswith("1 found")
        page.keyboard.press("Enter")
        node = page.locator(".node.at")
        assert page.text_content("#found") == "1 of 1"
        node.click()
        assert page.text_content("h1") == "model-2-2"
        assert "slerp" in page.text_content("pre")


def test_the_tree_is_zoomed_and_moved_and_a_drag_opens_nothing(browser, site):
    with watched(browser, site) as page:
        page.goto(site + "tree")
        view = "document.querySelector('svg.tree').getAttribute('viewBox').split(' ').map(Number)"
        whole = page.evaluate(view)
        page.click("[data-zoom=in]")
        page.click("[data-zoom=in]")
        near = page.evaluate(view)
        assert near[2] < whole[2] * 0.7
        box = page.locator("#tree").bounding_box()
        node = page.locator(".node").first.bounding_box()
        page.mouse.move(node["x"] + 20, node["y"] + 10)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 200, steps=4)
        page.mouse.up()
        assert page.url.endswith("/tree")
        page.mouse.wheel(0, -400)
        deadline = time.monotonic() + 60
        while page.evaluate(view)[2] >= near[2]:
            assert time.monotonic() < deadline
        page.click("[data-zoom=all]")
        assert page.evaluate(view)[2] >= whole[2] * 0.99


def test_all_of_it_is_reached_from_the_keyboard(browser, site):
    with watched(browser, site) as page:
        page.goto(site + "tree")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the content"
        page.focus("#tree")
        before = page.locator("svg.tree").get_attribute("viewBox")
        page.keyboard.press("+")
        assert page.locator("svg.tree").get_attribute("viewBox") != before
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.querySelector('title').textContent")
        page.keyboard.press("Enter")
        page.wait_for_url("**/model?id=*")
        assert focused.startswith(page.text_content("h1"))


def test_now_follows_the_daemon_without_a_reload(browser, site, home):
    with watched(browser, site) as page:
        page.goto(site + "now")
        page.evaluate("window.stays = true")
        page.wait_for_timeout(300)  # for the events to be listened to
        with open_lineage(home / "lineage.db") as lineage:
            lineage.move_model("model-1-1", "repropose")
        stat = page.locator(".stat", has_text="Merges to be made").locator("dd").first
        sync_api.expect(stat).to_have_text("1", timeout=10_000)
        assert page.evaluate("window.stays")


def test_candidates_are_filtered_and_paged_without_script(browser, site):
    with watched(browser, site, java_script_enabled=False) as page:
        page.goto(site + "candidates")
        page.get_by_role("link", name="next").click()
        assert "page 2 of 2" in page.text_content(".pager")
        page.fill("input[name=q]", "stranger-00002")
        page.get_by_role("button", name="Show").click()
        assert page.locator("table.rows tbody tr").count() == 1


def test_a_name_that_would_act_is_only_text(browser, site):
    with watched(browser, site) as page:
        page.goto(site + "tree")
        page.fill("#find", "onerror")
        page.keyboard.press("Enter")
        page.locator(".node.at").click()
        assert page.text_content("h1") == HOSTILE
        page.goto(site + "candidates?status=refused&q=onerror")
        assert page.locator("main img").count() == 0


def test_the_report_works_as_a_file(browser, home, tmp_path):
    out = tmp_path / "report.html"
    assert CliRunner().invoke(app, ["report", str(out), "--home", str(home)]).exit_code == 0
    with watched(browser, out.as_uri()) as page:
        page.goto(out.as_uri())
        page.locator("a.node", has_text="model-2-2").click()
        sync_api.expect(page.locator("details[open] h1")).to_have_text("model-2-2")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
