"""The trial of `scripts/trial` in half a minute: six models on two cards, mixed traffic, each family of faults once."""

import pytest

from tests.trial.answers import RIGHT
from tests.trial.cast import BRIEF
from tests.trial.command import hold
from tests.trial.machine import trouble

pytestmark = pytest.mark.timeout(240)

MINUTES = 0.3


def test_six_models_on_two_cards_under_mixed_traffic_and_faults_break_no_promise() -> None:
    if why := trouble():
        pytest.skip(why)
    report = hold(MINUTES, seed=1)
    assert report.broken == {}, report.text()
    assert {kind: one.found for kind, one in report.faults.items()} == BRIEF.plan, report.text()
    assert report.requests[-1].outcomes[RIGHT] > 0, report.text()
