"""The page of `demo.py` with the embedded models, in headless Chromium."""

from __future__ import annotations

import http.client
import io
import re
import shlex
import shutil
import sys
import time
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import chromium
from examples import write_video
from hydra import compose, initialize_config_dir
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import demo
import evaluate
from datamodules.sample import Sample
from drift.command_line import run
from drift.demo import pictures
from drift.demo.serving import load_tracking_models
from drift.demo.sessions import Sessions
from drift.image_files import read_mask, write_mask

WORDS = demo.options(["refinement.trust=0.6"])
ZEBRA = 3
_SIDE = 256
_FRAMES = 8
_SHORT = 4  # frames, where a test needs no more
_WAIT = 60  # seconds
_SAID = "return [...document.querySelectorAll('.toast-body, #status')].map(one => one.innerText)"


@pytest.fixture(scope="module")
def clip():
    data = Sample(max_side=_SIDE)
    data.setup()
    return data.clips_of(0, 1)[0]


@pytest.fixture(scope="module")
def frames(clip):
    return [clip.reduced_frame(frame) for frame in clip.frames[:_FRAMES]]


@pytest.fixture(scope="module")
def zebra(clip):
    """True mask of the clip on frame 0."""
    return clip.reduced_mask(clip.given[0]) == ZEBRA


@pytest.fixture(scope="module")
def video(frames, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "my clip.mp4", frames)


