"""A report's interval: averages, peaks, counters, alerts; and two intervals made one."""

import msgspec
import pytest

from procs.master_link.reports import LONGEST_GAP_S, Meter, first_from, merged
from shared.messages import (
    Alert,
    GpuLoad,
    GpuSample,
    HeldTask,
    HostLoad,
    TaskPhase,
    TaskState,
    TaskUse,
)
from shared.pb import hivemind_pb2 as pb


def load(at_s: float, pct: float = 50.0, received: int = 0, free: int = 100) -> HostLoad:
    return HostLoad(
        at_s=at_s,
        cpu_pct=pct,
        memory_pct=pct,
        network_received_bytes=received,
        disk_free_bytes=free,
    )


def close(meter: Meter, now_unix_s: float, now_s: float) -> pb.NodeStatusRequest:
    return meter.close(now_unix_s, now_s, None, None)


def from_s(report: pb.NodeStatusRequest) -> float:
    return float(getattr(report, "from").ToNanoseconds() / 1e9)


def to_s(report: pb.NodeStatusRequest) -> float:
    return float(report.to.ToNanoseconds() / 1e9)


def test_averages_peaks_and_reward_of_an_interval() -> None:
    meter = Meter(100.0, 0.0)
    gpus = (
        GpuLoad(at_s=1.0, gpus=(GpuSample(index=0, uuid="u", name="n", util_pct=80.0),)),
    )
    meter.add(load(1.0, 40.0, free=70), gpus)
    meter.add(load(2.0, 80.0, free=30), ())
    meter.add(load(2.0, 99.0), ())  # the same sample again
    report = close(meter, 130.0, 30.0)
    assert (from_s(report), to_s(report)) == (100.0, 130.0)
    assert report.average.cpu_percent == pytest.approx(60.0)
    assert report.peak.cpu_percent == pytest.approx(80.0)
    assert (report.average.disk_free_bytes, report.peak.disk_free_bytes) == (50, 30)
    assert report.average.gpus[0].utilization_percent == pytest.approx(80.0)
    assert report.reward == 12
    assert close(meter, 160.0, 60.0).average.cpu_percent == 0.0


def test_what_is_no_number_is_no_sample() -> None:
    meter = Meter(100.0, 0.0)
    meter.add(load(1.0, float("nan")), ())
    meter.add(load(2.0, 60.0), ())
    report = close(meter, 130.0, 30.0)
    assert (report.average.cpu_percent, report.peak.cpu_percent) == (60.0, 60.0)
    assert report.reward == 12


def test_network_counters_go_on_over_intervals_and_over_a_reset() -> None:
    meter = Meter(0.0, 0.0)
    meter.add(load(1.0, received=1000), ())
    meter.add(load(2.0, received=1500), ())
    assert close(meter, 30.0, 30.0).average.network_received_bytes == 500
    meter.add(load(31.0, received=1600), ())
    meter.add(load(32.0, received=7), ())
    assert close(meter, 60.0, 60.0).average.network_received_bytes == 107


@pytest.mark.parametrize("jump_s", [0.0, -5000.0, 40.0])
def test_no_gap_and_no_overlap_whatever_the_wall_clock_does(jump_s: float) -> None:
    meter = Meter(1000.0, 0.0)
    first = close(meter, 1030.0, 30.0)
    second = close(meter, 1060.0 + jump_s, 60.0)
    third = close(meter, 1090.0 + jump_s, 90.0)
    assert from_s(second) == to_s(first)
    assert from_s(third) == to_s(second)
    assert to_s(third) > to_s(second) > to_s(first)


def test_a_new_process_goes_on_where_the_last_ended_unless_that_is_long_ago() -> None:
    assert first_from(1000.0, 1005.0) == 1000.0
    assert first_from(1000.0, 1000.0 + LONGEST_GAP_S) == 1000.0 + LONGEST_GAP_S
    assert first_from(0.0, 5.0) == 5.0


