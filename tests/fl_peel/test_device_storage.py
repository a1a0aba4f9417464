"""What is prepared in a run's folder that is kept is of the files as they are, in the catalogue's numbers."""

import os

import numpy as np
import pytest

from fl_peel import device_storage
from fl_peel.device_storage import device_splits, hosted_splits
from fl_peel.errors import DataError
from fl_peel.mmap_arrays import lies_in_file
from simulations.scenario_files import load_scenario


def all_items(splits):
    parts = (splits.train, splits.validation, splits.test)
    return [sorted(np.concatenate([part.row(user) for part in parts]).tolist()) for user in range(splits.num_users)]


def test_changed_data_are_prepared_anew_in_a_folder_that_is_kept(tiny, tmp_path):
    scenario, folder = load_scenario(tiny), str(tmp_path / "kept")
    before = all_items(device_splits(scenario, "", folder))
    lines = (tmp_path / "planted.csv").read_text().splitlines()
    (tmp_path / "planted.csv").write_text("\n".join(lines[:-1]) + "\n")
    after = all_items(device_splits(scenario, "", folder))
    assert sum(map(len, after)) == sum(map(len, before)) - 1
    assert len(list((tmp_path / "kept").glob("devices-*"))) == 2
    changed_s = os.stat(tmp_path / "planted.csv").st_mtime_ns
    assert all_items(device_splits(scenario, "", folder)) == after
    assert len(list((tmp_path / "kept").glob("devices-*"))) == 2  # the same files are read once
    os.utime(tmp_path / "planted.csv", ns=(changed_s, changed_s + 1))
    assert all_items(device_splits(scenario, "", folder)) == after
    assert len(list((tmp_path / "kept").glob("devices-*"))) == 3


def test_items_have_the_numbers_of_the_catalogue(tmp_path):
    (tmp_path / "mine.csv").write_text("user,item,time\na,x,3\na,y,1\na,z,2\nb,q,1\n")
    (tmp_path / "items.txt").write_text("z\nunused\nx\ny\n")
    (tmp_path / "mine.yaml").write_text(
        f"data: {{path: {tmp_path}/mine.csv, catalogue: {tmp_path}/items.txt, validation_share: 0}}\n"
    )
    splits = device_splits(load_scenario(tmp_path / "mine.yaml"), "", str(tmp_path / "run"))
    assert splits.num_items == 4
    assert splits.train.row(0).tolist() == [3, 0]  # y, z, oldest first
    assert splits.test.row(0).tolist() == [2]
    assert all_items(splits) == [[0, 2, 3], []]  # q is no item, b is a user all the same


def test_a_catalogue_that_is_not_there_is_one_line(tiny, tmp_path):
    scenario = load_scenario(tiny, [f"data.catalogue={tmp_path}/nowhere.txt"])
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read .* correct data\.catalogue"):
        device_splits(scenario, "", str(tmp_path / "run"))


def test_many_devices_of_a_node_lie_in_the_run_folder_once(tiny, tmp_path, monkeypatch):
    scenario, folder = load_scenario(tiny), str(tmp_path / "run")
    devices = np.arange(1, device_splits(scenario, "", folder).num_users, 2)
    few = hosted_splits(scenario, "", folder, devices, (1, 2))
    prepared = set((tmp_path / "run").glob("devices-*"))
    monkeypatch.setattr(device_storage, "MOST_OF_ITS_OWN", 0)
    many = hosted_splits(scenario, "", folder, devices, (1, 2))
    (added,) = set((tmp_path / "run").glob("devices-*")) - prepared
    assert not any(lies_in_file(items.items) for _, items in few.parts())
    for (name, mine), (_, theirs) in zip(many.parts(), few.parts(), strict=True):
        assert lies_in_file(mine.items), name
        assert np.array_equal(mine.items, theirs.items), name
        assert np.array_equal(mine.indptr, theirs.indptr), name
    assert added.is_dir()
    monkeypatch.setattr(device_storage, "_keep", None)
    hosted_splits(scenario, "", folder, devices, (1, 2))  # is not laid there again


def test_nodes_do_not_take_each_others_devices(tiny, tmp_path, monkeypatch):
    scenario, folder = load_scenario(tiny), str(tmp_path / "run")
    monkeypatch.setattr(device_storage, "MOST_OF_ITS_OWN", 0)
    everybody = device_splits(scenario, "", folder)
    for host in ((0, 2), (1, 2), (1, 3)):
        devices = np.arange(host[0], everybody.num_users, host[1])
        mine = hosted_splits(scenario, "", folder, devices, host)
        assert all_items(mine) == [all_items(everybody)[device] for device in devices], host
