"""The page in a real Chromium, against a real bus and a real port."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from shared.messages import Alert, TaskPhase
from shared.tasklog import STDERR
from tests.fakes.bus_worker import running_task
from tests.fakes.history import Ended, write_history
from tests.fakes.keeper_log import KeeperLog
from tests.web.conftest import Beating, Serving, wait_for

MakeLog = Callable[[str], KeeperLog]

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

expect.set_options(timeout=30_000)  # Playwright's five seconds judge the machine's load, not us
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield launched
        launched.close()


@dataclass
class Shown:
    """A page, and what its console said."""

    page: Page
    errors: list[str] = field(default_factory=list)


@pytest.fixture
def shown(browser: Browser, serving: Serving) -> Iterator[Shown]:
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    made = Shown(page)
    page.on("console", lambda m: made.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda err: made.errors.append(str(err)))
    page.goto(f"{serving.url}/")
    yield made
    page.close()
    assert made.errors == []


def add_history(home: Path) -> None:
    at = time.time()
    write_history(
        home / "lib" / "executor.db",
        Ended("prepare", TaskPhase.SUCCEEDED, at - 4000, ran_s=73),
        Ended("broken", TaskPhase.FAILED, at - 300, ran_s=500, exit_code=3,
              error="the command exited 3; its log says why, if it says anything"),
        Ended("greedy", TaskPhase.OUT_OF_MEMORY, at - 900, ran_s=7, exit_code=137,
              error="it was killed at its limit of memory; ask for more"),
    )  # fmt: skip


def test_node_processes_and_machine_are_shown(shown: Shown) -> None:
    page = shown.page
    expect(page).to_have_url(page.url.split("/m")[0] + "/monitor.html")
    expect(page.locator("#node-name")).to_have_text("attic")
    expect(page.locator("#node-id")).to_have_text("node-7f3a")
    expect(page.locator("#node-state")).to_have_text("READY")
    expect(page.locator("#node")).to_contain_text("3,456 in all, 12 in the last report")
    rows = page.locator("#processes tbody tr")
    expect(rows).to_have_count(6)
    expect(rows.nth(1)).to_contain_text("executor")
    expect(rows.nth(1)).to_contain_text("RUNNING")
    expect(rows.nth(1)).to_contain_text("1 h 23 min")
    expect(page.locator("#use")).to_contain_text("42 %")
    expect(page.locator("#use .curve").first).to_be_attached()
    for number, split in ((0, "tasks 32 %, owner 10 %"), (1, "tasks 3.0 GiB, owner 15.0 GiB")):
        expect(page.locator("#use .chart").nth(number)).to_contain_text(split)
        expect(page.locator("#use .chart").nth(number).locator(".part")).to_be_attached()
    expect(page.locator("#use .chart", has_text="Cores (8)")).to_contain_text("busiest 90 %")
    expect(page.locator("#use .core")).to_have_count(8)
    said = "61 °C · waiting for CPU 12 %, memory 0 %, disk 3 %"
    expect(page.locator("#host")).to_contain_text(said)
    expect(page.locator("#use")).not_to_contain_text("Swap")
    expect(page.locator("#alerts")).to_be_hidden()
    expect(page.locator("#cleared")).to_be_hidden()


def test_an_alert_is_shown_and_then_for_a_while_that_it_is_over(
    shown: Shown, beating: Beating
) -> None:
    now_unix_s = time.time()
    high = Alert(
        rule="swap", subject="attic", value=81.0, threshold=80.0, raised_unix_s=now_unix_s - 300
    )
    beating.host = {"alerts": (high,), "swap_pct": 81.0}
    alerts, cleared = (shown.page.locator(name) for name in ("#alerts", "#cleared"))
    expect(alerts).to_contain_text("swap attic: 81 (threshold 80)for 5 min")
    expect(shown.page.locator("#use .chart", has_text="Swap")).to_contain_text("81 %")
    over = msgspec.structs.replace(high, cleared_unix_s=now_unix_s - 120)
    beating.host = {"cleared": (over,)}
    expect(alerts).to_be_hidden()
    expect(cleared).to_contain_text("swap attic: 81 (threshold 80): ended 2 min")
    expect(cleared).to_contain_text("after 3 min 0 s")


def test_each_gpu_is_shown_with_what_it_tells(shown: Shown, beating: Beating) -> None:
    beating.has_gpus = True
    cards = shown.page.locator("#use .chart", has_text="GPU")
    expect(cards).to_have_count(3)
    for number, texts in enumerate((
        ("GPU 0 NVIDIA H100", "7 %", "1.5 GiB of 80.0 GiB · 41 °C · 71 W"
         " · held back: power cap · last error XID 43"),
        ("GPU 1", "lost", "it fell off the bus"),
        ("GPU 2 NVIDIA L4", "use unknown", "split by MIG: no task gets it"),
    )):  # fmt: skip
        for text in texts:
            expect(cards.nth(number)).to_contain_text(text)
    assert "0 °C" not in (cards.nth(2).text_content() or ""), "what it does not tell is not zero"
    expect(shown.page.locator("#alerts")).to_contain_text("GPU-b: it fell off the bus")


def test_a_running_task_shows_its_output_as_it_comes(
    shown: Shown, beating: Beating, task_log: MakeLog
) -> None:
    alert = Alert(
        rule="memory", subject="task train.1", value=91.0, threshold=90.0, raised_unix_s=5.0
    )
    task = msgspec.structs.replace(running_task(), alerts=(alert,))
    log = task_log("train.1")
    log.write(b"epoch 1\n")
    beating.tasks = (task,)
    page = shown.page
    expect(page.locator(".task .name")).to_have_text("train.1")
    expect(page.locator(".task .warned")).to_have_text("memory task train.1: 91 (threshold 90)")
    expect(page.locator(".task .about")).to_contain_text("memory 1.5 GiB of 2.0 GiB")
    expect(page.locator(".log")).to_have_text("epoch 1\n")
    log.write(b"warning: slow\n", STDERR)
    expect(page.locator(".log .error")).to_have_text("warning: slow\n")
    beating.tasks = ()
    expect(page.locator(".task")).to_have_count(0)
    expect(page.locator("#tasks-empty")).to_have_text("none at the moment")


def test_a_hostile_log_stays_text(
    shown: Shown, beating: Beating, task_log: MakeLog
) -> None:
    line = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"
    log = task_log("evil.1")
    log.write(line.encode() + b"\x1b[31m red \x1b]0;title\x07\x00\xff\n")
    beating.tasks = (running_task("evil"),)
    page = shown.page
    expect(page.locator(".log")).to_have_text(line + " red ␀�\n")
    assert page.title() == "HiveMind Worker"
    assert page.locator(".log script, .log img").count() == 0


def test_buttons_pause_and_resume_the_node(shown: Shown, serving: Serving) -> None:
    page, saved = shown.page, serving.settings.home / "lib" / "owner.json"
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Pause")).to_have_attribute("aria-pressed", "true")
    assert '"wish":"paused"' in saved.read_text()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Resume")).to_be_hidden()
    expect(page.get_by_role("button", name="Pause")).to_have_attribute("aria-pressed", "false")
    assert '"wish":"ready"' in saved.read_text()


def test_a_task_is_stopped_and_forgotten(shown: Shown, serving: Serving, beating: Beating) -> None:
    beating.tasks = (running_task(),)
    stop = shown.page.locator(".task button")
    stop.click()
    expect(stop).to_have_text("Stopping …")
    saved = serving.settings.home / "lib" / "owner.json"
    assert '"stopped_tasks":["train.1"]' in saved.read_text()
    beating.tasks = ()
    wait_for(lambda: '"stopped_tasks":[]' in saved.read_text(), "the stop is forgotten")


def test_history_comes_from_the_executors_database(shown: Shown, beating: Beating) -> None:
    expect(shown.page.locator("#history-empty")).to_have_text("no task has ended yet")
    add_history(beating.home)
    rows = shown.page.locator("#history tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text("broken.1")
    expect(rows.nth(0)).to_contain_text("8 min 20 s")


def names(page: Page) -> list[str]:
    first = "cells => cells.map(cell => cell.firstChild.textContent)"
    return list(page.locator("#history td.name").evaluate_all(first))


def test_the_history_is_searched(shown: Shown, beating: Beating) -> None:
    page, at = shown.page, time.time()
    hostile = "<b id=taken>x</b>"
    add_history(beating.home)
    write_history(
        beating.home / "lib" / "executor.db",
        *(Ended(f"bulk-{n:03d}", TaskPhase.SUCCEEDED, at - 5000 - n) for n in range(60)),
        Ended("evil", TaskPhase.FAILED, at - 100, error=hostile, command=hostile),
    )
    rows = page.locator("#history tbody tr")
    expect(rows).to_have_count(50)
    more = page.get_by_role("button", name="Show more")
    more.click()
    expect(rows).to_have_count(64)
    expect(more).to_be_hidden()
    assert names(page)[:4] == ["evil.1", "broken.1", "greedy.1", "prepare.1"]
    page.get_by_label("Words to look for").fill("LIMIT memory")
    expect(rows).to_have_count(1)
    assert names(page) == ["greedy.1"]
    page.get_by_label("Words to look for").fill("%")
    expect(page.locator("#history-empty")).to_have_text("nothing found")
    page.get_by_label("Words to look for").fill("")
    expect(rows).to_have_count(50)
    page.get_by_label("Result").select_option("failed")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text(hostile)
    assert page.locator("#taken").count() == 0
    write_history(
        beating.home / "lib" / "executor.db", Ended("late", TaskPhase.FAILED, time.time())
    )
    expect(rows).to_have_count(3, timeout=10_000)
    page.get_by_label("Ended within").select_option("3600")
    page.get_by_label("Result").select_option("")
    expect(rows).to_have_count(4)


def test_silence_is_shown_as_silence(shown: Shown, beating: Beating) -> None:
    expect(shown.page.locator("#node-name")).to_have_text("attic")
    beating.silent = True
    expect(shown.page.locator("#node-id")).to_have_text(
        "no word from master_link", timeout=10_000
    )
    expect(shown.page.locator("#alerts")).to_contain_text("no word from executor (task.state)")
    expect(shown.page.locator("#tasks-empty")).to_have_text("no word from the executor")
    beating.silent, beating.synced = False, False
    expect(shown.page.locator("#tasks-empty")).to_have_text("the executor is starting")
    beating.synced = True
    expect(shown.page.locator("#alerts")).to_be_hidden()


def test_it_is_readable_in_both_schemes_and_on_a_phone(
    shown: Shown, beating: Beating, task_log: MakeLog, tmp_path: Path
) -> None:
    home = beating.home
    add_history(home)
    log = task_log("train.1")
    for epoch in range(1, 9):
        log.write(f"epoch {epoch}/10  loss {1 / epoch:.4f}\n".encode())
    log.write(b"UserWarning: the learning rate is high\n", STDERR)
    beating.tasks = (running_task(),)
    page = shown.page
    expect(page.locator(".log .error")).to_be_attached()
    expect(page.locator("#history tbody tr")).to_have_count(3)
    drawn = "document.querySelectorAll('.curve')[3]?.points.length ?? 0"
    wait_for(lambda: page.evaluate(drawn) > 20, "the curves have some length")
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        page.set_viewport_size({"width": width, "height": 1000})
        page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
        wider = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert page.evaluate(wider) is False
