"""Files whose columns have names of their own, and times as ISO 8601."""

import math
import os
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.data.readers import read_interactions, read_titles
from fl_peel.data.timeline import local_seconds, seconds_of
from fl_peel.errors import DataError
from fl_peel.scenario.settings import Dialect


def rows_of(user_items):
    return [user_items.row(user).tolist() for user in range(user_items.num_users)]


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def everything(data):
    """All that an Interactions value says, comparable."""
    times = None if data.timestamps is None else data.timestamps.tolist()
    given_test = None if data.given_test is None else rows_of(data.given_test)
    return rows_of(data.pairs), data.num_items, times, given_test, data.user_labels, data.item_labels


# users 10, 2, 7 and items 30, 4: sorted by value, user 2 -> 0, 7 -> 1, 10 -> 2; item 4 -> 0, 30 -> 1
SAMPLE = [(10, 30, 5, 100), (2, 30, 1, 300), (10, 4, 3, 50), (7, 4, 4, 200), (2, 4, 2, 400)]
SAMPLE_ROWS = [[1, 0], [0], [0, 1]]
SAMPLE_TIMES = [300, 400, 200, 50, 100]
U_DATA = "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in SAMPLE)
HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("titles.csv", b'item,title\n7,"Heat, the film"\n8,Se7en\n9,\n'),
        ("movies.csv", b'\xef\xbb\xbfmovieId,title,genres\n7,"Heat, the film",Crime\n8,Se7en,Crime\n'),
        ("titles.tsv", b"name\titem_id\nHeat, the film\t7\nSe7en\t8\n"),
        ("ml.item", b"item_id:token\tmovie_title:token_seq\n7\tHeat, the film\n8\tSe7en\n"),
        ("u.item", b"7|Heat, the film|1995||\n8|Se7en|1995|\xe9|\n"),
        ("movies.dat", b"7::Heat, the film::Crime\n8::Se7en::Crime\n"),
    ],
)
def test_titles_are_read_by_id(tmp_path, name, content):
    assert read_titles(write(tmp_path, name, content)) == {"7": "Heat, the film", "8": "Se7en"}


def test_a_file_without_titles_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"titles.csv:1: no item or no title column among 'sku', 'title'; name them"):
        read_titles(write(tmp_path, "titles.csv", "sku,title\n1,a\n"))


def read_or_hear(path):
    """The interactions, or the message of the DataError; anything else goes up."""
    try:
        return read_interactions(path), ""
    except DataError as error:
        return None, str(error)


def sample_parquet(path):
    users, items, ratings, times = zip(*SAMPLE, strict=True)
    pq.write_table(pa.table({"user": users, "item": items, "rating": ratings, "timestamp": times}), path)
    return path


SAMPLE_FILES = {
    "u.data": U_DATA,
    "ratings.dat": U_DATA.replace("\t", "::"),
    "x.inter": HEADER + U_DATA,
    "windows.inter": (HEADER + U_DATA).replace("\n", "\r\n"),
    "marked_windows.data": b"\xef\xbb\xbf" + U_DATA.replace("\n", "\r\n").encode(),
    "no_last_newline.data": U_DATA.rstrip("\n"),
    "marked.csv": b"\xef\xbb\xbfuser,item,rating,timestamp\n" + U_DATA.replace("\t", ",").encode(),
    "aliases.csv": "when,time,Item_Id,userId,rating\n" + "".join(f"x,{t},{i},{u},{r}\n" for u, i, r, t in SAMPLE),
    "quoted.csv": 'user,item,rating,timestamp\n"10","30",5,100\n' + U_DATA.replace("\t", ",").split("\n", 1)[1],
    "float_times.csv": "user,item,rating,timestamp\n" + "".join(f"{u},{i},{r},{t}.75\n" for u, i, r, t in SAMPLE),
    "x.tsv": "user\titem\trating\ttimestamp\n" + U_DATA,
    "blank_lines.data": U_DATA.replace("\n", "\n\n"),
}


@pytest.mark.parametrize("name", SAMPLE_FILES)
def test_every_text_format_gives_the_same_interactions(tmp_path, name):
    data = read_interactions(write(tmp_path, name, SAMPLE_FILES[name]))
    assert everything(data) == (SAMPLE_ROWS, 2, SAMPLE_TIMES, None, ("2", "7", "10"), ("4", "30"))


