"""Report and comparison pages of real runs with a small random model, opened in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from browser import chromium, console_errors
from examples import few_steps, moving_square, write_davis
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
    """Output folders of two runs, without and with adaptation."""
    folder = tmp_path_factory.mktemp("runs")
    root = write_davis(folder / "data", CLIPS)
    words = [
        *("evaluate.py", "data=davis", f"data.root={root}", f"backbone.checkpoint={checkpoint}"),
        *("backbone.layers=[up_blocks.2.attentions.0,up_blocks.1.attentions.0]", "logger=none"),
        *("refinement=none", "output.sampled_frames=4"),
    ]
    adapting = [
        "adaptation=drift",
        "adaptation.textual_inversion.steps=3",
        "adaptation.head_weighting.steps=4",
    ]
    folders = [folder / "plain", folder / "adapted"]
    for output, overrides in zip(folders, ([], adapting), strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*few_steps([*words, *overrides]), f"output.dir={output}"])
            assert run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate") == 0
    return folders


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def visit(browser, page: Path):
    browser.get(page.as_uri())


def test_the_report_is_self_contained(runs):
    page = (runs[1] / "report.html").read_text("utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", page)
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)


def test_the_report_shows_scores_and_all_cards(browser, runs):
    visit(browser, runs[1] / "report.html")
    results = json.loads((runs[1] / "results.json").read_text())
    tiles = browser.find_element(By.CLASS_NAME, "tiles").text
    assert f"{results['J&F']:.3f}" in tiles
    titles = [card.text for card in browser.find_elements(By.CSS_SELECTOR, "#clip h3")]
    assert titles == [
        "Frames",
        "Scores per frame",
        "Attention",
        "Head weights",
        "Adaptation loss per step",
        "Seconds per frame, by stage",
    ]
    weights = [float(cell.text) for cell in browser.find_elements(By.CSS_SELECTOR, ".heat td:not(.left)")]
    assert sum(weights) == pytest.approx(1, abs=0.01)
    WebDriverWait(browser, 10).until(lambda b: b.find_elements(By.CSS_SELECTOR, "[data-ready]"))
    assert console_errors(browser) == []


def test_clicking_a_column_header_sorts(browser, runs):
    visit(browser, runs[0] / "report.html")
    headers = {header.text: header for header in browser.find_elements(By.CSS_SELECTOR, "#clips th button")}

    def column(number):
        cells = browser.find_elements(By.CSS_SELECTOR, f"#clips tbody td:nth-child({number})")
        return [cell.text for cell in cells]

    headers["frames"].click()
    assert column(3) == ["9", "6"]
    headers["frames"].click()
    assert column(3) == ["6", "9"]
    headers["sequence"].click()
    assert column(1) == ["ant", "bee"]
    headers["sequence"].click()
    assert column(1) == ["bee", "ant"]
    headers["J&F"].click()
    assert column(6) == sorted(column(6), reverse=True)
    assert console_errors(browser) == []


def test_rows_select_clips_and_the_slider_selects_frames(browser, runs):
    visit(browser, runs[0] / "report.html")
    browser.find_element(By.CSS_SELECTOR, "tr[data-clip=bee]").click()
    assert browser.find_element(By.ID, "clip-name").text == "bee"
    image, slider = browser.find_element(By.ID, "sample"), browser.find_element(By.ID, "frame-slider")
    before = image.get_attribute("src")
    slider.send_keys(Keys.END)
    assert image.get_attribute("src") != before
    assert "frame 8" in browser.find_element(By.ID, "clip").text
    overlay = image.get_attribute("src")
    Select(browser.find_element(By.CSS_SELECTOR, "[aria-label='image type']")).select_by_value("errors")
    assert image.get_attribute("src") != overlay
    assert browser.execute_script("return arguments[0].naturalWidth", image) > 0
    assert console_errors(browser) == []


def test_clicking_the_target_frame_shows_attention(browser, runs):
    visit(browser, runs[0] / "report.html")
    WebDriverWait(browser, 10).until(lambda b: b.find_elements(By.CSS_SELECTOR, "[data-ready]"))
    target = browser.find_element(By.ID, "attention-target")
    memory = browser.find_elements(By.CLASS_NAME, "attention-memory")[0]

    def drawn():
        return browser.execute_script("return arguments[0].toDataURL()", memory)

    results = []
    for x, y in ((-20, -20), (25, 20)):
        click_off_centre(browser, target, x, y)
        results.append((drawn(), memory.get_attribute("data-query")))
    assert results[0][1] != results[1][1]
    assert results[0][0] != results[1][0]
    layers = Select(browser.find_element(By.CSS_SELECTOR, "[aria-label=layer]"))
    assert len(layers.options) == 2
    layers.select_by_index(1)
    assert drawn() != results[1][0]
    captions = browser.find_elements(By.CSS_SELECTOR, ".frames figcaption")[1:]
    percentages = [float(caption.text.split(":")[1].strip(" %")) for caption in captions]
    assert 95 <= sum(percentages) <= 105  # all memory frames of this clip are drawn
    assert console_errors(browser) == []


def click_off_centre(browser, element, x, y):
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(browser).move_to_element_with_offset(element, x, y).click().perform()


def test_comparison(browser, runs, tmp_path, monkeypatch, capsys):
    page = tmp_path / "both.html"
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, runs), "--output", str(page)])
    assert compare.main() == 0
    assert str(page) in capsys.readouterr().out
    visit(browser, page)
    assert browser.find_element(By.TAG_NAME, "h1").text == "Comparison of 2 runs"
    differences = browser.find_element(By.ID, "differences").text
    assert "adaptation.head_weighting" in differences
    assert "output" not in differences
    rows = browser.find_elements(By.CSS_SELECTOR, "#clips tbody tr")
    assert len(rows) == 2
    assert re.search(r"\([+-]\d+\.\d\)", rows[0].text)
    rows[1].click()
    assert browser.find_element(By.ID, "clip-name").text == "bee"
    images = browser.find_elements(By.CSS_SELECTOR, ".frames img")
    before = [image.get_attribute("src") for image in images]
    assert len(before) == 2
    browser.find_element(By.ID, "frame-slider").send_keys(Keys.END)
    assert all(image.get_attribute("src") != src for image, src in zip(images, before, strict=True))
    assert console_errors(browser) == []


def test_report_of_an_unscored_run(browser, runs, tmp_path):
    results = json.loads((runs[0] / "results.json").read_text())
    for scores in (results, *results["sequences"].values()):
        scores |= {"J": None, "F": None, "J&F": None}
    folder = tmp_path / "unscored"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    visit(browser, write_report(folder))
    assert "Not scored" in browser.find_element(By.TAG_NAME, "body").text
    assert console_errors(browser) == []


def test_names_are_escaped(browser, runs, tmp_path):
    name = "<b>x</b></script><script>throw 1</script>"
    results = json.loads((runs[0] / "results.json").read_text())
    results["sequences"] = {name: results["sequences"]["ant"] | {"warning": name}}
    curves = {name: {"objects": {}, "losses": {"l": [1.0, float("nan")]}, "head_weights": {}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "curves.json").write_text(json.dumps(curves))
    visit(browser, write_report(tmp_path))
    assert browser.find_element(By.ID, "clip-name").text == name
    assert browser.find_element(By.CSS_SELECTOR, "p.warning").text == f"{name}: {name}"
    assert console_errors(browser) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no such file"),
        ({"results.json": "{"}, "cannot be read"),
        ({"results.json": "[]"}, "does not contain the results"),
        ({"results.json": "{}"}, "does not contain the results"),
        ({"results.json": '{"sequences": {}}'}, "does not contain the results"),
    ],
)
def test_folders_without_results_are_errors(files, message, tmp_path, monkeypatch, capsys):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        write_report(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    assert report.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path / "results.json") in error
    assert error.count("\n") == 1


def test_damaged_attention_maps_are_ignored(runs, tmp_path):
    folder = shutil.copytree(runs[0], tmp_path / "run")
    path = folder / "attention" / "ant.npz"
    valid = path.read_bytes()
    for damaged in (b"half", b"", valid[: len(valid) // 2], valid[:2000] + bytes(200) + valid[2200:]):
        path.write_bytes(damaged)
        page = write_report(folder).read_text("utf-8")
        assert page.count('"attention": null') == 1
