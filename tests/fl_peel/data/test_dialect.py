"""Files whose columns have names of their own, and times as ISO 8601."""

import math
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.data.readers import read_interactions
from fl_peel.data.settings import Dialect
from fl_peel.data.timeline import local_seconds, seconds_of
from fl_peel.errors import DataError
from tests.fl_peel.data.test_readers import everything, write

OWN = Dialect({"user": "customer", "item": "sku", "rating": "stars", "timestamp": "bought_at"})
BERLIN = Dialect(OWN.columns, "Europe/Berlin")
HEAD = "sku,customer,stars,bought_at,user\n"
ROWS = [
    ("tea", "ann", 5, "2026-03-01T09:30:00+01:00", "x"),
    ("milk", "ann", 1, "2026-03-01T09:29:59.9+01:00", "x"),
    ("tea", "bob", 4, "2026-03-01T12:00:00Z", "x"),
]
# ann 0, bob 1; milk 0, tea 1; 09:30 of +01:00 is 08:30 UTC, 20,513 days after 1970
FIRST = 20_513 * 86_400 + 8 * 3_600 + 30 * 60
FOUND = ([[0, 1], [1]], 2, [FIRST - 1, FIRST, FIRST + 3.5 * 3_600], None, ("ann", "bob"), ("milk", "tea"))


def text(rows=ROWS, sign=","):
    return HEAD.replace(",", sign) + "".join(sign.join(map(str, row)) + "\n" for row in rows)


def with_time(time, others=()):
    return text([*others, ("tea", "ann", 5, time, "x")])


def in_parquet(path, times):
    items, users, stars, _, rest = zip(*ROWS, strict=True)
    pq.write_table(pa.table({"sku": items, "customer": users, "stars": stars, "bought_at": times, "user": rest}), path)
    return path


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.inter", "x.parquet"])
def test_columns_of_other_names_are_read_as_they_are(tmp_path, name):
    if name == "x.parquet":
        path = in_parquet(tmp_path / name, [row[3] for row in ROWS])
    else:
        content = text(sign="," if name == "x.csv" else "\t")
        head, rest = content.split("\n", 1)
        typed = "\t".join(f"{one}:token" for one in head.split("\t"))
        path = write(tmp_path, name, f"{typed}\n{rest}" if name == "x.inter" else content)
    assert everything(read_interactions(path, dialect=OWN)) == FOUND


def test_the_same_rows_under_the_usual_names_in_seconds_are_the_same(tmp_path):
    rows = "".join(
        f"{item},{user},{math.floor(datetime.fromisoformat(t).timestamp())}\n" for item, user, _, t, _ in ROWS
    )
    usual = read_interactions(write(tmp_path, "x.csv", "item,user,timestamp\n" + rows))
    assert everything(usual) == FOUND
    assert everything(read_interactions(write(tmp_path, "y.csv", text()), dialect=OWN, min_rating=1)) == FOUND


def test_a_name_may_be_one_that_usually_means_something_else(tmp_path):
    path = write(tmp_path, "x.csv", "user_id,user,time\ntea,ann,3\n")
    result = read_interactions(path, dialect=Dialect({"item": "user_id"}))
    assert (result.user_labels, result.item_labels, result.timestamps.tolist()) == (("ann",), ("tea",), [3])


def test_the_test_file_has_the_same_names(tmp_path):
    train, test = write(tmp_path, "a.csv", text(ROWS[:2])), write(tmp_path, "b.csv", text(ROWS[2:]))
    result = read_interactions(train, test_path=test, dialect=OWN)
    assert result.given_test.row(1).tolist() == [1]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([2500, -1, 0], pa.timestamp("ms", "Asia/Tokyo")),
        pa.array([2_500_000_000, -1, 0], pa.timestamp("ns", "UTC")),
        pa.array(["1970-01-01T00:00:02.5Z", "1969-12-31T23:59:59.999Z", "1970-01-01T01:00:00+01:00"]),
        pa.array(["2.5", "-0.001", "0"]).dictionary_encode(),
    ],
)
def test_times_in_parquet_are_rounded_down_to_seconds_since_1970(tmp_path, times):
    result = read_interactions(in_parquet(tmp_path / "x.parquet", times), dialect=OWN)
    assert result.timestamps.tolist() == [-1, 2, 0]


