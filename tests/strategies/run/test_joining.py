"""Devices take part: what is known once they have."""

import logging

import numpy as np
import pytest

from simulations.scenario_files import load_scenario
from strategies.nodes.members import Members
from strategies.run.joining import warn_of_small_groups


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["secure_aggregation.enabled=true"], 1),
        (["secure_aggregation={enabled: true, min_devices: 4}"], 0),
        (["secure_aggregation.enabled=true", "refinement.rounds=0"], 0),
        ([], 0),
    ],
)
def test_rounds_that_every_group_would_sit_out_are_told_before_they_begin(tiny, caplog, changes, said):
    groups = np.array([0, 1, 1, 1, 1, 2], np.int32)
    members = Members(np.arange(6), groups, np.zeros(3, np.int64), ("phone",))
    with caplog.at_level(logging.WARNING, "fl_peel"):
        warn_of_small_groups(load_scenario(tiny, changes), members)
    assert len(caplog.messages) == said
    assert all("min_devices is 8 and the largest user group has 4 devices" in message for message in caplog.messages)
