"""A store gives back what was kept, whole, or says in a line that it is damaged; it never holds half of something."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import load_file

from fl_peel import store as module
from fl_peel.files import locked
from fl_peel.store import ENTRY, Store
from tests.helpers.root import ROOT

KEY = {"seed": 1, "versions": ["1.0", None]}


@pytest.fixture
def disk(tmp_path):
    """A file of a device."""
    (tmp_path / "users.npy").write_bytes(bytes(range(200)))
    return tmp_path / "users.npy"


@pytest.fixture
def lines():
    return []


@pytest.fixture
def store(tmp_path, lines):
    return Store(tmp_path / "a" / "store", lines.append)


def arrays():
    rng = np.random.default_rng(0)
    shapes = [(), (0,), (3,), (2, 0, 4), (2, 3)]
    kinds = ["?", "i1", "u1", "<u2", "<i4", "<i8", "<u8", "<f2", "<f4", "<f8"]
    made = {f"{kind} {shape}": np.asarray(rng.random(shape) * 5).astype(kind) for kind in kinds for shape in shapes}
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    return made | {"a slice": wide[:, ::3], "columns first": np.asfortranarray(wide)}


def keep(store, disk, value=0.1):
    store.write("stage 1", KEY, {"value": value, "none": None}, {"tables": arrays, "disks/a/users.npy": disk})
    (folder,) = store.folder.iterdir()
    return folder


def test_what_was_kept_comes_back_bit_for_bit(store, disk):
    folder = keep(store, disk)
    entry = store.read("stage 1", KEY)
    assert (entry.name, entry.key, entry.value) == ("stage 1", KEY, {"value": 0.1, "none": None})
    read, before = entry.arrays("tables"), arrays()
    assert read.keys() == before.keys()
    for name, array in before.items():
        assert read[name].dtype == array.dtype, name
        assert read[name].shape == array.shape, name
        assert (read[name] == array).all(), name
        read[name][...] = 0
    assert entry.files["disks/a/users.npy"].read_bytes() == disk.read_bytes()
    assert load_file(entry.files["tables"]).keys() == before.keys(), "any reader of safetensors reads it"
    assert entry.num_bytes == sum(file.stat().st_size for file in folder.iterdir())


def test_another_name_or_key_is_another_entry(store, disk):
    keep(store, disk)
    assert store.read("stage 2", KEY) is None
    assert store.read("stage 1", KEY | {"seed": 2}) is None
    store.write("stage/1", KEY)  # whose folder's name begins like the other's
    assert store.read("stage/1", KEY).value is None
    assert [entry.name for entry in store.entries()] == ["stage 1", "stage/1"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_file_is_one_line_and_no_entry(damage, store, disk, lines):
    """Each file of the entry in turn, copies of devices' disks as well; a flip of every byte of the smaller ones."""
    folder = keep(store, disk)
    files = list(folder.iterdir())
    assert len(files) == 3
    for file in files:
        whole = file.read_bytes()
        for place in range(len(whole)) if damage == "flip" and len(whole) < 1000 else [len(whole) // 2]:
            data = {"flip": whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :], "cut": whole[:place]}
            file.unlink() if damage == "gone" else file.write_bytes(data.get(damage, b""))
            assert store.read("stage 1", KEY) is None
            if not (damage == "gone" and file.name == ENTRY):  # then nothing was ever finished there
                assert lines.pop().startswith(f"{folder}: damaged (")
        keep(store, disk)  # it is done again
        assert store.read("stage 1", KEY) is not None
        assert not lines


def test_what_cannot_be_written_leaves_what_was_there(store, disk, monkeypatch):
    folder = keep(store, disk)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.write("stage 1", KEY, 2, {"tables": {"other": np.zeros(3)}})
    for wrong in ({"it": np.array(["text"])}, {"it": np.zeros(2, np.complex64)}, {"it": np.zeros(2, ">f4")}):
        with pytest.raises(TypeError, match="is not kept"):
            store.write("stage 1", KEY, 2, {"tables": wrong})
    with pytest.raises(TypeError):
        store.write("stage 1", KEY, {"value": object()})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


KILLED = """
import os, pathlib, signal, sys
from fl_peel import store

files, left = store.os.replace, int(sys.argv[2])

def replace(*names):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    files(*names)

store.os.replace = replace
a, b = ({"x": store.np.full(3, value)} for value in (1, 2))
store.Store(pathlib.Path(sys.argv[1])).write("it", None, "new", {"a": a, "b": b})
"""


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_process_that_is_killed_leaves_the_entry_before(left, store):
    store.write("it", None, "old", {"a": {"x": np.zeros(3)}})
    done = subprocess.run([sys.executable, "-c", KILLED, store.folder, str(left)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    entry = store.read("it")
    assert entry.value == "old"
    assert (entry.arrays("a")["x"] == 0).all()
    store.write("it", None, "new")
    (folder,) = store.folder.iterdir()
    assert [file.name for file in folder.iterdir()] == [ENTRY], "nothing of the killed one stays"


def test_files_that_did_not_change_are_not_written_again(store, disk):
    folder = keep(store, disk)
    before = {file.name: file.stat().st_ino for file in folder.iterdir() if file.name != ENTRY}
    keep(store, disk, value=0.2)
    assert {file.name: file.stat().st_ino for file in folder.iterdir() if file.name != ENTRY} == before
    assert store.read("stage 1", KEY).value["value"] == 0.2


def test_several_that_write_at_once_leave_one_whole_entry(store, disk, lines):
    """As runs that find the same cache cold; whoever reads meanwhile finds nothing or all of it."""
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(keep, store, disk) for _ in range(20)]
        reading = [pool.submit(store.read, "stage 1", KEY) for _ in range(20)]
    assert all(done.exception() is None for done in [*writing, *reading])
    assert all(done.result() is None or done.result().value["value"] == 0.1 for done in reading)
    assert store.read("stage 1", KEY) is not None
    assert not lines


def test_entries_are_removed_by_the_begin_of_their_name_and_nothing_else_is(store):
    for name in ("step-1", "step-2", "stage-1"):
        store.write(name)
    (store.entries()[0].folder / ENTRY).write_bytes(b"")
    assert sorted(entry.key or entry.name for entry in store.entries()) == ["damaged", "stage-1", "step-2"]
    (store.folder / "mine-0123456789abcdef").write_text("not an entry")
    (store.folder / "notes").mkdir()
    store.remove("step-")
    assert [entry.name for entry in store.entries()] == ["stage-1"]
    store.remove()
    assert store.strangers() == ["mine-0123456789abcdef", "notes"]
    assert not store.entries()


HOLDING = """
import pathlib, sys
from fl_peel.store import Store

with Store(pathlib.Path(sys.argv[1])).locked():
    print("held", flush=True)
    input()
"""


def test_a_store_has_one_owner_until_that_process_ends(store):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, store.folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), store.locked():
            pass
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with store.locked():
            assert store.strangers() == []
        with store.locked(), pytest.raises(BlockingIOError), store.locked():
            pass


def test_who_waited_for_a_lock_whose_file_was_removed_holds_a_new_one(tmp_path):
    """As who waits while a run ends and clears its folder: two would think that they are alone."""
    path = tmp_path / "lock"

    def hold() -> bool:
        with locked(path):
            return path.exists()

    with ThreadPoolExecutor(1) as pool:
        with locked(path):
            waiting = pool.submit(hold)
            time.sleep(0.2)
            path.unlink()
        assert waiting.result()