LOCAL = [
    pa.array([0, 1, 20_513], pa.date32()),
    pa.array([0, 86_400_000, 20_513 * 86_400_000], pa.timestamp("ms")),
    pa.array(["1970-01-01", "1970-01-02T00:00", "2026-03-01 00:00:00,25"]),
]


@pytest.mark.parametrize("times", LOCAL)
def test_times_without_an_offset_are_those_of_the_zone_that_is_given(tmp_path, times):
    path = in_parquet(tmp_path / "x.parquet", times)
    utc = read_interactions(path, dialect=Dialect(OWN.columns, "UTC")).timestamps
    assert utc.tolist() == [0, 86_400, 20_513 * 86_400]
    assert read_interactions(path, dialect=BERLIN).timestamps.tolist() == (utc - 3_600).tolist()
    with pytest.raises(
        DataError, match=r"x\.parquet: .*bought_at \(timestamp\).*without a time zone; set data.time_zone"
    ):
        read_interactions(path, dialect=OWN)


def test_offsets_go_before_the_zone_and_an_hour_that_is_there_twice_is_its_first_one():
    texts = pa.array(["2026-07-01T12:00:00", "2026-07-01T12:00:00Z", "2026-10-25T02:30:00", "2026-01-01"])
    zone = ZoneInfo("Europe/Berlin")
    expected = [
        datetime(2026, 7, 1, 12, tzinfo=zone),
        datetime(2026, 7, 1, 12, tzinfo=UTC),
        datetime(2026, 10, 25, 0, 30, tzinfo=UTC),  # still in summer time
        datetime(2026, 1, 1, tzinfo=zone),
    ]
    assert seconds_of(texts, "Europe/Berlin").tolist() == [int(one.timestamp()) for one in expected]


def test_a_zone_that_arrow_does_not_find_is_told():
    with pytest.raises(DataError, match=r"data\.time_zone: Arrow finds no Nowhere/Atall; install the system's tzdata"):
        local_seconds(pa.array([0], pa.timestamp("s")), "Nowhere/Atall")


BAD = [
    (
        with_time("2026-03-01"),
        OWN,
        r"x\.csv:2: bought_at \(timestamp\) is 2026-03-01, without a time zone; set data\.time",
    ),
    (
        with_time("2026-03-01T09:30", ROWS),
        OWN,
        r":5: bought_at \(timestamp\) is 2026-03-01T09:30, without a time zone; ",
    ),
    (
        with_time("2026-02-30"),
        BERLIN,
        r":2: bought_at \(timestamp\) is 2026-02-30, which is no date of the calendar; correct",
    ),
    (with_time("2026-02-30T10:00Z"), OWN, ":2: .* which is no date of the calendar; correct"),
    (with_time("2026-03-29T02:30:00"), BERLIN, ":2: .* is 2026-03-29T02:30:00, which clocks in Europe/Berlin skipped;"),
    (
        with_time("1772353800", ROWS),
        OWN,
        ":5: .* is '1772353800', and times before it are dates; write all of them one",
    ),
    (
        with_time("2026-03-01", [("a", "b", 1, 17, "x")]),
        BERLIN,
        ":3: .* is 2026-03-01, and times before it are numbers",
    ),
    (with_time("", ROWS), OWN, r":5: bought_at \(timestamp\) is '', not a number of seconds or a time like 2026-"),
    (with_time("03/01/2026"), OWN, r":2: bought_at \(timestamp\) is '03/01/2026', not a number of seconds or a time"),
    (text([("", "ann", 5, "3", "x")]), OWN, r":2: sku \(item\) is missing"),
    (text([("tea", "ann", "many", "3", "x")]), OWN, r":2: stars \(rating\) is 'many', not a number; correct"),
    (
        text(),
        Dialect({"user": "custommer"}),
        r"x\.csv:1: no column 'custommer'; correct data\.columns\.user: did you mean",
    ),
    (
        text(),
        Dialect({"timestamp": "when"}),
        r"x\.csv:1: no column 'when'; correct data\.columns\.time: known: sku, cust",
    ),
    (
        "user,item,user\n1,2,3\n",
        Dialect({"user": "user"}),
        r"x\.csv:1: 2 columns are called 'user', which data\.columns\.u",
    ),
    (
        "customer,item\n1,2\n",
        None,
        r"no user column among .*; call it user or user_id, or give its name as data\.columns\.",
    ),
]


