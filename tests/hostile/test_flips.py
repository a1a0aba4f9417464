"""One bit of one file that a stopped run has kept is another one: it is computed again, to the same figures."""

import shutil

import numpy as np
import pytest

from fl_peel.store import Store
from simulations.scenario_files import load_scenario
from tests.strategies.run.test_checkpoints import KINDS, figures, served
from tests.strategies.run.test_step_checkpoints import BY_DEVICES

FLIPS, WHOLE_RUNS = 50, 4
"""Of each kind of run: flips, and how many of these the run goes on with."""


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["kept by some", "by devices", "masked", "noised"])
def test_a_flipped_bit_is_never_read_and_nothing_is_stuck_for_it(kind, tiny, tmp_path, trial):
    scenario = load_scenario(tiny, BY_DEVICES if kind == "by devices" else KINDS[kind])
    whole, messages, _ = served(scenario, tmp_path / "whole", "")
    kept, lines = tmp_path / "kept", []
    assert served(scenario, tmp_path / "stopped", kept, stop_at=messages - 2)[0] is None
    entries = Store(kept).entries()
    right = [Store(kept).read(entry.name, entry.key) for entry in entries]
    contents = [{path: file.read_bytes() for path, file in entry.files.items()} for entry in right]
    files = [file for file in sorted(kept.rglob("*")) if file.is_file() and file.stat().st_size]
    rng, noticed = np.random.default_rng(0), 0
    for number in range(max(FLIPS, len(files))):
        trial("bits flipped in what is kept", kind)
        copy = tmp_path / "copy"
        shutil.copytree(kept, copy)
        file = copy / files[number % len(files)].relative_to(kept)  # each file in turn, the small ones as the large
        data = bytearray(file.read_bytes())
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        if number < WHOLE_RUNS:
            result, _, events = served(scenario, tmp_path / f"{number}", copy)
            assert figures(result) == figures(whole)
            noticed += sum("damaged" in event.text for event in events)
            shutil.rmtree(copy)
            continue
        for entry, content in zip(right, contents, strict=True):
            read = Store(copy, lines.append).read(entry.name, entry.key)
            noticed += read is None
            if read is not None:
                assert (read.value, read.made) == (entry.value, entry.made)
                assert {path: one.read_bytes() for path, one in read.files.items()} == content
        shutil.rmtree(copy)
    assert noticed == max(FLIPS, len(files))
    assert all("\n" not in line for line in lines)
