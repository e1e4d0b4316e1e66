"""The page in a real browser, with a real archive, model and server; the browser reaches this machine and no other."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("nicegui", reason="the extra serve is not installed")
selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver  # noqa: E402
from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402

from alidade.search.archive import Archive  # noqa: E402
from alidade.search.manifest import Coverage  # noqa: E402
from alidade.search.scan import Scanner  # noqa: E402
from alidade.search.schema import TileRow  # noqa: E402
from alidade.search.store import ExactStore  # noqa: E402
from alidade.search.writer import ArchiveWriter  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FILES = [
    *(SAMPLES / "sentinel-2").glob("eurosat_*_*.tif"),
    SAMPLES / "landsat" / "pucallpa_2020.tif",
    *sorted((SAMPLES / "ucmerced").glob("*.tif"))[:4],
]
PATIENCE = 90
"""Seconds for anything to happen: an idle machine needs less than one, a busy one has needed twenty."""
CUT_OFF = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"

GALLERY = "getElement(+document.querySelector('[data-gallery]').id.slice(1))"
"""The gallery's Vue component, by NiceGUI's own look-up."""
ROWS = f"return {GALLERY}.rows.map(r => r.id)"
"""The ids of all rows in the gallery, of which only those in sight are chips."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("page"),
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="chromium or chromedriver is not installed"),
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "archive"


