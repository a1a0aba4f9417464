"""A node's work, called without an engine: the same sums on 1, 2 and 5 nodes; only the named payload leaves."""

import dataclasses
import typing
from functools import reduce
from operator import add

import numpy as np
import pytest
from flwr.common.serde import recorddict_to_proto

from clients.node.channel import clear_round
from clients.node.cohort import Cohort, open_cohort
from clients.node.evaluate import evaluate_budgets
from clients.node.joining import join
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RowOrder, pack_ranking
from fl_peel.blocks.stored import StoredEmbedding, overhead_bytes, stored_user
from fl_peel.errors import BudgetError, EngineError
from fl_peel.pretraining.clusters import choose_group, fit_user_embeddings
from fl_peel.scenario.fleet_files import fleet_files
from fl_peel.scenario.scenario import Scenario
from fl_peel.wire import (
    OWN_BUDGET,
    UNLIMITED,
    EvaluateReply,
    EvaluateRequest,
    JoinReply,
    JoinRequest,
    RoundReply,
    RoundRequest,
    RunSetting,
    pack,
)
from strategies.groups.state import BlockSums, mean_update
from tests.helpers.planted import planted_interactions

NUM_USERS, NUM_ITEMS, DIM, SLICES, GROUPS = 22, 24, 4, 2, 2
LAYOUT = BlockLayout(np.arange(NUM_ITEMS, dtype=np.int32), DIM, SLICES)
# header 44, user 8; 48 blocks of two columns in int8: number 2, scale 2, codes 2. 52 + 48 x 6 = 340 hold everything
FLEET = """
profiles:
  - name: small
    population_share: 0.6
    memory: {table_share: 0.3125, working_factor: 100}  # of 24 x 4 x 4 B: 120 B
    budget:
      process: markov
      states: {foreground: 1.0, background: 0.9, killed: 0.5}
      transitions_per_step: {foreground: [0.4, 0.4, 0.2], background: [0.4, 0.4, 0.2], killed: [0.4, 0.4, 0.2]}
  - {name: large, population_share: 0.4, memory: {table_share: 1, working_factor: 100}}
"""
WIDE_ARRAYS = {"wide_rows", "wide_sums"}  # of sums that pass 32 bits
GROUP_ARRAYS = WIDE_ARRAYS | {
    *("rows", "sums", "touched", "row_loss", "row_examples", "holders", "hits", "shown", "exposed")
}


def filled(kind: type, **given) -> typing.Any:
    """A message with these fields; the others empty."""
    hints = typing.get_type_hints(kind)
    empty = {str: "", int: 0, bool: False, float: 0.0}

    def value(name: str):
        if name in given:
            return given[name]
        if hints[name] in empty:
            return empty[hints[name]]
        return {} if typing.get_origin(hints[name]) is dict else np.zeros(0, np.int64)

    return kind(**{field.name: value(field.name) for field in dataclasses.fields(kind)})


