"""What the web process decides."""

import base64

import msgspec
import pytest

from procs.web.core import (
    Access,
    LogTail,
    LogText,
    Owner,
    Refused,
    Samples,
    access_for,
    alerts,
    harmless,
    health,
    page,
    pruned,
    refusal,
    with_stopped,
    with_wish,
)
from procs.web.main import READS
from shared import codec
from shared.bus import Inbox
from shared.messages import (
    Alert,
    Capacity,
    Engine,
    GpuLoad,
    HostLoad,
    LinkState,
    Message,
    NodePhase,
    TaskPhase,
    TaskState,
)
from tests.fakes.bus_worker import (
    gpu_load,
    host_load,
    link_state,
    process_state,
    running_task,
    task_state,
)

LOCAL = access_for("127.0.0.1", "")
OPEN = access_for("0.0.0.0", "s3cret")
WRITE = {"host": "localhost:5001", "x-hivemind": "1", "content-length": "2"}


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("host", "access"),
    [
        pytest.param("127.0.0.1", {"localhost", "127.0.0.1", "::1"}, id="loopback"),
        pytest.param("192.0.2.7", {"192.0.2.7"}, id="an address"),
        pytest.param("0.0.0.0", None, id="every address"),
        pytest.param("[::]", None, id="every address, IPv6"),
    ],
)
def test_access_for(host: str, access: set[str] | None) -> None:
    assert access_for(host, "t").hosts == (None if access is None else frozenset(access))


@pytest.mark.parametrize(
    ("headers", "access", "status"),
    [
        pytest.param({"host": "localhost:5001"}, LOCAL, None, id="localhost"),
        pytest.param({"host": "[::1]:5001"}, LOCAL, None, id="IPv6"),
        pytest.param({"host": "evil.example"}, LOCAL, 421, id="a rebound name"),
        pytest.param({"host": "localhost.evil.example"}, LOCAL, 421, id="a name like ours"),
        pytest.param({"host": "["}, LOCAL, 421, id="no name"),
        pytest.param({}, LOCAL, 421, id="no host"),
        pytest.param({"host": "any"}, OPEN, 401, id="no token"),
        pytest.param({"host": "any", "authorization": basic("s3cret")}, OPEN, None, id="password"),
        pytest.param({"host": "any", "authorization": basic("other")}, OPEN, 401, id="wrong"),
        pytest.param({"host": "any", "authorization": "Basic ?"}, OPEN, 401, id="not base64"),
        pytest.param({"host": "any", "authorization": "Bearer s3cret"}, OPEN, None, id="bearer"),
        pytest.param({"host": "any", "authorization": "Digest s3cret"}, OPEN, 401, id="digest"),
    ],
)
def test_who_may_read(headers: dict[str, str], access: Access, status: int | None) -> None:
    refused = refusal("GET", "/events", headers, access)
    assert (refused[0] if refused else None) == status


def test_health_needs_no_token() -> None:
    assert refusal("GET", "/healthz", {"host": "any"}, OPEN) is None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, None, id="from the page"),
        pytest.param({"origin": "http://localhost:5001"}, None, id="its own origin"),
        pytest.param({"origin": "http://evil.example"}, 403, id="another origin"),
        pytest.param({"origin": "http://localhost:8080"}, 403, id="another port"),
        pytest.param({"origin": "null"}, 403, id="no origin at all"),
        pytest.param({"content-length": "4097"}, 413, id="too large"),
        pytest.param({"content-length": ""}, 413, id="no length"),
    ],
)
def test_who_may_write(headers: dict[str, str], status: int | None) -> None:
    refused = refusal("POST", "/owner", WRITE | headers, LOCAL)
    assert (refused[0] if refused else None) == status


def test_a_write_needs_the_header() -> None:
    without = {name: value for name, value in WRITE.items() if name != "x-hivemind"}
    assert refusal("POST", "/owner", without, LOCAL) == (403, "a write needs the header x-hivemind")


# ------------------------------------------------------------------ what the owner wants


def test_a_wish_keeps_the_stopped_tasks() -> None:
    owner = Owner(stopped_tasks=("a.1",))
    assert with_wish(owner, "paused") == Owner(wish=NodePhase.PAUSED, stopped_tasks=("a.1",))


@pytest.mark.parametrize("wish", ["degraded", "off", ""])
def test_a_wish_that_is_none_is_refused(wish: str) -> None:
    with pytest.raises(Refused, match="wish must be ready or paused or draining"):
        with_wish(Owner(), wish)


def ended(task_id: str) -> TaskState:
    return task_state(1.0, msgspec.structs.replace(running_task(task_id), phase=TaskPhase.FAILED))


