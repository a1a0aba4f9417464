"""YAML of users: plain data within bounds, or one fault with its line, however the text was made to hurt."""

import os
import tracemalloc

import pytest

from fl_peel import problems as safe_yaml
from fl_peel.errors import MAX_MESSAGE, FlPeelError, shortened
from fl_peel.problems import MAX_YAML_BYTES, YamlFault, kind_of, read_yaml, read_yaml_file


def unfolding(first, one):
    """A short text that says ten of the one before, seven times."""
    return f"a0: &a0 {first}\n" + "".join(f"a{n}: &a{n} {one(f'*a{n - 1}')}\n" for n in range(1, 8))


FAULTS = {
    "45th of a month": ("x: 1\ny: 2020-13-45", ":2", "not valid YAML: '2020-13-45' is no valid timestamp; quote it"),
    "no timestamp": ("!!timestamp x", ":1", "'x' is no valid timestamp"),
    "an offset of four days": ("2020-01-01T00:00:00+99:99", ":1", "is no valid timestamp"),
    "no int": ("!!int foo", ":1", "'foo' is no valid int"),
    "an int without digits": ("0x_", ":1", "'0x_' is no valid int"),
    "no float": ("!!float abc", ":1", "'abc' is no valid float"),
    "no bool": ("!!bool x", ":1", "'x' is no valid bool"),
    "digits": ("9" * 5000, ":1", "a number of 5000 characters; at most 1000"),
    "hexadecimal digits": ("0x" + "f" * 5000, ":1", "a number of 5002 characters"),
    "sixties": ("1" + ":59" * 5000, ":1", "a number of 15001 characters"),
    "deep lists": ("[" * 3000, "", "nested too deeply"),
    "deep mappings": ("{a: " * 3000, "", "nested too deeply"),
    "deep dashes": ("- " * 3000 + "x", "", "nested too deeply"),
    "deep by anchors": (
        "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 99)).replace("*a0", ""),
        "",
        "too deeply",
    ),
    "within itself": ("&a [*a]", "", "nested too deeply"),
    "unfolds": (unfolding("[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", lambda was: f"[{', '.join([was] * 10)}]"), "", "anchors"),
    "unfolds in pairs": (
        unfolding("[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", lambda was: f"!!pairs [{', '.join([f'x: {was}'] * 10)}]"),
        "",
        "has more than 100000 entries once its anchors are followed",
    ),
    "a key twice": ("a: 1\nb: {c: 1, c: 2}", ":2", "the key 'c' is there twice"),
    "a long key twice": (f"? {'k' * 5000}\n: 1\n? {'k' * 5000}\n: 2", ":3", "the key 'kkkk"),
    "Python": ("!!python/object/apply:os.getcwd []", ":1", "not valid YAML: could not determine a constructor"),
    "zeros": ("\0", "", "unacceptable character"),
    "two documents": ("a: 1\n---\nb: 1", ":2", "but found another document"),
    "long": (" " * (MAX_YAML_BYTES + 1), "", "has 1048577 characters"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_would_hurt_is_one_fault(what):
    text, line, message = FAULTS[what]
    tracemalloc.start()
    with pytest.raises(YamlFault) as caught:
        read_yaml(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.line == line
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 200
    assert peak < 400e6


def test_entries_are_counted_as_they_are_read(monkeypatch):
    """With a tenth of the bound, and of the memory: to read as many as the bound allows takes ten seconds."""
    assert safe_yaml.MAX_ENTRIES == 100_000
    monkeypatch.setattr(safe_yaml, "MAX_ENTRIES", 10_000)
    text = "[" + "1," * 10_000 + "]"
    assert len(read_yaml(text.replace("1,", "", 2))) == 9_998
    tracemalloc.start()
    with pytest.raises(YamlFault, match=r"^has more than 10000 entries$"):
        read_yaml(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


def test_anchors_and_merges_are_understood():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {d: {<<: *a, x: 4}}"
    assert read_yaml(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"d": {"x": 4, "y": 2}}}


def test_merges_are_counted_before_they_are_carried_out():
    """Whether PyYAML itself leaves out what is there already, as it does since 6.0.4, or not."""
    text = unfolding("{" + ", ".join(f"k{n}: 1" for n in range(2500)) + "}", "{{<<: [{0}, {0}, {0}, {0}, {0}]}}".format)
    with pytest.raises(YamlFault, match="has more than 100000 entries once its merges are carried out"):
        read_yaml(text)


def test_files_with_a_mark_of_byte_order_and_line_ends_of_windows(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_yaml_file(tmp_path / "x.yaml") == {"a": 1, "b": 2}


def test_what_is_no_file_of_text(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_bytes(b" " * (MAX_YAML_BYTES + 1))
    (tmp_path / "latin").write_bytes("a: 1\nb: é".encode("latin-1"))
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(YamlFault, match="is a folder, a pipe or a device, and no file of text"):
            read_yaml_file(tmp_path / path)
    with pytest.raises(YamlFault, match="has more than 1048576 bytes"):
        read_yaml_file(tmp_path / "long")
    with pytest.raises(YamlFault, match="is not UTF-8 text") as caught:
        read_yaml_file(tmp_path / "latin")
    assert caught.value.line == ":2"


def test_values_are_named_in_a_few_words():
    assert kind_of({"a": 1}) == "a mapping"
    assert kind_of([[[1]]]) == kind_of({1}) == "a list"
    assert kind_of(10**5000) == "a huge number"
    assert kind_of(None) == "nothing"
    assert len(kind_of("x" * 10**6)) == 60
    assert kind_of(read_yaml("2020-01-02")) == "the date 2020-01-02; quote it if it is text"


def test_no_message_is_longer_than_a_screen():
    output = str(FlPeelError("begin " + "x" * 10**6 + " remedy"))
    assert len(output) == MAX_MESSAGE
    assert (output[:6], output[-7:]) == ("begin ", " remedy")
    assert shortened("short", 5) == "short"
