"""Studies without an engine."""

import pytest

from simulations.studies import audit, compare, study
from tests.helpers.without_ray import simulated


@pytest.fixture
def started(monkeypatch):
    """Studies run on nodes in this process; the scenarios that these were started for."""
    scenarios = []

    def noted(scenario, *args, **how):
        scenarios.append(scenario)
        return simulated(scenario, *args, **how)

    for module in (study, audit, compare):
        monkeypatch.setattr(module, "simulated", noted)
    return scenarios
