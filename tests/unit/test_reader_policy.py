"""A reader's container sees one model's folder, read-only, and nobody."""

import pytest

from worker_manager import policy, reader_policy

CONTEXT = reader_policy.ReaderContext(
    instance="hostler",
    image="hostler/manager:latest",
    models_on_host="/srv/models",
    uid=10001,
    gid=10001,
    memory_bytes=64 * policy.GIB,
)


def test_a_reader_has_no_network_and_only_its_models_folder() -> None:
    made = reader_policy.reader_body("read-1", "local/tiny", CONTEXT, resolved="local/real", reserve_mib=4096)
    host = made["HostConfig"]
    assert (host["NetworkMode"], made["NetworkDisabled"]) == ("none", True)
    (mount,) = host["Mounts"]
    assert (mount["Source"], mount["Target"], mount["ReadOnly"]) == (
        "/srv/models/local/real",
        "/models/local/tiny",
        True,
    )
    assert host["CapDrop"] == ["ALL"]
    assert host["ReadonlyRootfs"] is True
    assert host["Privileged"] is False
    assert host["Memory"] == host["MemorySwap"] == 64 * policy.GIB, "what it reads is charged to it"
    assert made["User"] == "10001:10001"
    assert made["Cmd"][-2:] == ["--folder=/models/local/tiny", "--reserve-mib=4096"]
    assert made["Labels"][policy.LABEL_KIND] == "reader"


@pytest.mark.parametrize("resolved", [None, "../outside", "/etc"])
def test_a_folder_that_is_missing_or_leads_out_is_not_read(resolved: str | None) -> None:
    with pytest.raises(policy.PolicyRefusal):
        reader_policy.reader_body("read-1", "local/tiny", CONTEXT, resolved=resolved, reserve_mib=0)
