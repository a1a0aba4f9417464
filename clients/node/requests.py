"""The context in which a node checks requests: how many items there are, and which devices it hosts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from clients.node.cohort import Cohort
from clients.node.joining import joining
from fl_peel import wire
from fl_peel.errors import MessageError
from fl_peel.exchange.array_specs import ArraySpec, MessageContext, check
from fl_peel.pretraining.costs import COUNTED

ANYTHING = MessageContext(arrays=None)


def checked(cohort: Cohort, request: object) -> None:
    """Refuse a question that its devices cannot answer: nothing has been computed or written by then. Ranked blocks are
    looked at where they are decoded, :meth:`fl_peel.blocks.ranked_blocks.RankedBlocks.unpack`.

    Raises:
        MessageError: of another shape, or with numbers out of range.
    """
    sizes = check(request, _known(cohort, request))
    if isinstance(request, wire.JoinRequest):
        _check_join(cohort, request)
    if isinstance(request, wire.SumsRequest):
        whole = request.step == "pass" and cohort.scenario.privacy.noised
        columns = request.table.shape[1] + (0 if whole else request.first)
        if request.step in ("pass", "vectors") and columns > request.columns:
            raise MessageError(f"SumsRequest: {columns} columns of {request.columns}")
    if isinstance(request, wire.ChoiceRequest):
        _whole(request.recent, sizes["I"], "recent")
        _whole(request.fresh_exponents, sizes["filters"], "fresh_exponents")
        if not 0 < request.place <= len(request.drawn):
            raise MessageError(f"ChoiceRequest.place: {request.place} of {len(request.drawn)} drawn items")
    if isinstance(request, wire.EvaluateRequest) and request.on_validation > len(request.budgets):
        raise MessageError(f"EvaluateRequest: {request.on_validation} of {len(request.budgets)} budgets on validation")
    if isinstance(request, wire.CompareRequest) and set(request.kept) != set(request.current):
        raise MessageError("CompareRequest: the user groups with a stored table are not the current ones")


def _known(cohort: Cohort, request: object) -> MessageContext:
    scenario, num_items = cohort.scenario, cohort.splits.num_items
    most_groups = max(scenario.user_groups.count, cohort.population)
    sizes = {"most groups": most_groups, "d": scenario.pretraining.embedding_dim}
    known = MessageContext(sizes, {"devices": cohort.devices})
    if isinstance(request, wire.SumsRequest):
        return _of_sums(cohort, request, known)
    if isinstance(request, wire.ChoiceRequest | wire.JoinRequest):
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


def _of_sums(cohort: Cohort, request: wire.SumsRequest, known: MessageContext) -> MessageContext:
    """Return the context of a right request for a step of stage 1."""
    num_items = cohort.splits.num_items
    nothing = ArraySpec((0, 0))
    # in a timeline, tables have rows of the items that there were, whatever there is by now
    rows = num_items if cohort.scenario.data.timeline is None else "rows"
    has_table = request.step in ("pass", "vectors") and not request.counts_contributors
    arrays = {
        "table": ArraySpec((rows, "part")) if has_table else nothing,
        "centroids": ArraySpec(("G", "centre")) if request.step in ("groups", "moments") else nothing,
        "place": ArraySpec((num_items if request.buckets else 0,), least=-request.buckets, most=request.buckets),
    }
    if request.step == "pass" and cohort.scenario.privacy.noised:
        arrays["weights"] = ArraySpec((num_items,))
    if request.step in ("groups", "moments") and not len(request.centroids):
        raise MessageError("SumsRequest.centroids: there is no user group")
    if request.counts_contributors and request.step not in COUNTED:
        raise MessageError(f"SumsRequest.counts_contributors: nobody contributes to a row in step {request.step}")
    most = len(request.centroids) if request.step == "moments" else request.columns
    arrays["groups"] = ArraySpec(("M",), least=0, most=most - 1, ascending=True)
    return MessageContext(known.sizes, known.numbers, arrays)


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
    if len(request.maps):
        if len(request.maps) != len(request.centroids):
            raise MessageError(f"JoinRequest.maps: {len(request.maps)} of {len(request.centroids)} user groups")
        if len(some) < len(cohort.devices):
            raise MessageError("JoinRequest.maps: all devices of a node join at once")
        return
    if request.centroids.shape[1] != cohort.scenario.pretraining.embedding_dim:
        raise MessageError(f"JoinRequest.centroids: of {request.centroids.shape[1]} columns, as no embedding is")
    if len(request.devices) < len(some):
        _whole(request.item_table, cohort.splits.num_items, "item_table")


def _whole(array: np.ndarray, count: int, name: str) -> None:
    if len(array) not in ((0, count) if name != "item_table" else (count,)):
        raise MessageError(f"{name}: {len(array)} rows, not {count}")
