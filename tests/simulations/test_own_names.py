"""The same rows under names of the user's own, with times as dates, are the same data wherever they are read."""

import csv
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from typer.testing import CliRunner

from fl_peel.device_storage import device_splits, item_ids, keep_catalogue, own_splits
from simulations.cli.main import app
from simulations.deployment.processes import node_configs
from simulations.resumable import data_digest
from simulations.scenario_files import load_scenario
from tests.clients.node.test_own_data import NOTHING, held
from tests.helpers.runs import figures, served

NAMES = ["data.columns={user: customer, item: sku, time: bought_at}", "data.time_zone=Europe/Berlin"]


@pytest.fixture
def both(tiny, tmp_path):
    """Scenarios of planted rows with seconds, and of the same with names and dates; each has the other's order."""
    rows = list(csv.DictReader((tmp_path / "planted.csv").open()))
    usual, own = ["user,item,timestamp"], ["bought_at,sku,customer"]
    for number, row in enumerate(rows):
        time = datetime.fromtimestamp(1_700_000_000 + 7_919 * number % 3_000_000, UTC)
        local = time.astimezone(ZoneInfo("Europe/Berlin")).replace(tzinfo=None)
        usual.append(f"{row['user']},{row['item']},{int(time.timestamp())}")
        own.append(f"{local.isoformat(' ')},{row['item']},{row['user']}")
    (tmp_path / "planted.csv").write_text("\n".join(usual) + "\n")
    (tmp_path / "own.csv").write_text("\n".join([own[0], *reversed(own[1:])]) + "\n")
    return load_scenario(tiny), load_scenario(tiny, [f"data.path={tmp_path}/own.csv", *NAMES])


def test_splits_and_figures_are_the_same(both, tmp_path):
    places = [str(tmp_path / f"run-{number}") for number in range(2)]
    usual, own = (device_splits(one, "", place) for one, place in zip(both, places, strict=True))
    assert data_digest(usual) == data_digest(own)
    usual, own = (item_ids(one, "", place) for one, place in zip(both, places, strict=True))
    assert usual == own
    usual, own = (figures(served(one, place)[0]) for one, place in zip(both, places, strict=True))
    assert usual == own


def test_a_folder_that_is_kept_is_of_the_names_that_are_given_now(both, tmp_path):
    folder = str(tmp_path / "kept")
    before = data_digest(device_splits(both[1], "", folder))
    other = both[1].data.columns.model_copy(update={"user": "sku", "item": "customer"})
    changed = both[1].model_copy(update={"data": both[1].data.model_copy(update={"columns": other})})
    assert data_digest(device_splits(changed, "", folder)) != before
    assert data_digest(device_splits(both[1], "", folder)) == before


def test_nodes_of_a_deployment_read_files_of_such_names(both, tiny, tmp_path):
    (tmp_path / "items.txt").write_text("".join(f"i{item:04}\n" for item in range(60)))
    alone = [*NOTHING, f"data.catalogue={tmp_path}/items.txt"]
    usual, own = (held(load_scenario(tiny, [*alone, *more])) for more in ([], NAMES))
    assert own.data.held_by_nodes
    result = []
    for scenario, name in ((usual, "planted.csv"), (own, "own.csv")):
        configs = node_configs(scenario, nodes=2, own=[tmp_path / name] * 2)
        assert [one["first-device"] for one in configs] == [0, 40]
        keep_catalogue((tmp_path / "items.txt").read_text(), tmp_path / f"node-{name}")
        result.append(data_digest(own_splits(scenario, tmp_path / name, 0, tmp_path / f"node-{name}")))
    assert result[0] == result[1]


def test_a_dry_run_reads_them_and_tells_what_is_wrong(both, tiny, tmp_path):
    def dry(*changes):
        words = [word for change in (f"data.path={tmp_path}/own.csv", *changes) for word in ("--set", change)]
        return CliRunner().invoke(app, ["run", str(tiny), "--dry-run", *words])

    assert dry(*NAMES).exit_code == 0
    refused = dry(NAMES[0])
    assert refused.exit_code != 0
    assert "own.csv:2: bought_at (timestamp) is 2023-" in str(refused.exception)
    assert "without a time zone; set data.time_zone to UTC" in str(refused.exception)
