"""Devices take part."""

from __future__ import annotations

import numpy as np

from fl_peel import wire
from fl_peel.scenario.scenario import Scenario
from strategies.nodes.members import Members
from strategies.nodes.nodes import Nodes
from strategies.run.place import Place
from strategies.run.prepare import Prepared


def join(scenario: Scenario, place: Place, prepared: Prepared, nodes: Nodes) -> Members:
    """Devices take part: those whose data was collected get their embedding, the others find it locally."""
    num_nodes = len(nodes.ids)
    known = np.flatnonzero(prepared.has_data)
    everybody_known = len(known) == len(prepared.has_data)
    items = prepared.pretrained.items
    table = items[:0] if everybody_known else items

    def request(partition: int) -> wire.JoinRequest:
        mine = known[known % num_nodes == partition].astype(np.int64)
        return wire.JoinRequest(
            wire.Setting(scenario.to_json(), place.data_dir, place.run_dir),
            prepared.layout.item_group,
            prepared.groups.centroids,
            table,
            mine,
            prepared.pretrained.users[mine],
            prepared.groups.assignment[mine],
        )

    replies = nodes.ask(wire.JOIN, wire.JoinReply, request)
    devices = np.concatenate([reply.devices for reply in replies])
    order = np.argsort(devices, kind="stable")
    return Members(
        devices[order],
        np.concatenate([reply.groups for reply in replies])[order],
        np.max([reply.ceilings for reply in replies], axis=0),
        tuple(replies[0].class_names.split("\n")),
    )
