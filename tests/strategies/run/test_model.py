"""The model that a run leaves: it gives a device just what the run gave it, and holds nothing of any."""

import json

import numpy as np
import pytest
import safetensors.numpy

import fl_peel
from fl_peel.blocks.layout import budget_bytes
from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.device_storage import device_splits, item_ids
from fl_peel.errors import DataError
from fl_peel.model import model as module
from fl_peel.model.model_files import ABOUT
from simulations.scenario_files import load_scenario
from strategies.figures.per_device import FILE, PerDevice
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid, let_through
from tests.helpers.models import NOTHING_COLLECTED, ran
from tests.strategies.run.test_checkpoints import Stopped

EVERY_ARTEFACT = ("evaluation.artifacts=40", "evaluation.per_device=true")
HALF_COLLECTED = ("pretraining.collected.share=50%", "refinement.local.user_learning_rate=0")


def joined(scenario, run_dir, device):
    """A device of a run, as the run's model takes it in with the items that it trained on."""
    model, splits = fl_peel.load(run_dir / "model"), device_splits(scenario, "", str(run_dir))
    name = model.catalogue.id_of
    train, held_out = splits.train.row(device).tolist(), splits.validation.row(device).tolist()
    return model.device([name(item) for item in train], also_seen=[name(item) for item in held_out])


def equal_artefacts(scenario, run_dir):
    """Numbers of the devices all of whose artefacts are those that the model gives, and of all devices."""
    files = sorted((run_dir / "artifacts").iterdir())
    assert len(files) == 2 * 40
    different = set()
    for file in files:
        _, number, _, budget = file.stem.split("-")
        result = joined(scenario, run_dir, int(number)).embedding(int(budget))
        if result.to_bytes() != file.read_bytes():
            different.add(int(number))
    return set(range(40)) - different


def test_a_device_gets_the_very_bytes_that_the_run_gave_it(tiny, tmp_path):
    scenario = load_scenario(tiny, [*NOTHING_COLLECTED, *EVERY_ARTEFACT, "blocks.precision=int4"])
    ran(scenario, tmp_path / "run")
    assert equal_artefacts(scenario, tmp_path / "run") == set(range(40))


def test_so_does_one_that_gave_nothing_where_others_did(tiny, tmp_path):
    """The server knew more of those who did: their embeddings were learned together, and stay with them."""
    scenario = load_scenario(tiny, [*HALF_COLLECTED, *EVERY_ARTEFACT])
    ran(scenario, tmp_path / "run")
    equal = equal_artefacts(scenario, tmp_path / "run")
    assert len(equal) == 20
    users = [StoredEmbedding.from_bytes(file.read_bytes()).user for file in (tmp_path / "run" / "artifacts").iterdir()]
    assert len({user.tobytes() for user in users}) == 40


def test_the_ranking_is_the_one_that_the_run_evaluated(tiny, tmp_path):
    """To the last digit of every device's recall and NDCG, at every budget."""
    changes = [*NOTHING_COLLECTED, *EVERY_ARTEFACT, "blocks={item_groups: single}", "evaluation.budgets=[20%,50%]"]
    scenario = load_scenario(tiny, [*changes, "evaluation.selectors=[exposure]", "evaluation.top_n=5"])
    ran(scenario, tmp_path / "run")
    measured = PerDevice.read(tmp_path / "run" / FILE)
    test = device_splits(scenario, "", str(tmp_path / "run")).test
    model = fl_peel.load(tmp_path / "run" / "model")
    assert measured.devices.tolist() == list(range(40))
    different = set()
    for share in (0.2, 0.5):
        table = measured.tables.index(f"{share * 100:.4g}% int8 exposure")
        for number in range(40):
            result = joined(scenario, tmp_path / "run", number).embedding(budget_bytes(model.layout, share))
            wanted = {model.catalogue.id_of(item) for item in test.row(number).tolist()}
            hits = [name in wanted for name, _ in result.top(5)]
            gains = 1 / np.log2(np.arange(len(wanted) + 5) + 2)
            ndcg = gains[: len(hits)][hits].sum() / gains[: min(5, len(wanted))].sum()
            different.add(tuple(hits))
            assert measured.recall[number, table] == sum(hits) / len(wanted)
            assert measured.ndcg[number, table] == pytest.approx(ndcg, rel=1e-12)
            assert measured.groups[number] == result.device.group
    assert len(different) > 5


def test_ids_are_those_of_the_data(tiny, tmp_path):
    scenario = load_scenario(tiny, ["refinement.rounds=0"])
    ran(scenario, tmp_path / "run")
    model = fl_peel.load(tmp_path / "run" / "model")
    lines = (tmp_path / "planted.csv").read_text().splitlines()[1:]
    assert sorted({line.split(",")[1] for line in lines}) == list(model.catalogue.ids)
    assert model.device(["i0003", "i0004"]).embedding(400).top(1)[0][0].startswith("i00")


