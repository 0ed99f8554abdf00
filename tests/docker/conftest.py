"""What the Docker tests share."""

from collections.abc import Generator

import pytest

from tests.support.compose import ComposeStack

LOG_CHARACTERS = 10_000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the services logged beside a failure."""
    report = yield
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.failed and isinstance(stack, ComposeStack):
        for service in ("gateway", "worker_manager"):
            report.sections.append((f"logs of {service}", stack.project.logs(service)[-LOG_CHARACTERS:]))
    return report