@pytest.fixture(scope="module")
def server(archive: Path) -> Iterator[str]:
    folder = archive.parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # pytest's own variables would tell NiceGUI that it is under test, and it would behave otherwise
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    command = [
        sys.executable,
        str(Path(__file__).with_name("page_server.py")),
        str(archive),
        str(port),
        *map(str, FILES),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _until_ready(f"http://127.0.0.1:{port}", process, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)
    assert "Traceback" not in (folder / "log").read_text()


def _until_ready(base: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + 400
    while time.monotonic() < ends:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{base}/api/health", timeout=5) as answer:
                if json.load(answer)["status"] == "ready":
                    return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail(f"the server did not become ready: {log.read_text()}")


class Browser:
    """A headless Chromium that can resolve no name and reach no address but 127.0.0.1, and what tests do with it."""

    def __init__(self, base: str, downloads: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking",
            "disable-component-update", "no-first-run", f"host-resolver-rules={CUT_OFF}", "hide-scrollbars",
        ):  # fmt: skip
            options.add_argument(f"--{argument}")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.base, self.downloads = base, downloads
        self.size(1280, 800)

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, query: str = "") -> None:
        self.driver.get(self.base + "/" + query)
        self.until(lambda: " scenes" in self.text(".al-where"))

    def until(self, condition: Callable[[], Any]) -> Any:
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                found = condition()
            except selenium.common.exceptions.WebDriverException:
                # what was looked at has just been replaced
                found = None
            if found:
                return found
            assert time.monotonic() < ends, "it did not happen; the page says: " + self.text("body")
            time.sleep(0.05)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return " ".join(e.text for e in self.all(selector))

    def click(self, selector: str) -> None:
        def click() -> bool:
            self.find(selector).click()
            return True

        self.until(click)

    def ids(self) -> list[str]:
        """Of the chips that exist, in their order."""
        chips = self.all(".al-chip")
        return [
            c.get_attribute("data-id") or ""
            for c in sorted(chips, key=lambda c: int((c.get_attribute("id") or "chip-0")[5:]))
        ]

    def scores(self) -> list[float]:
        return [float(e.text) for e in self.all(".al-score") if e.text]

    def link(self) -> dict[str, str]:
        return {k: v[0] for k, v in parse_qs(urlsplit(self.driver.current_url).query).items()}

    def search(self, words: str) -> None:
        field = self.find(".al-words input")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(words, Keys.ENTER)
        self.until(lambda: self.link().get("q") == words and "matching" in self.text(".al-line"))
        self.until(self.ids)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def downloaded(self, name: str) -> Path:
        path = self.downloads / name
        return Path(self.until(lambda: path.exists() and path.stat().st_size and str(path)))

    def requests(self) -> set[str]:
        """Hosts of everything that was asked for since the last call, data: and blob: aside."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        urls += [e["params"]["url"] for e in events if e["method"] == "Network.webSocketCreated"]
        return {urlsplit(u).hostname or "" for u in urls if urlsplit(u).scheme in ("http", "https", "ws", "wss")}

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def shared(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(server, tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(shared: Browser) -> Iterator[Browser]:
    """The browser, of which each test must leave no complaint in the console and no request to elsewhere."""
    yield shared
    assert shared.complaints() == []
    assert shared.requests() <= {"127.0.0.1"}


def test_the_browser_is_cut_off_and_would_tell(shared: Browser) -> None:
    """The other tests end by looking for requests to elsewhere: here is one, and it goes nowhere."""
    shared.requests()
    with pytest.raises(selenium.common.exceptions.WebDriverException, match="ERR_NAME_NOT_RESOLVED"):
        shared.driver.get("http://example.org/")
    assert "example.org" in shared.requests()
    shared.complaints()


def test_a_newcomer_finds_water_with_one_click(browser: Browser) -> None:
    browser.open()
    browser.click(".al-go")
    browser.until(lambda: "Say what to find" in browser.text(".al-error"))
    browser.until(lambda: "open water" in browser.text(".al-try"))
    browser.click(".al-try .q-btn")
    browser.until(lambda: "matching tiles, exact" in browser.text(".al-line"))
    browser.until(browser.ids)
    assert browser.find(".al-words input").get_attribute("value") == "open water"
    names = browser.driver.execute_script(
        "return [...document.querySelectorAll('.al-chip')].slice(0, 6).map(c => c.getAttribute('aria-label'))"
    )
    assert any("SeaLake" in name or "River" in name or "pucallpa" in name for name in names)


def test_scores_are_numbers_and_pictures_come(browser: Browser) -> None:
    browser.open("?q=forest")
    browser.until(browser.ids)
    scores = browser.scores()
    assert scores == sorted(scores, reverse=True)
    assert all(-1 <= score <= 1 for score in scores)
    assert "%" not in browser.text(".al-panel")
    pictures = "return [...document.querySelectorAll('.al-chip img')].slice(0, 3).map(i => i.naturalWidth)"
    browser.until(lambda: all(browser.driver.execute_script(pictures)))
    assert " m" in browser.text(".al-chip:first-child .al-chip-text")
    assert browser.text(".al-line").startswith(f"{len(browser.driver.execute_script(ROWS))} of ")
    browser.find(".al-not input").send_keys("open water", Keys.ENTER)
    browser.until(lambda: browser.link().get("not") == "open water" and browser.scores()[:3] != scores[:3])


def test_more_and_not_like_this_wait_for_search_again(browser: Browser) -> None:
    browser.open()
    browser.search("forest")
    before = browser.driver.execute_script(ROWS)
    browser.click("#chip-0 [data-do=more]")
    browser.until(lambda: "1 more like: their mean." in browser.text(".al-method"))
    chip = browser.until(lambda: browser.find("#chip-2"))
    ActionChains(browser.driver).move_to_element(chip).perform()
    browser.click("#chip-2 [data-do=less]")
    browser.until(lambda: "Rocchio" in browser.text(".al-method"))
    assert browser.text(".al-go") == "Search again"
    assert browser.driver.execute_script(ROWS) == before
    assert "more" not in browser.link()
    browser.click(".al-again")
    browser.until(lambda: browser.link().get("more") == before[0] and browser.link().get("less") == before[2])
    browser.until(lambda: browser.driver.execute_script(ROWS) != before)
    assert browser.text(".al-go") == "Search"
    assert browser.ids()[0] == before[0]


def test_ten_labels_make_a_linear_probe(browser: Browser) -> None:
    with urllib.request.urlopen(_search_request(browser.base, "forest")) as answer:
        ids = [hit["id"] for hit in json.load(answer)["hits"]]
    browser.open(f"?q=forest&more={','.join(ids[:9])}&less={ids[-1]}")
    browser.until(lambda: "9 more like and 1 not like: a linear probe" in browser.text(".al-method"))
    browser.click(".al-example.less")
    browser.until(lambda: "9 more like: their mean." in browser.text(".al-method"))


def _search_request(base: str, text: str) -> urllib.request.Request:
    body = json.dumps({"text": text, "k": 20}).encode()
    return urllib.request.Request(f"{base}/api/search", body, {"content-type": "application/json"})


def test_slider_trims_without_asking_again(browser: Browser) -> None:
    browser.open()
    browser.search("forest")
    asked, rows = browser.text(".al-line"), len(browser.driver.execute_script(ROWS))
    handle = browser.find(".al-trim .q-slider")
    ActionChains(browser.driver).move_to_element(handle).click().perform()
    browser.until(lambda: 0 < int(browser.text(".al-tab.on").split()[-1]) < rows)
    kept = int(browser.text(".al-tab.on").split()[-1])
    least = float(browser.text(".al-least").split()[0])
    scores = browser.driver.execute_script(ROWS.replace("r => r.id", "r => r.score"))
    assert kept == sum(score >= least - 5e-4 for score in scores)
    assert browser.text(".al-line") == asked
    browser.until(lambda: "least" in browser.link())
    browser.driver.refresh()
    browser.until(lambda: browser.text(".al-tab.on") == f"Results {kept}")


def test_link_brings_the_same_view_back(browser: Browser) -> None:
    browser.open("?q=river&not=forest&sensor=generic-rgb&k=50&from=2019-01-01&area=-76,-10,-73,-7")
    browser.until(lambda: "matching" in browser.text(".al-line"))
    browser.until(browser.ids)
    line = browser.text(".al-line").rpartition(",")[0]
    rows, link = browser.driver.execute_script(ROWS), browser.link()
    assert rows
    browser.driver.refresh()
    browser.until(lambda: browser.text(".al-line").rpartition(",")[0] == line)
    browser.until(browser.ids)
    assert browser.driver.execute_script(ROWS) == rows
    assert {k: v for k, v in browser.link().items() if k != "map"} == {k: v for k, v in link.items() if k != "map"}
    assert browser.find(".al-not input").get_attribute("value") == "forest"
    assert browser.all("[data-tool=clear]")


def test_keys_accept_reject_and_go_on(browser: Browser) -> None:
    browser.open("?list=keys-1")
    browser.search("forest")
    first, second, third, fourth = browser.driver.execute_script(ROWS)[:4]
    browser.driver.execute_script("document.activeElement.blur()")
    browser.press("y")
    browser.until(lambda: "yes" in (browser.find(f"[data-id='{first}']").get_attribute("class") or ""))
    browser.press("n")
    browser.until(lambda: "no" in (browser.find(f"[data-id='{second}']").get_attribute("class") or "").split())
    browser.press(" ")
    current = browser.until(lambda: browser.find(f"[data-id='{fourth}'].current.ring"))
    shadow = current.find_element(By.CSS_SELECTOR, ".al-chip-picture").value_of_css_property("box-shadow")
    assert "15, 111, 104" in shadow, "the ring in the accent colour cannot be seen"
    assert third not in browser.text(".al-badge")
    browser.until(lambda: browser.text("[data-tab=yes]") == "Accepted 1")
    browser.click("[data-tab=yes]")
    browser.until(lambda: browser.ids() == [first])
    # on the disk, not in this page
    browser.open("?list=keys-1")
    browser.until(lambda: browser.text("[data-tab=no]") == "Rejected 1")
    browser.click("[data-tab=no]")
    browser.until(lambda: browser.ids() == [second])


def test_exports_arrive_as_trimmed(browser: Browser) -> None:
    browser.open("?q=forest&list=exports&k=50")
    browser.until(browser.ids)
    rows = browser.driver.execute_script(ROWS)
    browser.find("[data-gallery]").send_keys("y")
    browser.until(lambda: browser.text("[data-tab=yes]") == "Accepted 1")
    for kind in ("csv", "geojson", "parquet"):
        browser.click(".al-export")
        browser.click(f"[data-format={kind}]")
        file = browser.downloaded(f"alidade-results.{kind}")
        if kind == "csv":
            lines = file.read_text().splitlines()
            assert len(lines) == len(rows) + 1
        elif kind == "geojson":
            content = json.loads(file.read_text())
            assert [f["id"] for f in content["features"]] == rows
            assert content["alidade"]["model"].startswith("alidade-tiny")
            assert content["features"][0]["properties"]["label"] == "accepted"
        else:
            table = pq.read_table(file)
            assert table["id"].to_pylist() == rows
            assert b"geo" in table.schema.metadata


def test_a_drawn_box_narrows_the_search(browser: Browser) -> None:
    browser.open("?q=forest&map=48,10,3")
    browser.until(browser.ids)
    everywhere = browser.text(".al-line").split(" matching")[0].split()[-1]
    browser.click("[data-tool=box]")
    assert "Drag from one corner" in browser.text(".al-map-hint")
    middle = browser.find(".al-map")
    ActionChains(browser.driver).move_to_element_with_offset(middle, -60, -90).click_and_hold().move_by_offset(
        70, 60
    ).move_by_offset(60, 60).release().perform()
    browser.until(lambda: browser.text(".al-go") == "Search again")
    browser.click(".al-go")
    browser.until(lambda: "area" in browser.link())
    assert int(browser.text(".al-line").split(" of ")[1].split()[0]) < int(everywhere)
    west, south, east, north = (float(v) for v in browser.link()["area"].split(","))
    assert west < east
    assert south < north
    browser.click("[data-tool=clear]")
    browser.until(lambda: browser.text(".al-go") == "Search again")


def test_a_drawn_polygon_narrows_the_search(browser: Browser) -> None:
    browser.open("?q=forest&map=48,10,3")
    browser.until(browser.ids)
    browser.click("[data-tool=polygon]")
    middle = browser.find(".al-map")
    for x, y in ((-80, -80), (90, -70), (20, 100)):
        ActionChains(browser.driver).move_to_element_with_offset(middle, x, y).click().perform()
    ActionChains(browser.driver).move_to_element_with_offset(middle, -80, -80).click().perform()
    browser.until(lambda: browser.text(".al-go") == "Search again")
    browser.click(".al-go")
    browser.until(lambda: browser.link().get("area", "").count(";") == 2)


def test_similarity_is_drawn_by_the_server(browser: Browser) -> None:
    browser.open("?q=forest&map=-8.4,-74.4,9")
    browser.until(browser.ids)
    browser.click("[data-layer=heat]")
    tiles = "return [...document.querySelectorAll('.leaflet-heat-pane img')].filter(i => i.naturalWidth == 256).length"
    browser.until(lambda: browser.driver.execute_script(tiles) > 0)
    scene = "return [...document.querySelectorAll('.leaflet-tile-pane img')].filter(i => i.naturalWidth == 256).length"
    browser.until(lambda: browser.driver.execute_script(scene) > 0)
    assert browser.link()["heat"] == "1"


def test_saved_search_is_asked_again_and_names_what_is_new(browser: Browser, archive: Path) -> None:
    browser.open("?k=50")
    browser.search("highway")
    browser.click(".al-tools .q-btn")
    field = browser.until(lambda: browser.find(".al-save input"))
    browser.until(lambda: field.is_displayed())
    field.send_keys("roads", Keys.ENTER)
    browser.until(lambda: "Saved as" in browser.text(".q-notification"))
    best = browser.driver.execute_script(ROWS)[0]
    browser.open()
    _ask_again(browser)
    browser.until(lambda: "“roads”: Nothing new since it was last asked" in browser.text(".al-notes"))
    browser.until(lambda: browser.link().get("q") == "highway")
    assert browser.find(".al-words input").get_attribute("value") == "highway"
    _add_a_tile_like(archive, best)
    ends = time.monotonic() + PATIENCE
    while "1 new" not in browser.text(".al-notes"):
        assert time.monotonic() < ends
        _ask_again(browser)
        time.sleep(1)
    assert "new" in browser.text(".al-new")


def _ask_again(browser: Browser) -> None:
    browser.click(".al-tools .q-btn")
    browser.until(lambda: browser.find(".al-saved-name").is_displayed())
    browser.click(".al-saved-name")
    browser.until(lambda: not browser.all(".al-saved-name"))
    browser.until(lambda: "since it was last asked" in browser.text(".al-notes"))


def _add_a_tile_like(archive: Path, tile: str) -> None:
    """One more row, as from a new file of the same ground."""
    store = ExactStore(Scanner(Archive.open(archive)))
    row = store.rows([tile]).to_pylist()[0]
    new = TileRow(
        id="new-0-0", footprint=None, time=None, sensor=row["sensor"], gsd_m=row["gsd_m"], valid_share=1.0,
        cloud_share=None, source="new.tif", source_id="new", row=0, col=0, height=8, width=8,
        embedding=np.array(row["embedding"], np.float32),
    )  # fmt: skip
    covered = Coverage(source="new.tif", relative="new.tif", source_id="new", total=1, tiles=((0, 1),), empty=())
    header = store.scanner.archive.header
    with ArchiveWriter(archive, model=header.model, dim=header.dim, tile=header.tile) as writer:
        writer.append([new], [covered])


def test_an_image_is_searched_with(browser: Browser) -> None:
    browser.open()
    file = SAMPLES / "sentinel-2" / "eurosat_Forest_127.tif"
    browser.find("[data-upload]").send_keys(str(file))
    browser.until(lambda: f"like the image {file.name}" in browser.text(".al-part"))
    browser.until(browser.ids)
    assert browser.scores()[0] > 0.99


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?q=forest&sensor=nosuch&area=x,y", "Sensor: got 'nosuch', expected one in this archive"),
        ("?q=forest&area=0,-80,1,-79", "No tile meets these conditions."),
        ("?q=forest&area=x,y", "The link’s “area” could not be understood and was left out."),
        ("?q=forest&k=99999", "expected at most 10,000"),
    ],
)
def test_what_goes_wrong_is_a_sentence(browser: Browser, query: str, sentence: str) -> None:
    browser.open(query)
    browser.until(lambda: sentence in browser.text(".al-panel"))


def test_an_example_that_is_gone_is_a_sentence(shared: Browser) -> None:
    shared.open("?q=forest&more=nosuch")
    shared.until(lambda: "got 'nosuch', expected" in shared.text(".al-error"))
    # its picture cannot be had either
    assert all("nosuch" in complaint for complaint in shared.complaints())


@pytest.mark.parametrize(("path", "status"), [("/api/nothing", 404), ("/api/search", 405), ("/nothing", 404)])
def test_the_page_hides_no_refusal_of_the_api(server: str, path: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server + path)
    assert refused.value.code == status
    assert refused.value.headers["content-type"].startswith("application/json") == path.startswith("/api")


def test_fits_screens_light_and_dark(browser: Browser) -> None:
    browser.open("?q=open%20water")
    browser.until(browser.ids)
    overflow = "const e = document.scrollingElement; return [e.scrollWidth - innerWidth, e.scrollHeight - innerHeight]"
    try:
        for width, height in ((1280, 800), (1920, 1080)):
            for dark, ground in ((False, "255, 255, 255"), (True, "22, 27, 33")):
                browser.size(width, height, dark=dark)
                colour = browser.find("body").value_of_css_property
                browser.until(lambda: ground in colour("background-color"))  # noqa: B023
                browser.until(lambda: browser.find(".al-page").size["width"] == width)  # noqa: B023
                assert max(browser.driver.execute_script(overflow)) <= 0
                area = browser.find(".al-map").size
                assert area["width"] * area["height"] > 0.55 * width * height
    finally:
        browser.size(1280, 800)


def test_ten_thousand_chips_do_not_exist_at_once(browser: Browser) -> None:
    browser.open("?q=forest")
    browser.until(browser.ids)
    count = browser.driver.execute_script(
        f"const gallery = {GALLERY};"
        + """
        const one = gallery.rows[0];
        const rows = Array.from({ length: 10000 }, (_, i) => ({ ...one, id: i ? `none-${i}` : one.id }));
        gallery.url = () => 'data:,';
        gallery.setRows(rows, rows.length, {});
        return gallery.$nextTick().then(() => document.querySelectorAll('.al-chip').length);
    """
    )
    assert 0 < count < 60
    browser.find("[data-gallery]").send_keys(Keys.END)
    browser.until(lambda: browser.find("#chip-9999.current").is_displayed())
    assert len(browser.all(".al-chip")) < 60