def alert(rule: str, raised_unix_s: float = 3.0) -> Alert:
    return Alert(
        rule=rule, subject="s", value=99.0, threshold=90.0, raised_unix_s=raised_unix_s
    )


def told(report: pb.NodeStatusRequest) -> list[tuple[str, int | None]]:
    """(rule, when it was cleared) of each alert in it."""
    return [
        (a.rule, a.cleared_at.ToSeconds() if a.HasField("cleared_at") else None)
        for a in report.alerts
    ]


def test_alerts_are_of_the_machine_its_gpus_its_engine_and_its_tasks() -> None:
    meter = Meter(0.0, 0.0)
    cpu, heat, memory = alert("cpu"), alert("gpu_temperature"), alert("memory")
    task = HeldTask(
        task_id="t", attempt=1, phase=TaskPhase.RUNNING, directory="t.1", alerts=(memory,)
    )
    gpu = GpuLoad(at_s=1.0, gpu_set="gpu0", alerts=(heat,))
    host, full = HostLoad(at_s=1.0, alerts=(cpu,)), alert("image_disk")
    state = TaskState(at_s=1.0, tasks=(task,), alerts=(full,))
    meter.hear_alerts(host, (gpu,), state, 4.0)
    all_of_them = [
        ("cpu", None), ("gpu_temperature", None), ("image_disk", None), ("memory", None),
    ]  # fmt: skip
    assert told(close(meter, 30.0, 30.0)) == all_of_them
    meter.hear_alerts(None, (), None, 31.0)
    assert told(close(meter, 60.0, 60.0)) == all_of_them, "silence ends nothing"
    over = msgspec.structs.replace(cpu, cleared_unix_s=70.0)
    meter.hear_alerts(
        HostLoad(at_s=2.0, cleared=(over,)), (msgspec.structs.replace(gpu, at_s=2.0),),
        TaskState(at_s=2.0, cleared=(msgspec.structs.replace(full, cleared_unix_s=72.0),)), 75.0,
    )  # fmt: skip
    assert sorted(told(close(meter, 90.0, 90.0)), key=str) == [
        ("cpu", 70), ("gpu_temperature", None), ("image_disk", 72), ("memory", 75),
    ]  # fmt: skip
    meter.hear_alerts(HostLoad(at_s=3.0, cleared=(over,)), (), None, 91.0)
    assert ("cpu", 70) not in told(close(meter, 120.0, 120.0)), "told once"


def test_the_same_word_twice_says_nothing_new() -> None:
    meter, state = Meter(0.0, 0.0), TaskState(at_s=5.0)
    host = HostLoad(at_s=5.0, alerts=(alert("cpu"),))
    for now_unix_s in (1.0, 2.0):
        meter.hear_alerts(host, (), state, now_unix_s)
    meter.hear_alerts(HostLoad(at_s=6.0), (), state, 3.0)
    assert told(close(meter, 30.0, 30.0)) == [("cpu", 3)]


def test_two_intervals_tell_each_alert_once() -> None:
    meter = Meter(0.0, 0.0)
    meter.hear_alerts(HostLoad(at_s=1.0, alerts=(alert("cpu"), alert("swap"))), (), None, 3.0)
    first = close(meter, 10.0, 10.0)
    again = alert("cpu", raised_unix_s=15.0)
    meter.hear_alerts(HostLoad(at_s=2.0), (), None, 11.0)
    meter.hear_alerts(HostLoad(at_s=3.0, alerts=(again,)), (), None, 15.0)
    second = close(meter, 20.0, 20.0)
    meter.hear_alerts(HostLoad(at_s=4.0), (), None, 21.0)
    third = close(meter, 30.0, 30.0)
    assert sorted(told(merged(first, second)), key=str) == [
        ("cpu", 11), ("cpu", None), ("swap", 11),
    ]  # fmt: skip
    assert sorted(told(merged(merged(first, second), third)), key=str) == [
        ("cpu", 11), ("cpu", 21), ("swap", 11),
    ]  # fmt: skip


