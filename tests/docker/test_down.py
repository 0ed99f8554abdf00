"""`scripts/down` leaves nothing of an instance running."""

import os
import subprocess
import sys

from tests.support.compose import ROOT, compose_stack, docker

DOWN_SECONDS = 100


def test_down_stops_services_and_engines_of_its_instance_and_keeps_the_data() -> None:
    with compose_stack(HOSTLER_STOP_SECONDS="5") as stack:
        found = stack.project
        stack.endpoint("tiny")
        assert stack.ask("tiny", max_tokens=2).status_code == 200
        assert len(found.engines()) == 1
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HOSTLER_")}
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "down")],
            env=kept | found.variables | {"HOSTLER_ENV_FILE": os.devnull, "HOSTLER_RUN": str(stack.models / "none")},
            capture_output=True,
            text=True,
            timeout=DOWN_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        label = f"label=com.docker.compose.project={found.instance}"
        assert docker("ps", "--all", "--quiet", "--filter", label) == ""
        assert found.workers() == []
        volumes = docker("volume", "ls", "--quiet", "--filter", label).split()
        assert sorted(volumes) == sorted(
            f"{found.instance}_{name}" for name in ("cache", "control", "data", "engines", "tls")
        )
        found.compose("up", "--detach", "--no-build")
        stack.wait_ready()
        assert [endpoint["name"] for endpoint in stack.client.get("/api/endpoints").json()] == ["tiny"]
        assert stack.ask("tiny", max_tokens=2).status_code == 200