def test_parquet_gives_the_same_interactions(tmp_path):
    data = read_interactions(sample_parquet(tmp_path / "x.parquet"))
    assert everything(data) == (SAMPLE_ROWS, 2, SAMPLE_TIMES, None, ("2", "7", "10"), ("4", "30"))


def test_parquet_with_text_ids_and_arrow_timestamps(tmp_path):
    users = pa.array(["b", "a", "b"]).dictionary_encode()
    times = pa.array([2_500, 1_000, 1_999], pa.timestamp("ms", "UTC"))
    pq.write_table(pa.table({"user_id": users, "item_id": ["y", "x", "x"], "time": times}), tmp_path / "x.pq")
    data = read_interactions(tmp_path / "x.pq")
    # a -> 0, b -> 1; 1.999 s is second 1, before second 2
    assert everything(data) == ([[0], [0, 1]], 2, [1, 1, 2], None, ("a", "b"), ("x", "y"))


def test_names_come_from_the_file_or_its_folder(tmp_path):
    assert read_interactions(write(tmp_path, "ml/u.data", U_DATA)).name == "ml"
    assert read_interactions(write(tmp_path, "toys.inter", HEADER + U_DATA)).name == "toys"
    assert read_interactions(write(tmp_path, "shop/train.txt", "0 1\n")).name == "shop"
    assert read_interactions(tmp_path / "toys.inter", name="mine").name == "mine"


def test_format_can_be_set(tmp_path):
    path = write(tmp_path, "ratings.log", U_DATA)
    assert rows_of(read_interactions(path, format="movielens-tab").pairs) == SAMPLE_ROWS


def test_labels_that_are_not_all_integers_sort_as_text(tmp_path):
    data = read_interactions(write(tmp_path, "x.csv", "user,item\nb,10\na,9\n10,x\n9,9\n"))
    assert data.user_labels == ("10", "9", "a", "b")
    assert data.item_labels == ("10", "9", "x")
    assert data.timestamps is None


