"""Recordings of /proc/meminfo: what is read, by hand, and every mistake in one line that names its place."""

from __future__ import annotations

from decimal import Decimal

import pytest

from clients.fleet.budgets import TraceBudget
from clients.fleet.fleet import load_fleet
from simulations.meminfo import read_recording, read_recordings, trace_bytes, trace_table
from tests.helpers.fleets import TABLE, ids, one_line
from tests.helpers.root import ROOT

SNAPSHOT = """\
MemTotal:        1000000 kB
MemFree:           50000 kB
MemAvailable:     {kb} kB
Buffers:            2000 kB
Active(anon):      30000 kB
HugePages_Total:       0
Hugepagesize:       2048 kB
"""


def snapshots(*pairs) -> str:
    """A recording of (time, kilobytes available)."""
    return "".join(f"{time}\n{SNAPSHOT.format(kb=kb)}" for time, kb in pairs)


THREE = snapshots((1700000000, 400), (1700000005, 300), (1700000011, 500))


@pytest.fixture
def record(tmp_path):
    def write(text, name="phone.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# ---------------------------------------------------------------- what is read


def test_a_recording_by_hand(record):
    recording = read_recording(record(THREE))
    assert recording.device == "phone"
    assert recording.time_s == (0, 5, 11)
    assert recording.available_bytes == (409_600, 307_200, 512_000)  # times 1024


def test_the_trace_by_hand(record):
    recording = read_recording(record(THREE))
    assert trace_bytes([recording]).decode() == (
        "device,time_s,memory_bytes\nphone,0,409600\nphone,5,307200\nphone,11,512000\n"
    )
    # a thousandth, rounded down
    assert trace_bytes([recording], 0.001).decode().splitlines()[1:] == ["phone,0,409", "phone,5,307", "phone,11,512"]


@pytest.mark.parametrize(
    "change",
    {
        "as adb shell ends lines": lambda text: text.replace("\n", "\r\n"),
        "with a byte order mark": lambda text: "\ufeff" + text,
        "with remarks and blank lines": lambda text: "# my phone\n\n" + text.replace("MemTotal", "\n# now\nMemTotal"),
        "one line of each snapshot": lambda text: "".join(
            line + "\n" for line in text.splitlines() if line.isdigit() or line.startswith("MemAvailable")
        ),
        "without its last line end": lambda text: text.removesuffix("\n"),
        "cut off after a time": lambda text: text + "1700000016\n",
        "cut off in a number": lambda text: text + "1700000016\nMemTotal:      1000000 kB\nMemAvailable:    12",
        "cut off in a word": lambda text: text + "1700000016\nMemTo",
    }.items(),
    ids=lambda item: item[0],
)
def test_the_same_recording_in_other_forms(record, change):
    _, form = change
    assert read_recording(record(form(THREE))) == read_recording(record(THREE))


def test_parts_of_a_second_are_kept(record):
    recording = read_recording(record(snapshots(("1700000000.25", 1), ("1700000000.5", 2), (1700000001, 3))))
    assert recording.time_s == (0, Decimal("0.25"), Decimal("0.75"))
    assert b"phone,0.25,2048\n" in trace_bytes([recording])


def test_without_lines_of_time_the_interval_is_said(record):
    text = "".join(SNAPSHOT.format(kb=kb) for kb in (7, 8, 9))
    assert read_recording(record(text), 2.5).time_s == (0, Decimal("2.5"), 5)
    assert read_recording(record("MemAvailable: 7 kB\nMemAvailable: 8 kB\n"), 60).time_s == (0, 60)


def test_a_fleet_replays_what_was_recorded(record, tmp_path):
    recordings = read_recordings([record(THREE, "a.txt"), record(snapshots((5, 800)), "b, c.txt")])
    (tmp_path / "trace.csv").write_bytes(trace_bytes(recordings))
    (tmp_path / "fleet.yaml").write_text(
        "clock: {step_s: 1, steps_per_round: 1}\n"
        "profiles:\n"
        "- {name: x, budget: {process: trace, file: trace.csv, scale: absolute, recommender_share: 0.5,"
        " random_start: false}}\n"
    )
    fleet = load_fleet(tmp_path / "fleet.yaml")
    # halves of 409,600 until second 5, of 307,200 until second 11; of 819,200 always
    assert {
        tuple(int(fleet.budget_bytes(0, ids(40), second, full_table_bytes=TABLE)[i]) for second in (0, 4, 5, 11))
        for i in range(40)
    } == {(204_800, 204_800, 153_600, 256_000), (409_600,) * 4}


def test_the_share_of_the_trace_is_by_default_that_of_fleets(record):
    recording = read_recording(record(THREE))
    assert trace_bytes([recording]) == trace_bytes([recording], TraceBudget.model_fields["recommender_share"].default)


def test_what_was_read_is_shown(record):
    table = trace_table(read_recordings([record(THREE)]), 0.5)
    assert table.rows == (("phone", "3", "11 s", "153.6 KB", "256.0 KB"),)
    assert table.note.startswith("Memory: 0.5 of MemAvailable.")
    assert trace_table(read_recordings([record(THREE)])).note.startswith("Memory: MemAvailable.")


def test_the_trace_of_the_example_is_made_of_its_recording():
    folder = ROOT / "docs" / "fleets"
    recordings = read_recordings([folder / "machine.txt"])
    assert trace_bytes(recordings) == (folder / "machine.csv").read_bytes()
    # the first and the least: 21,885,040 and 10,929,292 kB
    assert recordings[0].available_bytes[0] == 21_885_040 * 1024
    assert min(recordings[0].available_bytes) == 10_929_292 * 1024


# ---------------------------------------------------------------- mistakes

OLD = SNAPSHOT.replace("MemAvailable:     {kb} kB\n", "")
BAD = [
    ("", None, "phone.txt: has no line MemAvailable; record with date +%s; cat /proc/meminfo, in a loop"),
    ("user,item\n1,2\n", None, "phone.txt:1: 'user,item' is neither a line of /proc/meminfo nor a time"),
    (THREE + "cat: /proc/meminfo: Permission denied\n", None, "phone.txt:25: 'cat: /proc/meminfo: Permission denied'"),
    (b"1700000000\nMemAvailable: \xff kB\n", None, "phone.txt:2: is not UTF-8 text; save the recording as UTF-8"),
    (THREE.encode("utf-16"), None, "phone.txt:1: is not UTF-8 text"),  # as PowerShell saves
    (SNAPSHOT.format(kb=1), None, "phone.txt:3: no time before this snapshot; record date +%s before"),
    (THREE + SNAPSHOT.format(kb=1), None, "phone.txt:27: no time before this snapshot; record date +%s before each"),
    (THREE, 5, "phone.txt:1: is a time, and --every is given too; leave --every out"),
    (f"1\n{OLD}2\n{OLD}", None, "phone.txt:2: the snapshot that begins here has no MemAvailable, and the next begins"),
    (OLD * 2, 5, "phone.txt:1: the snapshot that begins here has no MemAvailable, and"),
    ("1\n2\n", None, "phone.txt:1: the snapshot that begins here has no MemAvailable, and the next"),
    (snapshots((7, 1), (7, 2)), None, "phone.txt:9: time must rise (got 7 after 7); remove this snapshot, or wait"),
    (snapshots((1700000000123, 1)), None, "phone.txt:1: time must be in seconds, at most 1e+10; record with date +%s"),
    ("1\nMemAvailable: 5 MB\n", None, "phone.txt:2: 'MemAvailable: 5 MB' is neither a line of"),
    ("1\nMemAvailable: -5 kB\n", None, "phone.txt:2: 'MemAvailable: -5 kB' is neither a line of"),
    (f"1\nMemAvailable: {2**43 + 1} kB\n", None, "phone.txt:2: MemAvailable must be at most 8796093022208 kB; remove"),
    (THREE, 0, "--every: must be above 0 and at most 1e+10 seconds (got 0)"),
    (THREE, float("nan"), "--every: must be above 0 and at most 1e+10 seconds (got nan)"),
]


@pytest.mark.parametrize(("text", "every_s", "expected"), BAD)
def test_a_bad_recording_is_one_line(record, text, every_s, expected):
    path = record(text)
    one_line(lambda: read_recordings([path], every_s), expected)


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_that_makes_no_sense_is_refused(record, share):
    recording = read_recording(record(THREE))
    one_line(lambda: trace_bytes([recording], share), "--recommender-share: must be above 0 and at most 1 (got ")


def test_the_most_that_a_trace_holds_is_read(record):
    assert read_recording(record(f"1\nMemAvailable: {2**43} kB\n")).available_bytes == (2**53,)


def test_files_that_are_none(tmp_path, record, monkeypatch):
    one_line(lambda: read_recordings([tmp_path / "no.txt"]), "no.txt: no such file; give recordings of /proc/meminfo")
    one_line(lambda: read_recordings([tmp_path]), ": is a folder; give the recordings in it")
    monkeypatch.setattr("simulations.meminfo.MAX_DATA_BYTES", 2**20)
    read_recordings([record(b"1\nMemAvailable: 1 kB\n#" + b" " * (2**20 - 23))])
    path = record(b" " * (2**20 + 1))
    one_line(
        lambda: read_recordings([path]),
        "phone.txt: has 1 MB; at most 1 MB are read: keep the lines of time and MemAvailable alone",
    )


def test_a_file_that_cannot_be_read_is_one_line(record, monkeypatch):
    path = record(THREE)

    def closed(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", closed)
    one_line(lambda: read_recording(path), "phone.txt: cannot be read: Permission denied")


def test_two_files_of_one_name_would_be_one_device(tmp_path, record):
    (tmp_path / "other").mkdir()
    one, two = record(THREE), record(THREE, "other/phone.log")
    one_line(lambda: read_recordings([one, two]), f"{two}: {one} is a device 'phone' already; rename one of the files")
