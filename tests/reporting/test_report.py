"""The pages that people look at, made by real runs of a small random model and opened in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from browser import chromium, console_errors
from examples import moving_square, write_davis
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

import evaluate
from drift.command_line import run
from drift.errors import InputError
from drift.reporting import compare, report
from drift.reporting.report import write_report

CLIPS = {name: moving_square(frames, name=name) for name, frames in (("ant", 6), ("bee", 9))}


@pytest.fixture(scope="module")
def runs(checkpoint, tmp_path_factory):
    """Two runs that differ: one adapts."""
    folder = tmp_path_factory.mktemp("runs")
    root = write_davis(folder / "data", CLIPS)
    words = [
        *("evaluate.py", "data=davis", f"data.root={root}", f"backbone.checkpoint={checkpoint}"),
        *("backbone.layers=[up_blocks.2.attentions.0,up_blocks.1.attentions.0]", "logger=none"),
        *("refinement=none", "output.sampled_frames=4"),
    ]
    adapting = [
        "adaptation=drift",
        "adaptation.steps=3",
        "adaptation.head_steps=4",
        "adaptation.weights=null",
    ]
    made = []
    for name, more in (("plain", []), ("adapted", adapting)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*words, *more, f"output.dir={folder / name}"])
            assert run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate") == 0
        made.append(folder / name)
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def opened(browser, page: Path):
    browser.get(page.as_uri())
    return browser


def test_a_run_leaves_a_page_that_needs_nothing_else(runs):
    page = (runs[1] / "report.html").read_text("utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", page)
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)


def test_the_report_opens_without_an_error_and_shows_what_was_measured(browser, runs):
    opened(browser, runs[1] / "report.html")
    results = json.loads((runs[1] / "results.json").read_text())
    tiles = browser.find_element(By.CLASS_NAME, "tiles").text
    assert f"{results['J&F']:.3f}" in tiles
    titles = [card.text for card in browser.find_elements(By.CSS_SELECTOR, "#clip h3")]
    assert titles == [
        "Frames",
        "Scores by frame",
        "Attention",
        "Head weights",
        "Losses of the adaptation, by step",
        "Seconds a frame, by stage",
    ]
    weights = [float(one.text) for one in browser.find_elements(By.CSS_SELECTOR, ".heat td:not(.left)")]
    assert sum(weights) == pytest.approx(1, abs=0.01)
    WebDriverWait(browser, 10).until(lambda b: b.find_elements(By.CSS_SELECTOR, "[data-ready]"))
    assert console_errors(browser) == []


def test_a_click_on_a_head_sorts(browser, runs):
    opened(browser, runs[0] / "report.html")
    heads = {one.text: one for one in browser.find_elements(By.CSS_SELECTOR, "#clips th button")}

    def column(number):
        return [
            one.text for one in browser.find_elements(By.CSS_SELECTOR, f"#clips tbody td:nth-child({number})")
        ]

    heads["frames"].click()
    assert column(3) == ["9", "6"]
    heads["frames"].click()
    assert column(3) == ["6", "9"]
    heads["sequence"].click()
    assert column(1) == ["ant", "bee"]
    heads["sequence"].click()
    assert column(1) == ["bee", "ant"]
    heads["J&F"].click()
    assert column(6) == sorted(column(6), reverse=True)
    assert console_errors(browser) == []


def test_a_click_on_a_row_shows_its_clip_and_the_slider_its_frames(browser, runs):
    opened(browser, runs[0] / "report.html")
    browser.find_element(By.CSS_SELECTOR, "tr[data-clip=bee]").click()
    assert browser.find_element(By.ID, "clip-name").text == "bee"
    picture, range_ = browser.find_element(By.ID, "sample"), browser.find_element(By.ID, "frame-slider")
    before = picture.get_attribute("src")
    range_.send_keys(Keys.END)
    assert picture.get_attribute("src") != before
    assert "frame 8" in browser.find_element(By.ID, "clip").text
    overlay = picture.get_attribute("src")
    Select(browser.find_element(By.CSS_SELECTOR, "[aria-label='what is drawn']")).select_by_value("errors")
    assert picture.get_attribute("src") != overlay
    assert browser.execute_script("return arguments[0].naturalWidth", picture) > 0
    assert console_errors(browser) == []


def test_a_click_on_a_pixel_shows_where_it_attends(browser, runs):
    opened(browser, runs[0] / "report.html")
    WebDriverWait(browser, 10).until(lambda b: b.find_elements(By.CSS_SELECTOR, "[data-ready]"))
    target = browser.find_element(By.ID, "attention-target")
    memory = browser.find_elements(By.CLASS_NAME, "attention-memory")[0]

    def painted():
        return browser.execute_script("return arguments[0].toDataURL()", memory)

    pictures = []
    for x, y in ((-20, -20), (25, 20)):
        click_beside_the_middle(browser, target, x, y)
        pictures.append((painted(), memory.get_attribute("data-query")))
    assert pictures[0][1] != pictures[1][1]
    assert pictures[0][0] != pictures[1][0]
    layers = Select(browser.find_element(By.CSS_SELECTOR, "[aria-label=layer]"))
    assert len(layers.options) == 2
    layers.select_by_index(1)
    assert painted() != pictures[1][0]
    shares = [
        float(one.text.split(":")[1].strip(" %"))
        for one in browser.find_elements(By.CSS_SELECTOR, ".frames figcaption")[1:]
    ]
    assert 95 <= sum(shares) <= 105  # all frames that this clip remembers are shown
    assert console_errors(browser) == []


def click_beside_the_middle(browser, element, x, y):
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(browser).move_to_element_with_offset(element, x, y).click().perform()


def test_runs_stand_side_by_side(browser, runs, tmp_path, monkeypatch, capsys):
    page = tmp_path / "both.html"
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, runs), "--output", str(page)])
    assert compare.main() == 0
    assert str(page) in capsys.readouterr().out
    opened(browser, page)
    assert browser.find_element(By.TAG_NAME, "h1").text == "2 runs side by side"
    differing = browser.find_element(By.ID, "differences").text
    assert "adaptation.head_weighting" in differing
    assert "output" not in differing
    rows = browser.find_elements(By.CSS_SELECTOR, "#clips tbody tr")
    assert len(rows) == 2
    assert re.search(r"\([+-]\d+\.\d\)", rows[0].text)
    rows[1].click()
    assert browser.find_element(By.ID, "clip-name").text == "bee"
    pictures = browser.find_elements(By.CSS_SELECTOR, ".frames img")
    before = [one.get_attribute("src") for one in pictures]
    assert len(before) == 2
    browser.find_element(By.ID, "frame-slider").send_keys(Keys.END)
    assert all(one.get_attribute("src") != src for one, src in zip(pictures, before, strict=True))
    assert console_errors(browser) == []


def test_a_run_without_a_score_has_a_report_all_the_same(browser, runs, tmp_path):
    results = json.loads((runs[0] / "results.json").read_text())
    for told in (results, *results["sequences"].values()):
        told |= {"J": None, "F": None, "J&F": None}
    folder = tmp_path / "unscored"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    opened(browser, write_report(folder))
    assert "Nothing was scored" in browser.find_element(By.TAG_NAME, "body").text
    assert console_errors(browser) == []


def test_names_from_outside_are_not_taken_for_html(browser, runs, tmp_path):
    name = "<b>x</b></script><script>throw 1</script>"
    results = json.loads((runs[0] / "results.json").read_text())
    results["sequences"] = {name: results["sequences"]["ant"] | {"warning": name}}
    curves = {name: {"objects": {}, "losses": {"l": [1.0, float("nan")]}, "head_weights": {}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "curves.json").write_text(json.dumps(curves))
    opened(browser, write_report(tmp_path))
    assert browser.find_element(By.ID, "clip-name").text == name
    assert browser.find_element(By.CSS_SELECTOR, "p.warning").text == f"{name}: {name}"
    assert console_errors(browser) == []


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({}, "no such file"),
        ({"results.json": "{"}, "cannot be read"),
        ({"results.json": "[]"}, "holds no results"),
        ({"results.json": "{}"}, "holds no results"),
        ({"results.json": '{"sequences": {}}'}, "holds no results"),
    ],
)
def test_a_folder_that_is_no_runs_is_named(files, named, tmp_path, monkeypatch, capsys):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=named):
        write_report(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    assert report.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path / "results.json") in error
    assert error.count("\n") == 1


def test_damaged_attention_maps_are_left_out(runs, tmp_path):
    folder = shutil.copytree(runs[0], tmp_path / "run")
    path = folder / "attention" / "ant.npz"
    whole = path.read_bytes()
    for damaged in (b"half", b"", whole[: len(whole) // 2], whole[:2000] + bytes(200) + whole[2200:]):
        path.write_bytes(damaged)
        page = write_report(folder).read_text("utf-8")
        assert page.count('"attention": null') == 1