@pytest.mark.parametrize(
    ("tasks", "why"),
    [
        pytest.param(None, "says nothing", id="silence"),
        pytest.param(task_state(1.0), "does not hold", id="unknown"),
        pytest.param(ended("a"), "has ended", id="ended"),
    ],
)
def test_a_stop_that_makes_no_sense_is_refused(tasks: TaskState | None, why: str) -> None:
    with pytest.raises(Refused, match=why):
        with_stopped(Owner(), "a.1", tasks)


def test_stops_are_kept_until_the_executor_lets_go() -> None:
    held = task_state(1.0, running_task("a"), running_task("b"))
    owner = with_stopped(with_stopped(Owner(), "b.1", held), "a.1", held)
    assert owner.stopped_tasks == ("a.1", "b.1")
    assert with_stopped(owner, "a.1", held) == owner
    assert pruned(owner, held) is owner
    assert pruned(owner, None) is owner, "silence prunes nothing"
    assert pruned(owner, task_state(2.0, running_task("b"))).stopped_tasks == ("b.1",)


# ------------------------------------------------------------------ health and the page


def inbox_with(*said: tuple[str, Message]) -> Inbox:
    inbox = Inbox(READS)
    inbox.take([[m.topic.encode(), source.encode(), codec.encode(m)] for source, m in said])
    return inbox


@pytest.mark.parametrize(
    ("said", "healthy", "stale"),
    [
        pytest.param((link_state(9.0), task_state(9.0)), True, False, id="both"),
        pytest.param((link_state(9.0), task_state(5.0)), False, True, id="executor stale"),
        pytest.param((link_state(5.0), task_state(9.0)), False, False, id="link stale"),
        pytest.param((link_state(9.0),), False, True, id="executor never heard"),
        pytest.param(
            (link_state(9.0), TaskState(at_s=9.0, synced=False)), False, True, id="starting"
        ),
    ],
)
def test_health(said: tuple[Message, ...], healthy: bool, stale: bool) -> None:
    owners = {"link.state": "master_link", "task.state": "executor"}
    ok, body = health(inbox_with(*[(owners[m.topic], m) for m in said]), 10.0)
    assert ok is healthy
    assert ("task.state" in body["stale"]) is stale
    assert "vpn.state" in body["stale"], "said, and no reason to be unhealthy"
    assert "gpu.load" not in body["topics"]


def test_an_empty_page_says_null_and_names_who_is_silent() -> None:
    told = page(inbox_with(), Owner(), Samples(), None, 10.0, 1000.0)
    for name in ("node", "engine", "tasks", "processes", "host", "vpn", "history"):
        assert told[name] is None
    assert told["gpus"] == []
    assert {"text": "no word from executor (task.state)", "raised_unix_s": None} in told["alerts"]


def test_a_lost_card_is_told_with_its_reason() -> None:
    inbox = inbox_with(("monitor@gpu0", gpu_load(9.0)))
    said = {"text": "GPU-b: it fell off the bus", "raised_unix_s": 5.0}
    assert said in alerts(inbox, 10.0)
    told = page(inbox, Owner(), Samples(), None, 10.0, 1000.0)["gpus"]
    assert [(gpu["index"], gpu["temperature_c"]) for gpu in told] == [(0, 41.0), (1, None),
                                                                      (2, None)]  # fmt: skip


def test_one_silent_monitor_of_gpus_is_told_beside_one_that_speaks() -> None:
    inbox = inbox_with(("monitor@gpu0", gpu_load(5.0)), ("monitor@gpu1", gpu_load(9.0)))
    texts = [alert["text"] for alert in alerts(inbox, 10.0)]
    assert [text for text in texts if "monitor@gpu" in text] == [
        "no word from monitor@gpu0: its GPUs are given to no task"
    ]
    assert not any("(gpu.load)" in text for text in texts)


def test_a_tasks_alerts_stand_with_it() -> None:
    alert = Alert(rule="disk", subject="task t.1", value=91.5, threshold=90.0, raised_unix_s=5.0)
    task = msgspec.structs.replace(running_task(), alerts=(alert,))
    inbox = inbox_with(("executor", task_state(9.0, task)))
    told = page(inbox, Owner(), Samples(), None, 10.0, 1000.0)
    said = {"text": "disk task t.1: 91.5 (threshold 90)", "raised_unix_s": 5.0}
    assert told["tasks"][0]["alerts"] == [said]