@pytest.mark.parametrize(("content", "dialect", "message"), BAD)
def test_what_is_wrong_is_told_with_file_line_and_column(tmp_path, content, dialect, message):
    with pytest.raises(DataError, match=message) as caught:
        read_interactions(write(tmp_path, "x.csv", content), dialect=dialect)
    assert "\n" not in str(caught.value)


def test_in_parquet_too(tmp_path):
    path = in_parquet(tmp_path / "x.parquet", ["2026-03-01T09:30Z", "17", "2026-03-01"])
    with pytest.raises(DataError, match=r"row 2: bought_at \(timestamp\) is '17', and times before it are dates"):
        read_interactions(path, dialect=BERLIN)
    path = in_parquet(tmp_path / "y.parquet", pa.array([0, 0, 1_774_751_400], pa.timestamp("s")))
    with pytest.raises(
        DataError, match=r"bought_at \(timestamp\) column: .*Europe/Berlin.*; correct it, or data\.time_zo"
    ):
        read_interactions(path, dialect=BERLIN)


@pytest.mark.parametrize("name", ["u.data", "r.dat", "train.txt"])
def test_files_without_names_of_columns_take_none(tmp_path, name):
    with pytest.raises(DataError, match=r"have no names; leave out data\.columns"):
        read_interactions(write(tmp_path, name, "1\t2\t3\t4\n"), dialect=OWN)


OFFSETS = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    st.lists(st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=OFFSETS), min_size=1, max_size=5),
    st.sampled_from("T "),
)
def test_any_times_with_an_offset_are_those_that_python_reads(times, between):
    texts = [time.isoformat(between) for time in times]
    assert seconds_of(pa.array(texts), None).tolist() == [
        (time.replace(microsecond=0) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1) for time in times
    ]


@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2037, 1, 1)), st.sampled_from(["Europe/Berlin", "Asia/Kolkata", "UTC"])
)
def test_any_time_of_a_zone_is_the_one_that_python_reads(time, zone):
    local = time.replace(microsecond=0, tzinfo=ZoneInfo(zone))
    if local.astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None) != local.replace(tzinfo=None):
        return  # skipped by clocks
    assert seconds_of(pa.array([time.isoformat()]), zone).tolist() == [int(local.timestamp())]


NEAR = st.text("0123456789-T:+Z., ", max_size=12)
WHOLE = st.sampled_from(
    ["2026-03-01", "2026-03-29T02:30", "2026-03-01T09:30:00", "2026-03-01T09:30:00+0100", "0000-01-01"]
)


@given(WHOLE, NEAR, st.sampled_from([None, "UTC", "Europe/Berlin"]), st.booleans())
def test_near_misses_of_times_are_read_or_told_line_by_line(tmp_path_factory, whole, tail, zone, last):
    rows = [("tea", "ann", 5, "2026-03-01T09:30Z", "x")] if last else []
    path = write(tmp_path_factory.mktemp("near"), "x.tsv", with_time(whole + tail, rows).replace(",", "\t"))
    try:
        result = read_interactions(path, dialect=Dialect({**OWN.columns}, zone))
        assert result.timestamps is not None
    except DataError as error:
        output = str(error)
        assert "cannot be read (" not in output  # the slow pass finds whatever the fast one stumbled over
        assert "\n" not in output
        assert "x.tsv:" in output