def test_two_intervals_are_one_with_weighted_averages_and_added_rewards() -> None:
    meter = Meter(0.0, 0.0)
    meter.add(load(1.0, 90.0, received=0), ())
    meter.add(load(2.0, 90.0, received=10), ())
    first = close(meter, 10.0, 10.0)
    meter.add(load(11.0, 30.0, received=15), ())
    second = close(meter, 40.0, 40.0)
    both = merged(first, second)
    assert (from_s(both), to_s(both)) == (0.0, 40.0)
    assert both.average.cpu_percent == pytest.approx(45.0)
    assert both.peak.cpu_percent == pytest.approx(90.0)
    assert both.average.network_received_bytes == 15
    assert both.reward == first.reward + second.reward == 25


def test_a_task_is_reported_with_what_its_own_cards_did() -> None:
    meter = Meter(100.0, 0.0)
    cards = tuple(GpuSample(index=n, uuid=f"u{n}", name="n", util_pct=n * 10.0) for n in range(3))
    meter.add(load(1.0), (GpuLoad(at_s=1.0, gpus=cards),))
    use = TaskUse(cpu_pct=50.0)
    held = [
        HeldTask(
            task_id=name, attempt=1, phase=TaskPhase.RUNNING, directory=f"{name}.1", use=use,
            gpus=gpus,
        )
        for name, gpus in (("plain", ()), ("two", ("u1", "u2", "gone")))
    ]  # fmt: skip
    report = meter.close(130.0, 30.0, None, TaskState(at_s=1.0, tasks=tuple(held)))
    found = [[(g.uuid, g.utilization_percent) for g in task.gpus] for task in report.tasks]
    assert found == [[], [("u1", 10.0), ("u2", 20.0)]]


def test_what_a_card_does_not_report_is_unknown_not_zero() -> None:
    meter = Meter(100.0, 0.0)
    silent = GpuSample(index=0, uuid="silent", name="n", memory_used_bytes=7)
    busy = GpuSample(index=1, uuid="busy", name="n", util_pct=100.0, power_w=9.0)
    meter.add(load(1.0), (GpuLoad(at_s=1.0, gpus=(silent, busy)),))
    report = close(meter, 130.0, 30.0)
    unknown = {gpu.uuid: list(gpu.unknown) for gpu in report.average.gpus}
    assert unknown == {
        "silent": ["utilization_percent", "temperature_celsius", "power_watts"],
        "busy": ["memory_used_bytes", "temperature_celsius"],
    }
    assert [list(gpu.unknown) for gpu in report.peak.gpus] == list(unknown.values())
    assert report.reward == 11, "10 of the host, and 1 of the card whose use is known"


@pytest.mark.parametrize(
    ("older", "newer", "power_w", "unknown"),
    [
        pytest.param(30.0, 60.0, 45.0, False, id="known in both"),
        pytest.param(None, 60.0, 60.0, False, id="only in the newer"),
        pytest.param(30.0, None, 30.0, False, id="only in the older"),
        pytest.param(None, None, 0.0, True, id="in none"),
    ],
)
def test_intervals_that_are_merged_keep_what_is_known(
    older: float | None, newer: float | None, power_w: float, unknown: bool
) -> None:
    meter = Meter(0.0, 0.0)
    reports = []
    for at_s, value in ((20.0, older), (40.0, newer)):
        sample = GpuSample(index=0, uuid="u", name="n", power_w=value)
        meter.add(load(at_s), (GpuLoad(at_s=at_s, gpus=(sample,)),))
        reports.append(close(meter, at_s, at_s))
    (gpu,) = merged(*reports).average.gpus
    assert (gpu.power_watts, "power_watts" in gpu.unknown) == (power_w, unknown)
