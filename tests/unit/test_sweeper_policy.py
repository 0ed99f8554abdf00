"""The container that deletes what an engine has locked."""

from worker_manager.policy import host_config
from worker_manager.sweeper_policy import sweeper_body


def test_a_sweeper_sees_one_folder_and_has_no_power_and_no_network() -> None:
    made = sweeper_body("/srv/engines/w1", "hostler/manager:latest", "10001:10001")
    host = made["HostConfig"]
    mounts = [{"Type": "bind", "Source": "/srv/engines/w1", "Target": "/sweep", "ReadOnly": False}]
    assert host["Mounts"] == mounts
    assert (made["User"], made["NetworkDisabled"], host["NetworkMode"]) == ("10001:10001", True, "none")
    others = host_config(mounts)
    changed = {name for name in host if host[name] != others.get(name)}
    assert changed == {"AutoRemove", "Memory", "MemorySwap", "PidsLimit", "NetworkMode"}
    assert made["Cmd"] == ["-m", "worker_manager.jobs.sweep", "/sweep"]