class World:
    """Planted interactions in a CSV file, a fleet, a scenario, and a server that does no more than add up."""

    def __init__(self, folder, *, other_test_items: bool = False, **changes) -> None:
        self.folder = folder
        pairs = planted_interactions(3, NUM_USERS // 2, NUM_ITEMS // 2, 2, 8, noise=0.2, exponent=0.5).pairs
        lines = ["user,item,time"]
        for user in range(NUM_USERS):
            items = np.random.default_rng(user).permutation(pairs.row(user))
            if other_test_items:  # the newest two are the test part: 20% of 8, rounded
                strangers = np.setdiff1d(np.arange(NUM_ITEMS), items)
                items = np.concatenate([items[:-2], strangers[[user % len(strangers), (user + 5) % len(strangers)]]])
            lines += [f"{user},{item},{time}" for time, item in enumerate(items)]
        (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
        (folder / "fleet.yaml").write_text(FLEET)
        self.scenario = Scenario.model_validate(
            {
                "name": "planted",
                "data": {"path": str(folder / "interactions.csv"), "validation_share": 0.2},
                "pretraining": {"embedding_dim": DIM, "diversity_slices": 2},
                "blocks": {"num_slices": SLICES},
                "refinement": {"local": {"batch_size": 3, "num_negatives": 2, "learning_rate": 0.2}},
                "controller": {"list_length": 6},
                "fleet": str(folder / "fleet.yaml"),
                "evaluation": {"top_n": 4},
                **changes,
            }
        )
        rng = np.random.default_rng(0)
        self.items = rng.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
        self.users = rng.normal(size=(NUM_USERS, DIM)).astype(np.float32)
        self.known = np.arange(0, NUM_USERS, 2)  # the others find embedding and group by themselves
        self.centroids = rng.normal(size=(GROUPS, DIM)).astype(np.float32)
        self.groups = choose_group(self.users, self.centroids)
        self.weights = rng.random((GROUPS, LAYOUT.num_blocks))

    @property
    def setting(self) -> RunSetting:
        fleet = fleet_files(self.scenario.fleet)
        return RunSetting(self.scenario.to_json(), "", str(self.folder / "run"), fleet=fleet)

    def cohorts(self, nodes: int) -> list[Cohort]:
        return [open_cohort(dataclasses.replace(self.setting, data_dir=""), p, nodes) for p in range(nodes)]

    def join(self, cohort: Cohort) -> JoinReply:
        mine = self.known[self.known % cohort.num_partitions == cohort.partition]
        request = filled(
            JoinRequest,
            setting=self.setting,
            item_group=LAYOUT.item_group,
            centroids=self.centroids,
            item_table=self.items,
            devices=mine.astype(np.int64),
            users=self.users[mine],
            groups=self.groups[mine],
            count=-1,
        )
        return join(cohort, request)

    def round_request(self, number: int, devices: np.ndarray, tables: np.ndarray, ceilings: np.ndarray) -> RoundRequest:
        ranked = {g: pack_ranking(LAYOUT, "int8", self.weights[g], tables[g], int(ceilings[g])) for g in range(GROUPS)}
        return filled(
            RoundRequest,
            setting=self.setting,
            server_round=number,
            signals=True,
            temperature=0.5,
            devices=devices.astype(np.int64),
            traced=np.array([1, 4]),
            groups=ranked,
        )

    def evaluate_request(self, tables: np.ndarray, budgets: list[int], split: str = "test", **more) -> EvaluateRequest:
        ranked = {g: pack_ranking(LAYOUT, "int8", self.weights[g], tables[g], None) for g in range(GROUPS)}
        return filled(
            EvaluateRequest,
            setting=self.setting,
            factors=np.ones(len(budgets)),
            rooms=np.full(len(budgets), -1.0),
            **{"server_round": 3, "last": -1, "stored": -1, "precision": "int8", "split": split,
               "budgets": np.array(budgets, np.int64), "artifacts": np.zeros(0, np.int64), "groups": ranked, **more},
        )  # fmt: skip


@dataclasses.dataclass
class Outcome:
    """Everything a server can know after joining, three rounds and an evaluation; and what stayed with the devices."""

    joined: list[JoinReply]
    rounds: list[list[RoundReply]]
    totals: list[dict[int, BlockSums]]
    evaluated: list[EvaluateReply]
    tables: np.ndarray
    users: list[np.ndarray]
    """(NUM_USERS, d) after joining and after every round, read from the nodes' own folders."""


def user_embeddings(cohorts: list[Cohort]) -> np.ndarray:
    users = np.full((NUM_USERS, DIM), np.nan, np.float32)
    for cohort in cohorts:
        users[cohort.devices] = cohort.state("r").users
    return users


def run(world: World, nodes: int) -> Outcome:
    cohorts = world.cohorts(nodes)
    joined = [world.join(cohort) for cohort in cohorts]
    ceilings = np.max([reply.ceilings for reply in joined], axis=0)
    tables = np.stack([world.items] * GROUPS)
    history, totals, users = [], [], [user_embeddings(cohorts)]
    for number in (1, 2, 3):
        sampled = np.random.default_rng(number).permutation(NUM_USERS)[:15]
        replies, sums = [], {}
        for cohort in cohorts:
            here = np.sort(sampled[sampled % nodes == cohort.partition])
            request = world.round_request(number, here, tables, ceilings)
            reply = clear_round(cohort, request)
            replies.append(reply)
            for group, content in reply.groups.items():
                order = RowOrder.from_blocks(LAYOUT, request.groups[group]["blocks"].astype(np.int64))
                shape = len(order.items), SLICES, DIM, len(request.groups[group]["blocks"])
                sums.setdefault(group, BlockSums.zeros(*shape)).add(content)
        for group, total in sums.items():
            order = RowOrder.from_blocks(LAYOUT, request.groups[group]["blocks"].astype(np.int64))
            tables[group, order.items] += mean_update(total, order.position, "touched")[0]
        history.append(replies)
        totals.append(sums)
        users.append(user_embeddings(cohorts))
    request = world.evaluate_request(tables, [UNLIMITED, OWN_BUDGET, 52, 110, 340, 50])
    return Outcome(joined, history, totals, [evaluate_budgets(c, request) for c in cohorts], tables, users)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def outcomes(world) -> dict[int, Outcome]:
    return {nodes: run(world, nodes) for nodes in (1, 5)}


# ---------------------------------------------------------------- how devices are spread over nodes cannot matter


def test_joining_is_the_same_on_any_number_of_nodes(outcomes):
    def by_device(outcome: Outcome) -> list[tuple[int, int]]:
        pairs = [zip(reply.devices.tolist(), reply.groups.tolist(), strict=True) for reply in outcome.joined]
        return sorted(pair for part in pairs for pair in part)

    one, many = outcomes[1], outcomes[5]
    assert by_device(one) == by_device(many)
    assert [device for device, _ in by_device(one)] == list(range(NUM_USERS))
    assert (np.max([reply.ceilings for reply in many.joined], axis=0) == one.joined[0].ceilings).all()
    assert {reply.class_names for reply in many.joined} == {"small\nlarge"}


def test_rounds_add_up_to_the_same_on_any_number_of_nodes(outcomes):
    one, many = outcomes[1], outcomes[5]
    for mine, theirs in zip(one.totals, many.totals, strict=True):
        assert mine.keys() == theirs.keys() == {0, 1}
        for group in mine:
            for name in ("sums", "touched", "row_loss", "row_examples", "holders", "hits", "shown", "exposed"):
                assert (getattr(mine[group], name) == getattr(theirs[group], name)).all(), name
                assert getattr(mine[group], name).any(), f"{name} is zero in this example"
    for mine, theirs in zip(one.rounds, many.rounds, strict=True):
        total = reduce(add, (reply.counts for reply in theirs))
        assert (mine[0].counts.classes.stacked() == total.classes.stacked()).all()
        assert (mine[0].counts.clock.stacked() == total.clock.stacked()).all()
        for name in ("trained", "loss", "recall", "ndcg", "evaluated"):
            assert getattr(mine[0].counts.totals, name) == getattr(total.totals, name) > 0
        order = np.argsort(total.traces.device)
        assert (mine[0].counts.traces.stacked() == total.traces[order].stacked()).all()
    assert (one.tables == many.tables).all()
    for mine, theirs in zip(one.users, many.users, strict=True):
        assert (mine == theirs).all()


def test_training_moves_the_tables_and_the_users_that_were_sampled(outcomes, world):
    outcome = outcomes[1]
    assert (outcome.tables[0] != world.items).any()
    assert (outcome.tables[0] != outcome.tables[1]).any()
    for number in (1, 2, 3):
        moved = (outcome.users[number] != outcome.users[number - 1]).any(axis=1)
        sampled = np.zeros(NUM_USERS, bool)
        sampled[np.random.default_rng(number).permutation(NUM_USERS)[:15]] = True
        assert not moved[~sampled].any()
        # those whose memory was killed to 0.5 x 120 B hold no block, learn nothing, and sit the round out
        assert moved.sum() == outcome.rounds[number - 1][0].counts.totals.trained
        assert 0 < moved.sum() <= 15


def test_devices_keep_their_budget(outcomes, world):
    reply = outcomes[1].evaluated[0]
    owned = reply.owned[1]
    assert owned.devices.tolist() == np.bincount(world.cohorts(1)[0].classes).tolist()
    assert owned.violations.tolist() == [0, 0]
    assert (owned.stored_bytes <= owned.budget_bytes).all()
    limits = [340, 340, 52, 110, 340, 50]  # unlimited is the whole table; 50 B hold no block
    assert (reply.stored_max <= limits).all()
    assert reply.stored_max[2] == reply.stored_max[5] == 44 + 4  # header and a slice of the user embedding
    assert 110 - 6 < reply.stored_max[3] <= 110
    recall = reply.by_budget().recall
    assert recall[2] == recall[5] == 0  # no block, no recommendation
    assert recall[4] == recall[0]  # 340 B hold everything
    assert recall[0] > 0


# ---------------------------------------------------------------- what leaves a node


def everything_sent(outcome: Outcome) -> bytes:
    """All bytes of all replies, as Flower sends them."""
    replies = [*outcome.joined, *(reply for replies in outcome.rounds for reply in replies), *outcome.evaluated]
    return b"|".join(recorddict_to_proto(pack(reply)).SerializeToString() for reply in replies)


def forms_of(vector: np.ndarray) -> list[bytes]:
    """A vector as it might be written: floats of any width, fixed point, stored coordinates of half of it."""
    exact = vector.astype(np.float64)
    fixed = np.floor(exact * (1 << 24) + 0.5)
    forms = [vector.astype(dtype).tobytes() for dtype in (np.float16, np.float32, np.float64)]
    return [*forms, fixed.astype(np.int32).tobytes(), fixed.astype(np.int64).tobytes()]


def test_user_embeddings_stay_on_the_devices(outcomes):
    outcome = outcomes[5]
    sent = everything_sent(outcome)
    assert len(sent) > 10_000
    for before, after in zip(outcome.users[:-1], outcome.users[1:], strict=True):
        for device in range(NUM_USERS):
            secrets = [before[device], after[device]]
            if (before[device] != after[device]).all():  # mostly zeros may be anything
                secrets.append(after[device] - before[device])
            for secret in secrets:
                assert secret.any()
                for form in forms_of(secret):
                    assert form not in sent
                    half = form[: len(form) // 2]
                    if np.count_nonzero(np.frombuffer(half, np.uint8)) > 3:  # mostly zeros may be anything
                        assert half not in sent  # nor one slice of it


def test_replies_hold_the_named_fields_alone(outcomes):
    for reply in (reply for replies in outcomes[5].rounds for reply in replies):
        for content in reply.groups.values():
            assert set(content) == GROUP_ARRAYS
            num_rows, num_blocks = len(content["rows"]), len(content["holders"])
            assert content["wide_sums"].shape == (len(content["wide_rows"]), DIM)
            shapes = {name: array.shape for name, array in content.items() if name not in WIDE_ARRAYS}
            assert shapes == {
                **{"rows": (num_rows,), "sums": (num_rows, DIM), "touched": (num_rows, SLICES)},
                **dict.fromkeys(("row_loss", "row_examples"), (num_rows,)),
                **dict.fromkeys(("holders", "hits", "shown", "exposed"), (num_blocks,)),
            }
            assert all(np.issubdtype(array.dtype, np.integer) for array in content.values())  # sums, no floats


# ---------------------------------------------------------------- test items are looked at in the test alone


def test_test_items_touch_nothing_but_the_test(world, tmp_path):
    other = World(tmp_path, other_test_items=True)
    (mine,), (theirs,) = world.cohorts(1), other.cohorts(1)
    assert mine.splits.num_items == theirs.splits.num_items == NUM_ITEMS
    for part in ("train", "validation"):
        assert (getattr(mine.splits, part).items == getattr(theirs.splits, part).items).all()
    assert (mine.splits.test.items != theirs.splits.test.items).any()
    assert set(mine.splits.test.counts().tolist()) == {2}
    one, two = run(world, 1), run(other, 1)

    def before_the_test(outcome: Outcome) -> bytes:
        return everything_sent(dataclasses.replace(outcome, evaluated=[]))

    assert before_the_test(one) == before_the_test(two)
    assert (one.users[-1] == two.users[-1]).all()
    assert (one.evaluated[0].sums.recall != two.evaluated[0].sums.recall).any()
    validation = [
        evaluate_budgets(cohort, each.evaluate_request(one.tables, [110], "validation"))
        for cohort, each in ((mine, world), (theirs, other))
    ]
    assert (validation[0].sums.recall == validation[1].sums.recall).all()
    assert validation[0].sums.recall.any()


# ---------------------------------------------------------------- joining


def test_devices_find_embedding_and_group_by_themselves(world):
    (cohort,) = world.cohorts(1)
    reply = world.join(cohort)
    alone = np.setdiff1d(np.arange(NUM_USERS), world.known)
    users = cohort.state("r").users
    assert (users[world.known] == stored_user(world.users[world.known])).all()
    assert (reply.groups[world.known] == world.groups[world.known]).all()
    fitted = fit_user_embeddings(world.items, cohort.splits.train.select(alone))
    assert (users[alone] == stored_user(fitted)).all()
    assert (reply.groups[alone] == choose_group(fitted, world.centroids)).all()


def test_a_budget_that_never_holds_a_block_is_refused(tmp_path):
    world = World(tmp_path)
    (tmp_path / "fleet.yaml").write_text(
        "profiles:\n  - {name: watch, memory: {table_share: 0.14}}\n"  # 53 B
    )
    with pytest.raises(BudgetError, match=r"device profile watch: budget 53 B is below one block \(54 B") as caught:
        world.join(world.cohorts(1)[0])
    assert "\n" not in str(caught.value)


def test_a_node_that_did_not_join_says_so(tmp_path):
    world = World(tmp_path)
    with pytest.raises(EngineError, match="have not joined the run"):
        clear_round(
            world.cohorts(1)[0],
            world.round_request(1, np.arange(3), np.stack([world.items] * 2), np.array([340, 340])),
        )


def test_a_node_refuses_devices_of_others(world):
    cohort = world.cohorts(2)[1]
    world.join(cohort)
    with pytest.raises(EngineError, match="node 1 of 2 was asked for devices that it does not host"):
        clear_round(cohort, world.round_request(1, np.array([1, 2]), np.stack([world.items] * 2), np.array([340] * 2)))


def test_a_round_without_devices_here_is_empty(world):
    (cohort,) = world.cohorts(1)
    world.join(cohort)
    before = user_embeddings([cohort])
    reply = clear_round(cohort, world.round_request(1, np.zeros(0), np.stack([world.items] * 2), np.array([340, 340])))
    assert reply.groups == {}
    assert reply.counts.totals.stacked().tolist() == [0, 0, 0, 0, 0]
    assert not reply.counts.classes.stacked().any()
    assert (user_embeddings([cohort]) == before).all()


def test_stored_artefacts_are_what_was_evaluated(world):
    (cohort,) = world.cohorts(1)
    world.join(cohort)
    tables = np.stack([world.items] * 2)
    request = world.evaluate_request(tables, [110, 340], artifacts=np.array([0, 5]), label="int8")
    evaluate_budgets(cohort, request)
    files = sorted((world.folder / "run" / "artifacts").iterdir())
    assert [path.name for path in files] == [
        f"device-{device}-int8-{budget}.peel" for device in (0, 5) for budget in (110, 340)
    ]
    for path in files:
        _, device, _, budget = path.stem.split("-")
        data = path.read_bytes()
        assert overhead_bytes(DIM) < len(data) <= int(budget)
        stored = StoredEmbedding.from_bytes(data)
        user = cohort.state("r").users[int(device)].astype(np.float16)
        assert (stored.user == user[: len(stored.user)]).all()
        seen = cohort.seen.row(int(device))
        assert not set((stored.blocks // SLICES).tolist()) & set(seen.tolist())  # nothing that is never needed


def test_what_devices_keep_is_opened_once_a_round_however_many_user_groups_there_are(tmp_path, monkeypatch):
    """Files: opened for each group, they took a tenth of a round of few devices."""
    world = World(tmp_path)
    (cohort,) = world.cohorts(1)
    joined = world.join(cohort)
    opened = []
    real = Cohort.state
    monkeypatch.setattr(Cohort, "state", lambda self, mode="r+": opened.append(mode) or real(self, mode))
    tables = np.stack([world.items] * GROUPS)
    reply = clear_round(cohort, world.round_request(1, np.arange(NUM_USERS), tables, joined.ceilings))
    assert len(reply.groups) == GROUPS
    assert opened == ["r", "r+"]  # to read, and to write what is kept
