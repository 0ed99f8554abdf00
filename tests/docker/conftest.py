"""What the Docker tests share."""

from collections.abc import Generator

import pytest

from tests.support.compose import ComposeStack

LOG_CHARACTERS = 20_000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the services logged beside a failure."""
    report = yield
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.failed and isinstance(stack, ComposeStack):
        report.sections.append(("compose logs", stack.project.logs()[-LOG_CHARACTERS:]))
    return report