@pytest.fixture(scope="module")
def short(frames, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "short.mp4", frames[:_SHORT])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a served page, and its sessions."""
    root = tmp_path_factory.mktemp("page")
    with initialize_config_dir(str(demo.CONFIGS), version_base="1.3"):
        config = compose("demo", WORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(root))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        from drift.demo.page import build_page, launch

        sessions = Sessions(root / "sessions", load_tracking_models(config), max_side=200, max_frames=40)
        page = build_page(sessions, WORDS, takes_paths=True)
        address = launch(page, "127.0.0.1", None, max_megabytes=1)
        yield address, sessions
        page.close()
        sessions.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        driver.set_window_size(1280, 1400)
        yield driver


@pytest.fixture
def tab(browser, server):
    """A new tab with the page."""
    browser.switch_to.new_window("tab")
    size(browser, 1280)
    browser.get(server[0])
    tab = Tab(browser, server[1])
    tab.wait(lambda: tab.all("#sample") and tab.token)
    yield tab
    found, blank, *others = errors(browser), *browser.window_handles
    for handle in others:
        browser.switch_to.window(handle)
        browser.close()
    browser.switch_to.window(blank)
    assert found == []


def errors(browser) -> list[str]:
    """Messages of level SEVERE on the console; Gradio logs warnings of its own."""
    return [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def size(browser, width: int) -> None:
    metrics = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


class Tab:
    """Actions of a user in a tab, and what the page shows."""

    def __init__(self, browser, sessions: Sessions) -> None:
        self.browser, self.sessions = browser, sessions

    @property
    def token(self) -> str:
        return self.browser.execute_script("return sessionStorage.getItem('drift')")

    @property
    def session(self):
        return self.sessions._sessions[self.token]

    def all(self, selector: str):
        return [one for one in self.browser.find_elements(By.CSS_SELECTOR, selector) if one.is_displayed()]

    def one(self, selector: str):
        return self.wait(lambda: self.all(selector))[0]

    def wait(self, condition):
        seen = set()

        def holds(_):
            seen.update(self.browser.execute_script(_SAID))
            return condition()

        ignored = (Exception,)  # of elements that are drawn again meanwhile
        try:
            return WebDriverWait(self.browser, _WAIT, 0.1, ignored_exceptions=ignored).until(holds)
        except TimeoutException:
            raise AssertionError(f"waited in vain; the page said {sorted(seen)}") from None

    def click(self, selector: str) -> None:
        element = self.one(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def choose(self, group: str, text: str) -> None:
        self.wait(lambda: [label for label in self.all(f"{group} label") if text in label.text])
        next(label for label in self.all(f"{group} label") if text in label.text).click()

    def status(self) -> str:
        return self.one("#status").text

    def says(self, text: str) -> None:
        self.wait(lambda: text in self.status())

    def warns(self, text: str) -> None:
        """Waits for a warning with this text, then closes it."""
        self.wait(lambda: [one for one in self.all(".toast-body") if text in one.text])
        for button in self.all(".toast-body .toast-close, .toast-body button.toast-close"):
            button.click()

    def upload(self, selector: str, path: Path) -> None:
        self.wait(lambda: self.browser.find_elements(By.CSS_SELECTOR, f"{selector} input[type=file]"))
        self.browser.find_element(By.CSS_SELECTOR, f"{selector} input[type=file]").send_keys(str(path))

    def opened(self, path: Path) -> None:
        self.upload("#upload", path)
        self.says("Click on an object")

    def picture(self):
        image = self.one("#picture img")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
        self.wait(lambda: self.browser.execute_script("return arguments[0].complete", image))
        return image

    def at(self, x: float, y: float) -> tuple[int, int]:
        """Offset of a pixel of the frame from the centre of the displayed picture."""
        shown, (height, width) = self.picture().size, self.session.source.size
        return (
            round((x + 0.5) * shown["width"] / width - shown["width"] / 2),
            round((y + 0.5) * shown["height"] / height - shown["height"] / 2),
        )

    def click_at(self, x: float, y: float) -> None:
        before, image, offset = self.session.edits, self.picture(), self.at(x, y)
        ActionChains(self.browser).move_to_element_with_offset(image, *offset).click().perform()
        self.wait(lambda: self.session.edits is not before)

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        before, image = self.session.edits, self.picture()
        start, end = self.at(x0, y0), self.at(x1, y1)
        chain = ActionChains(self.browser).move_to_element_with_offset(image, *start).click_and_hold()
        chain.move_to_element_with_offset(image, *end).release().perform()
        self.wait(lambda: self.session.edits is not before)

    def masks(self) -> np.ndarray:
        return np.stack([self.session.mask(index) for index in range(len(self.session))])


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return columns.min() - 1, rows.min() - 1, columns.max() + 1, rows.max() + 1


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_from_a_video_to_the_masks_of_the_command(tab, video, zebra, tmp_path, monkeypatch):
    tab.opened(video)
    assert "my_clip · 8 frames of 256 x 144 pixels" in tab.one("#start").text
    tab.drag(*box_of(zebra))
    assert iou(tab.session.mask(0) == 1, zebra) > 0.5
    tab.wait(lambda: "object 1" in tab.one("#objects").text)
    tab.one("#rename input, #rename textarea").send_keys(Keys.CONTROL, "a")
    tab.one("#rename input, #rename textarea").send_keys("zebra", Keys.ENTER)
    tab.wait(lambda: "zebra" in tab.one("#objects").text)

    tab.click("#track")
    tab.wait(lambda: len(tab.session.current_frames()) >= 2 if tab.session.edits.masks else False)
    tab.click("#pause")
    tab.says("frames to track")
    stopped = len(tab.session.current_frames())
    assert 2 <= stopped < _FRAMES

    tab.choose("#tool", "Take away")
    left, top, *_ = box_of(tab.session.mask(stopped - 1))
    tab.click_at(max(left, 2), max(top, 2))
    tab.click("#add")
    tab.wait(lambda: "object 2" in tab.one("#objects").text)
    tab.choose("#tool", "Add")
    tab.drag(10, 70, 70, 130)  # the rooster
    assert set(tab.session.edits.given) == {0, stopped - 1}
    assert set(np.unique(tab.session.edits.given[stopped - 1])) == {0, 1, 2}
    tab.choose("#direction", "Both ways")
    tab.wait(lambda: tab.session.direction == "both")
    tab.click("#track")
    tab.says("All 8 frames are tracked")

    tab.click("#save")
    link = tab.one("#zip a").get_attribute("href")
    with urllib.request.urlopen(link) as answer, zipfile.ZipFile(io.BytesIO(answer.read())) as archive:
        archive.extractall(tmp_path)
    line = tab.one("#command textarea").get_property("value")
    assert (tmp_path / "command.txt").read_text() == line + "\n"
    assert (tmp_path / "overlays" / "my_clip.mp4").is_file()
    zipped = np.stack([read_mask(path) for path in sorted((tmp_path / "masks" / "my_clip").iterdir())])
    np.testing.assert_array_equal(zipped, tab.masks())

    shutil.copy(video, tmp_path)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    assert words[:2] == ["python", "evaluate.py"]
    monkeypatch.setattr(sys, "argv", [*words[1:], "logger=none", "output.dir=out", "output.report=false"])
    assert run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate") == 0
    commanded = np.stack([read_mask(path) for path in sorted(Path("out/masks/my clip").iterdir())])
    np.testing.assert_array_equal(commanded, zipped)
    assert (zipped[-1] == 1).any()
    assert (zipped[0] == 2).any()  # tracked backwards


def test_attention_and_charts_are_looked_at(tab, short, zebra):
    tab.opened(short)
    tab.drag(*box_of(zebra))
    tab.click("#track")
    tab.says("All 4 frames are tracked")
    tab.choose("#tool", "Attention")
    image, (row, column) = tab.picture(), np.argwhere(tab.session.mask(3) == 1).mean(0)
    ActionChains(tab.browser).move_to_element_with_offset(image, *tab.at(column, row)).click().perform()
    drawn = tab.one("#attention img")
    tab.wait(lambda: tab.browser.execute_script("return arguments[0].naturalWidth", drawn) > 800)
    assert len(tab.all("#charts svg polyline")) == 2
    tab.wait(lambda: tab.all("#heads img"))
    assert "Refined masks:" in tab.one("#outcomes").text
    assert pictures.series(tab.session)[1][-1][0] == 3


def test_by_keyboard_on_a_narrow_screen(tab, short, zebra):
    size(tab.browser, 400)
    tab.one("#path input, #path textarea").send_keys(str(short), Keys.ENTER)
    tab.says("Click on an object")
    tab.one("#by-hand > button").send_keys(Keys.ENTER)
    field = tab.one("#place input, #place textarea")
    field.send_keys(",".join(map(str, box_of(zebra))), Keys.ENTER)
    tab.wait(lambda: tab.session.edits.masks)
    before = tab.session.mask(0)
    tab.one("#undo").send_keys(Keys.ENTER)
    tab.wait(lambda: not tab.session.edits.masks)
    tab.one("#place-go").send_keys(Keys.ENTER)
    tab.wait(lambda: tab.session.edits.masks)
    np.testing.assert_array_equal(tab.session.mask(0), before)
    tab.one("#track").send_keys(Keys.ENTER)
    tab.says("All 4 frames are tracked")
    slider, image = tab.one("#frame input[type=range]"), tab.picture().get_attribute("src")
    slider.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    tab.wait(lambda: tab.picture().get_attribute("src") != image)
    assert tab.one("#frame input[type=number]").get_property("value") == "1"
    assert tab.browser.execute_script("return document.documentElement.scrollWidth") <= 400
    assert tab.picture().size["width"] > 340


def test_painting_and_mask_files(tab, video, zebra, tmp_path):
    tab.opened(video)
    write_mask(tmp_path / "mask.png", zebra.astype(np.uint8) * 3)
    tab.click("#by-hand > button")
    tab.upload("#mask", tmp_path / "mask.png")
    tab.wait(lambda: tab.session.edits.masks)
    np.testing.assert_array_equal(tab.session.mask(0) == 3, zebra)
    tab.click("#load-canvas")

    def stroke(length: int) -> None:
        tab.wait(lambda: tab.all("#canvas canvas"))
        time.sleep(2)  # until the picture is drawn on the canvas
        canvas = tab.one("#canvas canvas")
        tab.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        chain = ActionChains(tab.browser).move_to_element_with_offset(canvas, -60, 10).click_and_hold()
        chain.move_by_offset(length, 0).move_by_offset(0, length // 2).release().perform()
        time.sleep(1)

    stroke(40)
    before = tab.session.edits
    tab.click("#brush")
    tab.wait(lambda: tab.session.edits is not before)
    painted = tab.session.mask(0) == 3
    assert painted.sum() > zebra.sum() + 50
    assert painted[zebra].all()
    stroke(10)
    before = tab.session.edits
    tab.click("#erase")
    tab.wait(lambda: tab.session.edits is not before)
    erased = tab.session.mask(0) == 3
    assert erased[zebra].all()
    assert zebra.sum() < erased.sum() < painted.sum()


def test_what_is_wrong_is_said(tab, video, frames, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("<b>no video</b>")
    tab.upload("#upload", bad)
    tab.warns("bad.mp4: cannot be read as a video")
    path = tab.one("#path input, #path textarea")
    path.send_keys("/no/such/clip.mp4", Keys.ENTER)
    tab.warns("/no/such/clip.mp4: no such file or folder")
    long = write_video(tmp_path / "long.mp4", [frames[0]] * 41)
    tab.upload("#upload", long)
    tab.warns("the clip has 41 frames, and this page takes 40")
    named = tmp_path / "<img src=x onerror=alert(1)>.mp4"
    shutil.copy(video, named)
    tab.opened(named)
    assert "onerror" not in tab.browser.page_source.replace("onerror_alert", "")
    tab.click("#track")
    tab.warns("no object has been shown yet")
    tab.click("#by-hand > button")
    field = tab.one("#place input, #place textarea")
    field.send_keys("999,5", Keys.ENTER)
    tab.warns("(999, 5) is outside the picture of 256 x 144 pixels")
    tab.click("#undo")
    tab.warns("nothing to undo")
    one = write_video(tmp_path / "one.mp4", frames[:1])
    tab.click("#start > button")
    tab.upload("#upload", one)
    tab.wait(lambda: len(tab.session) == 1)
    tab.drag(170, 20, 250, 90)
    tab.click("#track")
    tab.warns("one frame only")


def test_a_reloaded_page_and_a_second_tab_find_the_clip(tab, video, zebra):
    tab.opened(video)
    tab.drag(*box_of(zebra))
    tab.click("#track")
    tab.wait(lambda: tab.session.current_frames())
    tab.browser.refresh()
    tab.wait(lambda: tab.all("#picture img"))
    errors(tab.browser)  # the page before says that its stream was broken off
    tab.says("to track: press Track")
    tab.wait(lambda: not tab.session.tracking)
    kept = tab.session.current_frames()
    assert 1 <= len(kept) < _FRAMES
    first = tab.browser.current_window_handle
    tab.browser.execute_script("window.open(location.href)")  # with a copy of the storage
    tab.wait(lambda: len(tab.browser.window_handles) == 3)
    tab.browser.switch_to.window(tab.browser.window_handles[-1])
    tab.says("to track: press Track")
    tab.browser.switch_to.window(first)
    tab.click("#track")
    tab.warns("open in another tab")
    assert tab.session.current_frames() == kept
    tab.browser.switch_to.window(tab.browser.window_handles[-1])
    tab.click("#track")
    tab.says("All 8 frames are tracked")
    tab.browser.close()
    tab.browser.switch_to.window(first)


def test_users_do_not_see_each_other_and_wait_in_line(tab, short, zebra, server):
    tab.opened(short)
    tab.drag(*box_of(zebra))
    mine = tab.browser.current_window_handle
    tab.browser.switch_to.new_window("tab")
    tab.browser.get(server[0])
    tab.wait(lambda: tab.all("#sample") and tab.token)
    assert not tab.all("#picture img")
    tab.opened(short)
    tab.drag(*box_of(zebra))
    other = tab.browser.current_window_handle
    with server[1].models.lock:  # the first job does not get on
        tab.browser.switch_to.window(mine)
        tab.click("#track")
        tab.wait(lambda: tab.session.tracking)
        tab.browser.switch_to.window(other)
        tab.click("#track")
        tab.says("Waiting in line")
    tab.says("All 4 frames are tracked")
    tab.browser.close()
    tab.browser.switch_to.window(mine)
    tab.says("All 4 frames are tracked")


def test_closing_the_tab_deletes_its_files(browser, server, short):
    address, sessions = server
    browser.switch_to.new_window("tab")
    browser.get(address)
    tab = Tab(browser, sessions)
    tab.wait(lambda: tab.all("#sample") and tab.token)
    tab.opened(short)
    token, folder, kept = tab.token, tab.session.folder, sessions.keep_seconds
    assert (folder / "short.mp4").is_file()
    sessions.keep_seconds = 0.2
    browser.close()
    browser.switch_to.window(browser.window_handles[0])
    WebDriverWait(browser, _WAIT, 0.1).until(
        lambda _: token not in sessions._sessions and not folder.exists()
    )
    sessions.keep_seconds = kept


def posted(address: str, name: str, content: bytes, length: int | None = None) -> tuple[int, str]:
    """Status and response of an upload with this file name."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + content + b"\r\n--x--\r\n"
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(len(body) if length is None else length))
    connection.endheaders()
    connection.send(body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_uploads_stay_in_their_folder_and_within_bounds(server, tmp_path_factory):
    address, sessions = server
    root = sessions.root.parent
    status, answer = posted(address, "../../../escaped.mp4", b"x")
    assert status == 400 or Path(re.findall(r'"(.*?)"', answer)[0]).resolve().is_relative_to(root.resolve())
    assert not list(root.parent.rglob("../escaped.mp4"))
    assert posted(address, "big.mp4", b"x" * (2**20 + 10))[0] == 413
    assert posted(address, "huge.mp4", b"x", length=10 * 2**30)[0] == 413