@given(st.permutations(SAMPLE))
def test_line_order_cannot_matter(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("order")
    path = write(folder, "x.inter", HEADER + "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in lines))
    data = read_interactions(path)
    assert everything(data) == (SAMPLE_ROWS, 2, SAMPLE_TIMES, None, ("2", "7", "10"), ("4", "30"))


def test_min_rating_keeps_ratings_that_reach_it_and_numbers_who_is_left(tmp_path):
    # ratings >= 3: (10, 30) at 100, (10, 4) at 50, (7, 4) at 200; user 2 is gone: 7 -> 0, 10 -> 1
    data = read_interactions(write(tmp_path, "u.data", U_DATA), min_rating=3)
    assert everything(data) == ([[0], [0, 1]], 2, [200, 50, 100], None, ("7", "10"), ("4", "30"))


def test_repeated_pair_keeps_its_first_time(tmp_path):
    data = read_interactions(write(tmp_path, "x.csv", "user,item,time\n1,5,30\n1,6,20\n1,5,10\n"))
    assert (rows_of(data.pairs), data.timestamps.tolist()) == ([[0, 1]], [10, 20])


def test_repeated_pair_without_times_keeps_its_first_line(tmp_path):
    data = read_interactions(write(tmp_path, "x.csv", "user,item\n1,6\n1,5\n1,6\n"))
    assert rows_of(data.pairs) == [[1, 0]]


def test_rating_filter_comes_before_the_first_of_a_repeated_pair(tmp_path):
    text = "user,item,rating,time\n1,5,2,10\n1,5,4,20\n"
    data = read_interactions(write(tmp_path, "x.csv", text), min_rating=3)
    assert data.timestamps.tolist() == [20]


def test_test_file_shares_the_numbers_and_never_repeats_train(tmp_path):
    train = write(tmp_path, "train.csv", "user,item\nb,x\nc,y\n")
    test = write(tmp_path, "test.csv", "user,item\na,w\nb,x\nb,w\n")
    data = read_interactions(train, test_path=test)
    # a, b, c -> 0, 1, 2; w, x, y -> 0, 1, 2; (b, x) is a train pair
    assert rows_of(data.pairs) == [[], [1], [2]]
    assert rows_of(data.given_test) == [[0], [0], []]


# --- LightGCN lists --------------------------------------------------------------------------------------------


def test_lists_keep_their_numbers(tmp_path):
    write(tmp_path, "train.txt", "0 5 3\n2 0 \n1\n")
    write(tmp_path, "test.txt", "0 4\n2 \n3 6 6\n")
    data = read_interactions(tmp_path)
    assert rows_of(data.pairs) == [[5, 3], [], [0], []]
    assert rows_of(data.given_test) == [[4], [], [], [6]]
    assert (data.num_items, data.timestamps, data.user_labels) == (7, None, ())


def test_one_list_alone_has_no_given_test(tmp_path):
    path = write(tmp_path, "train.txt", b"\xef\xbb\xbf1 2\r\n\r\n0\t1 1 0\r\n1 3 2")
    data = read_interactions(path)
    assert (rows_of(data.pairs), data.given_test, data.num_items) == ([[1, 0], [2, 3]], None, 4)
    both = read_interactions(path, test_path=write(tmp_path, "held_out.txt", "0 3\n1 2\n"))
    assert rows_of(both.given_test) == [[3], []]  # (1, 2) is a train pair


# --- what can be wrong -----------------------------------------------------------------------------------------

BAD_FILES = [
    ("u.data", "", r"u\.data: the file is empty; it should"),
    ("u.data", b"\xef\xbb\xbf\n", "the file is empty"),
    ("u.data", "1\t2\t3\t4\n1\t2\t3\n", r"u\.data:2: 3 fields where 4 belong \(user, item, rating, timestamp\)"),
    ("u.data", "1\t2\t3\t4\nbob\t2\t3\t4\n", r"u\.data:2: user is 'bob', not an integer"),
    ("u.data", "1\t2\t3\t4\n1\t2.0\t3\t4\n", r"u\.data:2: item is '2\.0', not an integer"),
    ("u.data", "1\t2\t3\t4\n1\t-2\t3\t4\n", r"u\.data:2: item is negative \(-2\)"),
    ("u.data", "1\t2\t3\t4\n1\t\t3\t4\n", r"u\.data:2: item is missing"),
    ("u.data", "1\t2\tgood\t4\n", r"u\.data:1: rating is 'good', not a number"),
    ("u.data", "1\t2\t3\tnan\n", r"u\.data:1: timestamp is 'nan', not a number"),
    ("u.data", "1\t2\t3\t1e999\n", r"u\.data:1: timestamp is '1e999', out of range"),
    ("u.data", b"1\t2\t3\t4\n1\t\xff\t3\t4\n", r"u\.data:2: not UTF-8 text"),
    ("ratings.dat", "1::2::3::4\n1::2::3\n", r"ratings\.dat:2: 3 fields where 4 .* split at '::'"),
    ("x.inter", "user_id:token\trating:float\n1\t2\n", r"x\.inter:1: no item column among 'user_id', 'rating'"),
    ("x.inter", U_DATA, r"x\.inter:1: '10' has no type; head the columns like user_id:token"),
    ("x.inter", HEADER, r"x\.inter: names its columns and holds no interaction"),
    ("x.inter", b"\xff:token\n", r"x\.inter:1: not UTF-8"),
    ("x.csv", "user,item,user_id\n1,2,3\n", r"x\.csv:1: 'user' and 'user_id' both name the user; keep one"),
    ("x.csv", "user,item\n1,2\n,3\n", r"x\.csv:3: user is missing"),
    ("x.csv", 'user,item\n"1",2\n"3,4\n', r"x\.csv:3: unexpected end of data; correct the quotes"),
    ("x.csv", 'user,item,note\n1,2,"two\nlines"\n1,2\n', r"x\.csv:4: 2 fields where 3"),
    ("x.csv", "user,item,time\n1,2,soon\n", r"x\.csv:2: timestamp is 'soon', not a number of seconds or a time like 2"),
    ("x.csv", "user,item\n1,2\n1,nan\n", r"x\.csv:3: item is 'nan', which stands for no id; leave out such rows"),
    ("x.csv", f"user,item\n1,2\n{'9' * 5000},2\n", r"x\.csv:3: user has 5000 characters, ids at most 1000; shorten it"),
    ("x.csv", f"user,item\n1,2\n{'x' * 10**7}\n", r"x\.csv:3: field larger than field limit"),
    ("x.csv", "x" * 10**7, r"x\.csv:1: field larger than field limit"),
    ("x.csv", ",".join(map(str, range(10**5))) + "\n1\n", r"x\.csv:1: no user column among '0', .*; its first line"),
    ("x.csv", "user,item,rating\n1,2,3\n1,3,nan\n", r"x\.csv:3: rating is 'nan', not a number"),
    ("u.data", f"1\t2\t3\t4\n1\t{'x' * 10**6}\t3\t4\n", r"u\.data:2: item is 'xxx.*, not an integer"),
    ("train.txt", f"0 1\n0 {'9' * 10**6}\n", r"train\.txt:2: item has 1000000 characters, ids at most 1000"),
    ("train.txt", " \n\n", r"train\.txt: the file is empty"),
    ("train.txt", "0\n1\n", r"train\.txt: names users and holds no interaction"),
    ("train.txt", "0 1 2\n1 x 3\n", r"train\.txt:2: item is 'x', not an integer"),
    ("train.txt", "0 1 2\n-1 3\n", r"train\.txt:2: user is negative \(-1\)"),
    ("train.txt", b"0 1\n1 \xff\n", r"train\.txt:2: not UTF-8"),
    ("train.txt", "0 1\n1 2147483648\n", r"train\.txt:2: item 2147483648 is above 2147483647"),
    ("train.txt", "0 1\n1 2000000000\n", r"train\.txt: item 2000000000 occurs and only 2 items are used; number ids"),
    ("notes.xyz", "1 2", r"notes\.xyz: its name does not reveal the format; set one of movielens-tab, "),
    ("x.parquet", b"PAR1 and then nothing", r"x\.parquet: not a whole Parquet file \(.*; write or copy it again"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_malformed_files_are_one_clear_line(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_interactions(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 500


@pytest.mark.parametrize("name", ["u.data", "x.csv", "x.parquet", "train.txt", "unknown"])
def test_missing_files(tmp_path, name):
    with pytest.raises(DataError, match="no such file; check the path"):
        read_interactions(tmp_path / name)


@pytest.mark.parametrize("name", ["u.data", "x.parquet"])
def test_folder_in_place_of_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"is a folder without train\.txt; name the interactions file inside"):
        read_interactions(tmp_path / name)
    with pytest.raises(DataError, match="is a folder; name the file inside it"):
        read_interactions(tmp_path / name, format="parquet" if "parquet" in name else "movielens-tab")


@pytest.mark.parametrize("format", ["csv", "lightgcn", "movielens-tab", "parquet"])
def test_what_may_never_end_is_told_without_waiting(tmp_path, format):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(DataError, match="is a pipe or a device; write its output to a"):
            read_interactions(path, format=format)
    with pytest.raises(DataError, match="no such file; check the path"):
        read_interactions("a" * 5000, format=format)


def test_folder_without_test_list(tmp_path):
    write(tmp_path, "train.txt", "0 1\n")
    with pytest.raises(DataError, match=r"test\.txt: no such file; add it, or name .*train\.txt alone"):
        read_interactions(tmp_path)


def test_bad_line_of_the_test_list_names_that_file(tmp_path):
    write(tmp_path, "train.txt", "0 1\n")
    write(tmp_path, "test.txt", "0 1\n0 ?\n")
    with pytest.raises(DataError, match=r"test\.txt:2: item is '\?'"):
        read_interactions(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": [1], "thing": [2]}, "no item column among 'user', 'thing'"),
        ({"user": [1.5], "item": [2]}, "user column is double; store ids as integers or text"),
        ({"user": [1, None], "item": [2, 3]}, "row 2: user is missing"),
        ({"user": [1, 2], "item": [2, -3]}, r"row 2: item is negative \(-3\)"),
        ({"user": [1, 2], "item": [2, 3], "time": [1.0, float("nan")]}, "row 2: timestamp is nan; store a finite"),
        ({"user": [1, 2], "item": [2, 3], "time": [1, None]}, "row 2: timestamp is missing"),
        ({"user": [1], "item": [2], "time": pa.array([2**64 - 1], pa.uint64())}, "row 1: timestamp is 1844674407"),
        ({"user": [1], "item": [2], "time": ["now"]}, "row 1: timestamp is 'now', not a number of seconds or a time"),
        ({"user": [1], "item": [2], "time": [True]}, "timestamp column is bool; store it as numbers"),
        ({"user": [1], "item": [2], "rating": [float("inf")]}, "row 1: rating is inf"),
        ({"user": pa.array([], pa.int64()), "item": pa.array([], pa.int64())}, "holds no interaction"),
    ],
)
def test_malformed_parquet(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=message):
        read_interactions(tmp_path / "x.parquet")


def test_rating_options_that_cannot_be_met(tmp_path):
    path = write(tmp_path, "u.data", U_DATA)
    with pytest.raises(DataError, match=r"no rating reaches min_rating=6; lower it to 5,"):
        read_interactions(path, min_rating=6)
    with pytest.raises(DataError, match="min_rating is nan"):
        read_interactions(path, min_rating=float("nan"))
    with pytest.raises(DataError, match="has no rating column; leave out min_rating"):
        read_interactions(write(tmp_path, "x.csv", "user,item\n1,2\n"), min_rating=3)
    with pytest.raises(DataError, match="lists have no ratings; leave out min_rating"):
        read_interactions(write(tmp_path, "train.txt", "0 1\n"), min_rating=3)
    with pytest.raises(DataError, match="unknown format 'xml'; choose from auto, movielens-tab"):
        read_interactions(path, format="xml")


@given(st.binary(max_size=60), st.sampled_from(["u.data", "r.dat", "x.inter", "x.csv", "train.txt", "x.parquet"]))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, content, name):
    path = write(tmp_path_factory.mktemp("any"), name, content)
    data, output = read_or_hear(path)
    assert "\n" not in output
    assert output or data.pairs.num_interactions > 0


@given(st.text('01a,\t:-. "\n\r', max_size=30), st.sampled_from(["u.data", "r.dat", "x.inter", "x.csv", "train.txt"]))
def test_near_misses_are_read_or_refused_in_one_line(tmp_path_factory, tail, name):
    head = {"u.data": "1\t2\t3\t4\n", "r.dat": "1::2::3::4\n", "x.inter": HEADER, "x.csv": "user,item\n"}
    path = write(tmp_path_factory.mktemp("near"), name, head.get(name, "0 1\n") + tail)
    _, output = read_or_hear(path)
    assert "cannot be read (" not in output  # the slow pass finds whatever the fast one stumbled over


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
    (with_time("2026-03-01"), OWN, r"x\.csv:2: bought_at \(timestamp\) is 2026-03-01, without a time zone; set data"),
    (with_time("2026-03-01T09:30", ROWS), OWN, r":5: bought_at \(timestamp\) is 2026-03-01T09:30, without a time zo"),
    (with_time("2026-02-30"), BERLIN, r":2: bought_at \(timestamp\) is 2026-02-30, which is no date of the calendar"),
    (with_time("2026-02-30T10:00Z"), OWN, ":2: .* which is no date of the calendar; correct"),
    (with_time("2026-03-29T02:30:00"), BERLIN, ":2: .* is 2026-03-29T02:30:00, which clocks in Europe/Berlin skipped;"),
    (with_time("1772353800", ROWS), OWN, ":5: .* is '1772353800', and times before it are dates; write all of them"),
    (with_time("2026-03-01", [("a", "b", 1, 17, "x")]), BERLIN, ":3: .* is 2026-03-01, and times before it are num"),
    (with_time("", ROWS), OWN, r":5: bought_at \(timestamp\) is '', not a number of seconds or a time like 2026-"),
    (with_time("03/01/2026"), OWN, r":2: bought_at \(timestamp\) is '03/01/2026', not a number of seconds or a time"),
    (text([("", "ann", 5, "3", "x")]), OWN, r":2: sku \(item\) is missing"),
    (text([("tea", "ann", "many", "3", "x")]), OWN, r":2: stars \(rating\) is 'many', not a number; correct"),
    (text(), Dialect({"user": "custommer"}), r"x\.csv:1: no column 'custommer'; correct data\.columns\.user: did you"),
    (text(), Dialect({"timestamp": "when"}), r"x\.csv:1: no column 'when'; correct data\.columns\.time: known: sku,"),
    ("user,item,user\n1,2,3\n", Dialect({"user": "user"}), r"x\.csv:1: 2 columns are called 'user', which data\.col"),
    ("customer,item\n1,2\n", None, r"no user column among .*; call it user or user_id, or give its name as data\.c"),
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