def test_alerts_say_what_to_look_at() -> None:
    high = Alert(rule="image_disk", subject="s", value=96.0, threshold=95.0, raised_unix_s=5.0)
    full = TaskState(
        at_s=9.0, engine=Engine(detail="refused"), capacity=Capacity(disk_full=True), alerts=(high,)
    )
    inbox = inbox_with(
        ("master_link", LinkState(at_s=9.0, warnings=("the clock is wrong",))),
        ("executor", full),
        ("watchdog", process_state(9.0, alerts=("vpn",))),
        ("monitor@host", HostLoad(at_s=9.0)),
    )
    assert [alert["text"] for alert in alerts(inbox, 10.0)] == [
        "no word from vpn (vpn.state)",
        "the clock is wrong",
        "Docker is away: refused",
        "the disk is full: no new task is taken",
        "vpn restarts too often",
        "image_disk s: 96 (threshold 95)",
    ]


def test_a_task_that_the_owner_stopped_is_stopping() -> None:
    inbox = inbox_with(("executor", task_state(9.0, running_task("a"), running_task("b"))))
    told = page(inbox, Owner(stopped_tasks=("a.1",)), Samples(), None, 10.0, 0.0)
    assert [task["stopping"] for task in told["tasks"]] == [True, False]


def test_samples_make_rates_of_counters() -> None:
    samples = Samples()
    for at_s in (1.0, 2.0, 2.0, 4.0):
        samples.add(host_load(at_s, cpu_pct=10 * at_s))
    assert samples.series()["cpu_pct"] == [10.0, 20.0, 40.0]
    assert samples.series()["received_bytes_per_s"] == [250_000, 250_000]


def test_the_tasks_part_is_drawn_where_it_is_known() -> None:
    samples = Samples()
    samples.add(host_load(1.0))
    samples.add(HostLoad(at_s=2.0, cpu_pct=50.0))
    assert samples.series()["tasks_cpu_pct"] == [31.5, 0.0]
    assert samples.series()["tasks_memory_pct"] == [9.4, 0.0]


def test_alerts_that_are_over_are_told_the_last_first() -> None:
    alert = Alert(rule="cpu", subject="s", value=9.0, threshold=8.0, raised_unix_s=5.0)
    over = [
        msgspec.structs.replace(alert, rule=rule, cleared_unix_s=at)
        for rule, at in (("swap", 20.0), ("gpu_memory", 30.0), ("cpu", 10.0), ("image_disk", 15.0))
    ]
    inbox = inbox_with(
        ("monitor@host", HostLoad(at_s=9.0, cleared=(over[0], over[2]))),
        ("monitor@gpu0", GpuLoad(at_s=9.0, cleared=(over[1],))),
        ("executor", TaskState(at_s=9.0, cleared=(over[3],))),
    )
    told = page(inbox, Owner(), Samples(), None, 10.0, 0.0)["cleared"]
    names = [alert["text"].split()[0] for alert in told]
    assert names == ["gpu_memory", "swap", "image_disk", "cpu"]
    assert [alert["cleared_unix_s"] for alert in told] == [30.0, 20.0, 15.0, 10.0]


def test_samples_are_two_minutes() -> None:
    samples = Samples()
    for at_s in range(1, 300):
        samples.add(host_load(float(at_s)))
    assert {len(values) for values in samples.series().values()} == {120}


# ------------------------------------------------------------------ what a task wrote


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        pytest.param("plain\ttext\n", "plain\ttext\n", id="plain"),
        pytest.param("\x1b[1;31mred\x1b[0m", "red", id="colours"),
        pytest.param("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x07", "link", id="a link"),
        pytest.param("1 %\r2 %\r\n", "1 %\n2 %\n", id="a progress bar"),
        pytest.param("\x00\x07\x7f", "␀␇␡", id="controls"),
        pytest.param("\x9b31m", "�31m", id="C1"),
        pytest.param("a\u202eb\u2066c", "a�b�c", id="direction"),
        pytest.param("\x1b", "␛", id="a lone escape"),
        pytest.param("grün 🐝", "grün 🐝", id="other scripts"),
    ],
)
def test_harmless(written: str, shown: str) -> None:
    assert harmless(written) == shown


def test_a_character_may_be_cut_between_records() -> None:
    text = LogText()
    assert text.of(1, b"gr\xc3") == "gr"
    assert text.of(2, b"!") == "!", "the other stream is another text"
    assert text.of(1, b"\xbcn\xff") == "ün�"


def test_readers_of_a_tail_each_get_what_they_lack() -> None:
    tail = LogTail(10)
    for stream, text in ((1, "one"), (1, "two"), (2, "err"), (1, "")):
        tail.add(stream, text)
    assert tail.since(0) == [(1, "onetwo"), (2, "err")]
    assert tail.since(2) == [(2, "err")]
    assert tail.since(tail.position) == []
    tail.add(1, "a long one")
    assert tail.since(0) == [(1, "a long one")], "what is too old is gone"
