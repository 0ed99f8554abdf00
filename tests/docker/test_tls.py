"""TLS out of compose.yaml: by the gateway itself, and by the proxy of the profile `tls`."""

import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.certificates import Authority, Pair
from tests.support.compose import ROOT, ComposeProject, ComposeStack, compose_stack, docker
from tests.support.hostler import bearer
from tests.support.processes import free_port
from tests.support.waiting import wait_until

SECONDS = 60.0
GROUP = 10001
PROXY_IMAGE = "hostler/test-proxy:latest"
DOCKER_NETWORKS = "172.16.0.0/12,192.168.0.0/16,10.0.0.0/8"


def sign(authority: Authority, folder: Path) -> Pair:
    """A pair as an operator puts it there: readable by the gateway's group alone."""
    folder.chmod(0o755)
    pair = authority.sign(folder)
    for file in pair:
        if os.geteuid() == 0:
            shutil.chown(file, group=GROUP)
        else:
            file.chmod(0o644)
    return pair


def shown(port: int, trust: ssl.SSLContext) -> bytes:
    """The certificate that a new connection is shown."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return connection.getpeercert(binary_form=True) or b""


def test_the_gateways_container_speaks_tls_is_healthy_and_takes_a_renewed_certificate(tmp_path: Path) -> None:
    authority = Authority()
    pair = sign(authority, tmp_path)
    with compose_stack(
        authority.trust,
        HOSTLER_TLS_FOLDER=str(tmp_path),
        HOSTLER_TLS_CERTIFICATE=f"/tls/{pair.certificate.name}",
        HOSTLER_TLS_KEY=f"/tls/{pair.key.name}",
    ) as stack:
        gateway = stack.project.container("gateway")
        docker("exec", gateway["Id"], *gateway["Config"]["Healthcheck"]["Test"][1:])
        before = shown(stack.project.port, authority.trust)
        sign(authority, tmp_path)
        wait_until(
            lambda: shown(stack.project.port, authority.trust) != before, "the new one", seconds=SECONDS, interval=0.2
        )
        assert [mount["RW"] for mount in gateway["Mounts"] if mount["Destination"] == "/tls"] == [False]


class Proxied:
    """A Hostler behind its proxy, and clients of the proxy."""

    def __init__(self, stack: ComposeStack, port: int) -> None:
        self.stack = stack
        self.address = f"https://localhost:{port}"
        wait_until(lambda: self._root() is not None, "the proxy's authority", seconds=SECONDS, interval=0.2)
        self.trust = ssl.create_default_context(cadata=self._root())
        wait_until(self.answers, "the proxy answers", seconds=SECONDS, interval=0.2)

    def _root(self) -> str | None:
        found = self.stack.project.container("proxy")["Id"]
        command = ["docker", "exec", found, "cat", "/data/caddy/pki/authorities/local/root.crt"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        return done.stdout if done.returncode == 0 and "END CERTIFICATE" in done.stdout else None

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.address}/livez", verify=self.trust, timeout=SECONDS).status_code == 200
        except httpx.TransportError:
            return False

    def in_flight(self) -> int:
        return sum(worker["in_flight"] for worker in self.stack.workers())


@pytest.fixture(scope="module")
def proxied() -> Iterator[Proxied]:
    docker("build", "--quiet", "--tag", PROXY_IMAGE, str(ROOT / "tests" / "testbed" / "proxy"), seconds=300)
    port = free_port()
    with compose_stack(
        COMPOSE_PROFILES="tls",
        HOSTLER_HTTPS_PORT=f"127.0.0.1:{port}",
        HOSTLER_HTTP_PORT=f"127.0.0.1:{free_port()}",
        HOSTLER_PROXY_IMAGE=PROXY_IMAGE,
        HOSTLER_TRUSTED_PROXIES=DOCKER_NETWORKS,
    ) as stack:
        stack.endpoint("talker", Simulation(answer_tokens=20, faults=Faults(stall_stream_after=3)))
        yield Proxied(stack, port)


def test_a_stream_passes_the_proxy_as_it_is_made_and_a_client_that_leaves_is_noticed_behind_it(
    proxied: Proxied,
) -> None:
    with (
        openai.DefaultHttpxClient(verify=proxied.trust, timeout=SECONDS) as http,
        openai.OpenAI(
            base_url=f"{proxied.address}/v1", api_key=proxied.stack.key, http_client=http, max_retries=0
        ) as client,
    ):
        with client.chat.completions.create(
            model="talker", messages=[{"role": "user", "content": "hello"}], stream=True
        ) as stream:
            said = [next(chunk for chunk in stream if chunk.choices[0].delta.content) for _ in range(3)]
            assert len(said) == 3, "they are here, and the engine has not said the rest"
            assert proxied.in_flight() == 1
        wait_until(lambda: proxied.in_flight() == 0, "the request has ended", seconds=SECONDS, interval=0.05)


def test_the_clients_address_is_the_one_that_the_proxy_saw_whatever_the_client_says(proxied: Proxied) -> None:
    headers = bearer(proxied.stack.key) | {"x-forwarded-for": "203.0.113.9"}
    answer = httpx.post(
        f"{proxied.address}/api/keys", json={"name": "k"}, headers=headers, verify=proxied.trust, timeout=SECONDS
    )
    assert answer.status_code == 201, answer.text
    records = proxied.stack.client.get("/api/audit").json()["records"]
    [address] = {record["address"] for record in records if record["action"] == "key.create"}
    networks = proxied.stack.project.container("proxy")["NetworkSettings"]["Networks"]
    [network] = networks.values()
    assert address == network["Gateway"], "this machine, as the proxy sees it"


def test_beside_the_proxy_the_gateway_is_published_on_loopback_alone(tmp_path: Path) -> None:
    services = ComposeProject(tmp_path, COMPOSE_PROFILES="tls").config()
    assert [port["host_ip"] for port in services["gateway"]["ports"]] == ["127.0.0.1"]
    proxy = services["proxy"]
    assert [(port["published"], port["target"]) for port in proxy["ports"]] == [("443", 443), ("80", 80)]
    assert proxy["read_only"] is True
    assert (proxy["cap_drop"], proxy["cap_add"]) == (["ALL"], ["NET_BIND_SERVICE"])
    assert proxy["security_opt"] == ["no-new-privileges:true"]
    assert not [volume for volume in proxy["volumes"] if "docker.sock" in volume["source"]]
