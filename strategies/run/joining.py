"""Devices take part."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.device_storage import device_splits
from fl_peel.scenario.scenario import Scenario
from strategies.nodes.members import Members
from strategies.nodes.nodes import NodeRequest
from strategies.run.run import Run
from strategies.run.stage1_outcome import Stage1Outcome

AT_ONCE = 1 << 16
"""Devices of a node that join at a time: 16 MB of embeddings of 64 numbers."""

logger = logging.getLogger("fl_peel")


def join(run: Run, prepared: Stage1Outcome) -> Members:
    """Devices take part: those whose data was collected get their embedding, the others find it locally.

    Raises:
        EngineError, MessageError: a node failed, or what its devices answer makes no sense.
    """
    nodes = run.nodes
    num_devices = device_splits(run.scenario, run.paths.data_dir, run.paths.run_dir).num_users
    setting = run.setting(num_devices)

    hosted = [nodes.hosted(partition, num_devices) for partition in range(len(nodes.ids))]
    most = max(map(len, hosted), default=0)
    at_once = AT_ONCE if prepared.sends_own_embeddings else max(most, 1)
    replies: list[wire.JoinReply] = []
    for first in range(0, max(most, 1), at_once):

        def request(partition: int, first: int = first) -> NodeRequest:
            some = hosted[partition][first : first + at_once]
            whole = len(some) == len(hosted[partition])
            payload = prepared.join_request(setting, some)
            if not whole:  # a node that has all of its devices in earlier parts joins nobody
                payload = replace(payload, first=min(first, len(hosted[partition])), count=len(some))
            return NodeRequest(
                payload,
                MessageContext(
                    {"N": len(some), "G": len(payload.centroids)}, {"devices": some}, agreed=("class_names",)
                ),
            )

        replies += nodes.ask(wire.JOIN, wire.JoinReply, request)
    devices = np.concatenate([reply.devices for reply in replies])
    order = np.argsort(devices, kind="stable")
    order = order[~np.isin(nodes.partitions_of(devices[order]), [*nodes.excluded])]
    return Members(
        devices[order],
        np.concatenate([reply.groups for reply in replies])[order],
        np.max([reply.ceilings for reply in replies], axis=0),
        tuple(replies[0].class_names.split("\n")),
    )


def warn_of_small_groups(scenario: Scenario, members: Members) -> None:
    """Tell of rounds that every user group would sit out: how large groups are is known once devices have joined."""
    secure, largest = scenario.secure_aggregation, int(np.bincount(members.groups).max(initial=0))
    if secure.enabled and scenario.refinement.rounds and largest < secure.min_devices:
        logger.warning(
            "secure_aggregation.min_devices is %d and the largest user group has %d devices: all rounds are void and "
            "nothing is refined; lower it, or user_groups.count",
            secure.min_devices,
            largest,
        )
