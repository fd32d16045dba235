"""What is told to the master of this machine."""

from procs.master_link import wire
from shared.messages import Engine, GpuLoad, GpuSample, HostLoad, Inventory


def test_the_inventory_names_each_card_of_each_set() -> None:
    machine = Inventory(cpu_count=4, memory_bytes=9, cpu_score=71.5)
    load = HostLoad(at_s=1.0, inventory=machine, disk_free_bytes=7)
    first = GpuSample(
        index=0, uuid="GPU-0", name="H", memory_total_bytes=24, driver_version="570",
    )  # fmt: skip
    second = GpuSample(index=1, uuid="GPU-1", name="L", memory_total_bytes=80)
    sets = (
        GpuLoad(at_s=1.0, gpu_set="gpu0", gpus=(first,)),
        GpuLoad(at_s=1.0, gpu_set="gpu1", gpus=(second,)),
    )
    found = wire.inventory(load, Engine(version="20.10.24", runtimes=("runsc", "runc")), sets)
    assert (found.cpu_count, found.memory_bytes, found.disk_bytes) == (4, 9, 7)
    assert found.cpu_score == 71.5
    assert list(found.container_runtimes) == ["runc", "runsc"]
    assert [(g.uuid, g.index, g.name, g.memory_bytes, g.gpu_set) for g in found.gpus] == [
        ("GPU-0", 0, "H", 24, "gpu0"), ("GPU-1", 1, "L", 80, "gpu1"),
    ]  # fmt: skip
    assert found.gpus[0].driver_version == "570"


def test_the_inventory_has_only_cards_that_a_task_may_have() -> None:
    """Masters count them."""
    split = GpuSample(index=0, uuid="GPU-0", name="H", is_split=True)
    instance = GpuSample(index=0, uuid="MIG-0", name="H MIG 1g.10gb", mig_of="GPU-0")
    lost = GpuSample(index=-1, uuid="GPU-1", name="", reachable=False, reason="not found")
    gpus = GpuLoad(at_s=1.0, gpu_set="gpu0", gpus=(split, instance, lost))
    found = wire.inventory(None, Engine(), (gpus,)).gpus
    assert [(gpu.uuid, gpu.index) for gpu in found] == [("GPU-1", 0)]
