"""The report's page in headless Chromium: what is drawn, filtered, clicked and escaped, and how fast it opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import REFERENCE_PROBABILITIES, group, response_text, write_numbers, write_step
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from megatron_rlpr.rollout.store import SCHEMA, read_table
from tools.report.__main__ import main

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium and chromedriver here (apt-get install chromium chromium-driver)"
)
PATIENCE_S = 600
"""The machine may be busy."""
ATTACK = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>&amp;"
LONG_TEXT = "It follows from the question that the numbers have to be added one after the other. " * 8


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.command_executor.client_config.timeout = PATIENCE_S
    driver.set_page_load_timeout(PATIENCE_S)
    yield driver
    driver.quit()


def open_page(browser: webdriver.Chrome, page: Path) -> None:
    """Returns when what is in view has been drawn."""
    browser.get(page.as_uri())
    wait(browser, lambda: browser.execute_script("return performance.getEntriesByName('ready').length") == 1)


def wait(browser: webdriver.Chrome, until: Callable[[], bool]) -> None:
    WebDriverWait(browser, PATIENCE_S, 0.1).until(lambda _: until())


@pytest.fixture(scope="module")
def two_runs(browser: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> webdriver.Chrome:
    """The page of two runs of three steps, each with a group of three and one of two responses. The second one's name,
    texts and configuration are hostile."""
    folder = tmp_path_factory.mktemp("runs")
    hostile = ATTACK.replace("/", "⁄")
    write_numbers(folder / "plain", 3)
    write_numbers(folder / hostile, 3, actor={"lr": 7e-7}, trainer={"name": ATTACK})
    with (folder / hostile / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, ATTACK: 1.0}) + "\n")
    for step in (1, 2, 3):
        right, wrong = response_text("11", f"thought {step}"), response_text("12")
        plain = [group(0, [right, wrong, wrong]), group(1, [right, right])]
        write_step(folder / "plain", step, plain)
        attacks = [group(0, [response_text("11", ATTACK)] * 3, ATTACK), group(1, [ATTACK] * 2, ATTACK)]
        write_step(folder / hostile, step, attacks, prompt=ATTACK)
    page = folder / "page.html"
    assert main([str(folder / "plain"), str(folder / hostile), "--out", str(page)]) == 0
    open_page(browser, page)
    return browser


@pytest.fixture
def filtered(two_runs: webdriver.Chrome) -> Callable[..., list[list[str]]]:
    """Sets filters by name; the listed rows then."""

    def rows(**wanted: str) -> list[list[str]]:
        two_runs.execute_script(
            """const [wanted] = arguments, form = document.getElementById('filters');
            for (const input of form.elements) if (input.name) input.value = wanted[input.name] ?? '';
            form.dispatchEvent(new Event('input'));""",
            wanted,
        )
        return two_runs.execute_script(
            "return [...document.getElementById('list').tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent))"
        )

    return rows


def texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    return [one.get_property("textContent") for one in browser.find_elements(By.CSS_SELECTOR, selector)]


def test_every_chart_is_drawn_when_it_comes_into_view(two_runs: webdriver.Chrome) -> None:
    data = json.loads(two_runs.find_element(By.ID, "data").get_property("textContent"))
    boxes = two_runs.find_elements(By.CSS_SELECTOR, ".chart")
    assert [box.find_element(By.TAG_NAME, "h3").text for box in boxes] == [chart["title"] for chart in data["charts"]]
    assert len(boxes) == 12
    for box, chart in zip(boxes, data["charts"], strict=True):
        two_runs.execute_script("arguments[0].scrollIntoView()", box)
        bars = [trace for trace in chart["data"] if trace["type"] == "bar"]
        if bars:
            expected = sum(len(trace["y"]) for trace in bars)
            wait(two_runs, lambda box=box, expected=expected: len(shapes(box, ".barlayer .point path")) == expected)
            assert expected == 2 * 6 * 3
        else:
            expected = len(chart["data"])
            wait(
                two_runs, lambda box=box, expected=expected: len(shapes(box, ".scatterlayer path.js-line")) == expected
            )
        assert len(box.find_elements(By.CSS_SELECTOR, ".legend .traces")) >= 2


def shapes(box: WebElement, selector: str) -> list[WebElement]:
    """The drawn ones: those with a path that goes somewhere."""
    return [path for path in box.find_elements(By.CSS_SELECTOR, selector) if "," in (path.get_attribute("d") or "")]


def test_any_other_metric_can_be_drawn(two_runs: webdriver.Chrome) -> None:
    choice = two_runs.find_element(By.ID, "other")
    names = texts(two_runs, "#other option")
    assert names == ["", "actor/loss", ATTACK]
    two_runs.execute_script(
        "arguments[0].value = 'actor/loss'; arguments[0].dispatchEvent(new Event('change'))", choice
    )
    box = two_runs.find_element(By.ID, "other-chart")
    wait(two_runs, lambda: len(shapes(box, ".scatterlayer path.js-line")) == 2)
    assert "value of the whole loss" in box.text


def test_responses_are_filtered_searched_and_ordered(
    two_runs: webdriver.Chrome, filtered: Callable[..., list[list[str]]]
) -> None:
    assert len(filtered()) == 2 * 3 * 5
    assert two_runs.find_element(By.ID, "count").text == "30 of 30 responses: 1 to 30"
    assert len(filtered(run="0")) == 15
    assert [row[1] for row in filtered(run="0", step="2")] == ["2"] * 5
    assert {row[4] for row in filtered(low="0.1", high="0.15")} == {"0.100"}
    right = filtered(run="0", correct="true")
    assert [(row[3], row[6]) for row in right] == [("0", "right"), ("0", "right"), ("1", "right")] * 3
    assert len(filtered(run="0", correct="false")) == 6
    assert {row[2] for row in filtered(kept="false")} == {"1"}
    assert [row[1] for row in filtered(text="THOUGHT 3")] == ["3"] * 3
    assert filtered(text="no such words") == []
    assert two_runs.find_element(By.ID, "count").text == "0 of 30 responses"
    assert [row[4] for row in filtered(run="0", step="1", order="-1")] == ["0.200", "0.100", "0.100", "0.000", "0.000"]


def test_a_click_shows_prompt_response_parts_and_the_references_probabilities(
    two_runs: webdriver.Chrome, filtered: Callable[..., list[list[str]]]
) -> None:
    filtered(run="0", step="3")
    line = two_runs.find_element(By.CSS_SELECTOR, "#list tbody tr")
    two_runs.execute_script("arguments[0].scrollIntoView({block: 'center'})", line)
    line.click()
    assert line.get_attribute("class") == "chosen"
    assert texts(two_runs, "#detail h3")[0] == "plain, step 3, prompt 0, response 0"
    assert texts(two_runs, "#detail .prompt") == ["5+6?"]
    assert texts(two_runs, "#detail .response") == [response_text("11", "thought 3")]
    tokens = two_runs.find_elements(By.CSS_SELECTOR, "#detail .token")
    assert [token.text for token in tokens] == ["1", "1"]
    assert [token.get_attribute("title") for token in tokens] == [
        f"probability {p:.4f}" for p in REFERENCE_PROBABILITIES
    ]
    colours = [two_runs.execute_script("return arguments[0].style.background", token) for token in tokens]
    assert len(set(colours)) == 2
    parts = dict(zip(texts(two_runs, ".parts td:first-child"), texts(two_runs, ".parts td:last-child"), strict=True))
    assert (parts["reference probability"], parts["base probability"], parts["advantage"]) == (
        "0.500",
        "0.200",
        "0.500",
    )
    assert parts["answer"] == "answer 0: right"


def test_what_a_model_wrote_stays_text(two_runs: webdriver.Chrome, filtered: Callable[..., list[list[str]]]) -> None:
    filtered(run="1", step="1", order="1")
    for number in (0, 1):
        two_runs.execute_script("document.getElementById('list').tBodies[0].rows[arguments[0]].click()", number)
        assert ATTACK in texts(two_runs, "#detail .response")[0]
        assert texts(two_runs, "#detail .prompt") == [ATTACK]
    assert ATTACK in texts(two_runs, "#list td")
    assert json.dumps(ATTACK) in texts(two_runs, "#keys td")
    assert ATTACK.replace("/", "⁄") in texts(two_runs, "h1")[0]
    assert two_runs.execute_script("return window.hacked") is None
    assert two_runs.find_elements(By.TAG_NAME, "img") == []


def test_the_difference_between_the_configurations_is_shown(two_runs: webdriver.Chrome) -> None:
    cells = [texts(two_runs, f"#different td:nth-child({column})") for column in (1, 2, 3)]
    rows = {key: (first, second) for key, first, second in zip(*cells, strict=True)}
    assert rows.keys() == {"actor.lr", "trainer.name"}
    assert rows["actor.lr"][1] == "7e-07"


def test_the_page_loads_nothing_and_breaks_nothing(two_runs: webdriver.Chrome) -> None:
    assert two_runs.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert two_runs.get_log("browser") == []


def test_500_steps_of_512_responses_open_quickly(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """In about two seconds of the processor, where a fixed piece of work in the same tab takes 0.8.

    Both take longer on a slower machine or beside other work, which must not decide.
    """
    write_numbers(tmp_path / "long", 500)
    answers = [[response_text(str(k), f"{LONG_TEXT}{number}") for k in range(8)] for number in range(64)]
    write_step(tmp_path / "long", 1, [group(number, texts) for number, texts in enumerate(answers)])
    stored = read_table(tmp_path / "long" / "rollouts", 1)
    for step in range(2, 501):
        numbered = stored.set_column(0, SCHEMA.field("step"), pa.array([step] * len(stored), pa.int64()))
        path = tmp_path / "long" / "rollouts" / f"step_{step:06d}.parquet"
        pq.write_table(numbered, path, compression="zstd", write_page_checksum=True)
    assert main([str(tmp_path / "long")]) == 0
    took = []
    for _ in range(2):
        browser.switch_to.new_window("tab")
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        open_page(browser, tmp_path / "long" / "report.html")
        opened = main_thread_seconds(browser)
        browser.execute_script(FIXED_WORK)
        took.append(opened / (main_thread_seconds(browser) - opened))
    assert min(took) < 3.2
    assert "4,096 of 256,000 stored responses" in texts(browser, "#samples li")[0]
    assert browser.find_element(By.ID, "count").text == "4096 of 4096 responses: 1 to 50"


FIXED_WORK = """
for (let round = 0; round < 8; round++)
  JSON.parse(JSON.stringify(Array.from({length: 1e5}, (_, number) => ({number, text: "x".repeat(20)}))));
"""


def main_thread_seconds(browser: webdriver.Chrome) -> float:
    """What this tab has cost so far."""
    metrics: list[dict[str, Any]] = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))
