"""The context in which a node checks requests: how many items there are, and which devices it hosts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from clients.node.cohort import Cohort
from clients.node.joining import joining
from fl_peel import wire
from fl_peel.array_specs import MessageContext, check
from fl_peel.errors import MessageError

ANYTHING = MessageContext(arrays=None)


def checked(cohort: Cohort, request: object) -> None:
    """Refuse a question that its devices cannot answer: nothing has been computed or written by then. Ranked blocks are
    looked at where they are decoded, :meth:`fl_peel.blocks.ranked_blocks.RankedBlocks.unpack`.

    Raises:
        MessageError: of another shape, or with numbers out of range.
    """
    check(request, _known(cohort, request))
    if isinstance(request, wire.JoinRequest):
        _check_join(cohort, request)
    if isinstance(request, wire.EvaluateRequest) and request.on_validation > len(request.budgets):
        raise MessageError(f"EvaluateRequest: {request.on_validation} of {len(request.budgets)} budgets on validation")
    if isinstance(request, wire.CompareRequest) and set(request.kept) != set(request.current):
        raise MessageError("CompareRequest: the user groups with a stored table are not the current ones")


def _known(cohort: Cohort, request: object) -> MessageContext:
    scenario, num_items = cohort.scenario, cohort.splits.num_items
    most_groups = max(scenario.user_groups.count, cohort.population)
    sizes = {"most groups": most_groups, "d": scenario.pretraining.embedding_dim}
    known = MessageContext(sizes, {"devices": cohort.devices})
    if isinstance(request, wire.StepRequest):
        return _of_step(cohort, request, known)
    if isinstance(request, wire.JoinRequest):
        return known.with_sizes(I=num_items)
    if isinstance(request, wire.RefreshRequest):
        groups = _some(request.groups, min(len(request.former), max(len(request.changed), 1)))
        if len(request.changed) == 1:  # one table for all
            groups = _some(request.groups, len(request.former))
        return known.with_groups(groups).with_sizes(B=cohort.layout().num_blocks)
    if isinstance(request, wire.CompareRequest):
        return known.with_groups(_some((*request.kept, *request.current), min(request.num_groups, most_groups)))
    if isinstance(request, wire.EvaluateRequest | wire.RoundRequest | wire.MovingRequest):
        return known.with_groups({wire.EVERYBODY: ANYTHING} | _some(request.groups, most_groups))
    return known


def _some(groups: Iterable[int], count: int) -> dict[int, MessageContext]:
    """Return a context for each of ``groups`` that is the number of a user group, of which there are ``count``."""
    return {group: ANYTHING for group in groups if 0 <= group < count}


def _of_step(cohort: Cohort, request: wire.StepRequest, known: MessageContext) -> MessageContext:
    """Return the context of a right request for a part of a step, from what the step declares."""
    step, part = request.step, (request.first, request.stop)
    if not part[0] < part[1] <= step.num_pieces:
        raise MessageError(f"StepRequest: pieces {part[0]} to {part[1]} of {step.num_pieces}")
    return MessageContext(known.sizes, known.numbers, step.sent_arrays(cohort.terms, part))


def _check_join(cohort: Cohort, request: wire.JoinRequest) -> None:
    if not np.bincount(request.item_group).all():
        raise MessageError("JoinRequest.item_group: an item group is empty")
    if not len(request.centroids):
        raise MessageError("JoinRequest.centroids: there is no user group")
    some = joining(cohort, request)
    if request.first + max(request.count, 0) > len(cohort.devices):
        raise MessageError(f"JoinRequest.count: devices that do not exist, of {len(cohort.devices)}")
    if not np.isin(request.devices, cohort.devices[some]).all():
        raise MessageError("JoinRequest.devices: some of them join in another part")
    if len(request.maps) not in (0, len(request.centroids)):
        raise MessageError(f"JoinRequest.maps: {len(request.maps)} of {len(request.centroids)} user groups")
    if len(request.maps) and not len(request.item_table):
        if len(some) < len(cohort.devices):
            raise MessageError("JoinRequest.maps: all devices of a node join at once")
        return
    if request.centroids.shape[1] != cohort.scenario.pretraining.embedding_dim:
        raise MessageError(f"JoinRequest.centroids: of {request.centroids.shape[1]} columns, as no embedding is")
    if len(request.maps) and request.maps.shape[1] != request.centroids.shape[1]:
        raise MessageError(f"JoinRequest.maps: of {request.maps.shape[1]} rows, as no embedding is")
    if len(request.devices) < len(some):
        rows, wanted = len(request.item_table), cohort.splits.num_items
        if rows != wanted:
            raise MessageError(f"item_table: {rows} rows, not {wanted}")