def test_numbers_are_the_ids_of_lists(tiny, tmp_path):
    rows = [" ".join(map(str, (user, *range(user % 5, 40, 3)))) for user in range(40)]
    for name, text in (("train", rows), ("test", [f"{user} {40 + user % 3}" for user in range(40)])):
        (tmp_path / f"{name}.txt").write_text("\n".join(text) + "\n")
    scenario = load_scenario(tiny, [f"data={{path: {tmp_path}}}", "refinement.rounds=0", "selector=exposure"])
    ran(scenario, tmp_path / "run")
    model = fl_peel.load(tmp_path / "run" / "model")
    assert model.catalogue.ids == ()
    assert model.catalogue.items([7, "41"]).tolist() == [7, 41]


def test_ids_that_were_damaged_are_one_line(tiny_scenario, tmp_path):
    num_items = device_splits(tiny_scenario, "", str(tmp_path / "run")).num_items
    assert len(item_ids(tiny_scenario, "", str(tmp_path / "run"))) == num_items
    (file,) = (tmp_path / "run").glob("devices-*/item-ids.json")
    for text in ("{", '["a"]', "{}", json.dumps([1] * num_items)):
        file.write_text(text)
        with pytest.raises(DataError, match=r"item-ids\.json: no"):
            item_ids(tiny_scenario, "", str(tmp_path / "run"))


def arrays(folder):
    """Every array of a model, by file and name."""
    return {
        (file.name, name): tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in safetensors.numpy.load(file.read_bytes()).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("changes", [NOTHING_COLLECTED, HALF_COLLECTED], ids=["nothing", "half"])
def test_a_model_holds_nothing_of_any_device(tiny, tmp_path, changes):
    """Just these arrays, of these shapes: none has a row a device, none is anybody's vector or items."""
    scenario = load_scenario(tiny, list(changes))
    result = ran(scenario, tmp_path / "run")
    results = arrays(tmp_path / "run" / "model")
    groups = len(result.user_groups)
    joining = {"centroids", "item_table", "maps"}
    if scenario.pretraining.by_devices:
        joining = {"centroids", "own", "own_units", "maps", "map_units"}
    wanted = {("joining.safetensors", name) for name in joining} | {("item-groups.safetensors", "item_group")}
    wanted |= {(module.list_name(group), name) for group in range(groups) for name in ("order", "codes", "scales")}
    assert results.keys() == wanted
    assert all(40 not in tensor.shape for tensor in results.values())  # devices
    about = json.loads((tmp_path / "run" / "model" / ABOUT).read_text())
    assert about.keys() == {
        *("format", "version", "package", "precision", "tables", "items", "embedding_dim", "slices", "user_groups"),
        *("joining", "files", "digest"),
    }
    rows = [tensor for tensor in results.values() if tensor.dtype in (np.float16, np.float32) and tensor.ndim > 1]
    known = {row.astype(np.float32).tobytes() for tensor in rows for row in tensor.reshape(-1, tensor.shape[-1])}
    kept = [np.load(file) for file in (tmp_path / "run" / "nodes").rglob("*.npy") if file.name != "item_group.npy"]
    users = [row for array in kept if array.ndim == 2 for row in array.astype(np.float32)]
    assert len(users) >= 40
    assert not known & {row.tobytes() for row in users if row.any()}


def test_the_figures_are_the_same_with_a_model_and_without(tiny_scenario, tmp_path):
    with_one = ran(tiny_scenario, tmp_path / "with")
    without = serve(LoopbackGrid(2), tiny_scenario, RunPaths("", str(tmp_path / "without")))
    assert with_one.budgets == without.budgets
    assert with_one.stages.keys() - without.stages.keys() == {"model"}
    assert not list((tmp_path / "without").rglob("model.json"))


@pytest.mark.slow
def test_a_run_that_was_stopped_leaves_the_model_of_one_that_was_not(tiny, tmp_path):
    changes = ["refinement.acceptance.rule=validation", "data.validation_share=20%", "refinement.rounds=3"]
    scenario = load_scenario(tiny, [*changes, *NOTHING_COLLECTED])
    ran(scenario, tmp_path / "whole")
    count = 0

    def interfere(partition, message):
        nonlocal count
        count += 1
        if message.metadata.message_type == "evaluate.budgets" and count > 20:
            raise Stopped  # all rounds are done
        return let_through(partition, message)

    (tmp_path / "kept").mkdir()
    paths = RunPaths("", str(tmp_path / "stopped"), "", str(tmp_path / "kept"), str(tmp_path / "kept" / "model"))
    with pytest.raises(Stopped):
        serve(LoopbackGrid(2, interfere), scenario, paths)
    assert not (tmp_path / "kept" / "model").exists()
    ran(scenario, tmp_path / "again", str(tmp_path / "kept"))
    digests = [fl_peel.load(tmp_path / name / "model").digest for name in ("whole", "again")]
    assert digests[0] == digests[1]
