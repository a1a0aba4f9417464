"""Pages made again from their JSON: the same ones, and nothing else is touched."""

import json

import pytest

from fl_peel.errors import ReportError
from simulations.report.result_files import write_results
from simulations.result_pages import rebuild_pages
from simulations.studies.compare_report import COMPARE
from tests.helpers.reports import write_report
from tests.simulations.report.test_report import compare_result, run_result


@pytest.mark.usefixtures("undrawn")
def test_pages_are_made_again_and_nothing_else_is_touched(tmp_path):
    write_report(run_result(), tmp_path)
    write_results(tmp_path, COMPARE.contents(compare_result()))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for name in ("report.html", "compare.html"):
        (tmp_path / name).write_text("of an older version")
    assert rebuild_pages(tmp_path) == [tmp_path / "report.html", tmp_path / "compare.html"]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def write_audit_json(folder):
    attack = {"secret": "items", "devices": 3, "candidates": 9}
    attack |= {"advantage": 0.3, "advantage_low": 0.2, "advantage_high": 0.4}
    row = {"mechanism": "none", "view": "rows", "epsilon": None, "delta": None, "share": 0.01}
    row |= {"recall@20": 0.2, "ndcg@20": 0.1}
    row |= {"recall@20_interval": [0.19, 0.21], "attacks": {"gradient": attack}}
    plain = {"scenario": {"name": "tiny"}, "settings": {"devices": 4, "rounds": 2}, "collected_share": 1.0}
    (folder / "audit.json").write_text(json.dumps(plain | {"rows": [row, row | {"mechanism": "masks"}]}))


def test_an_audit_has_its_page_again_with_intervals_drawn(tmp_path):
    write_audit_json(tmp_path)
    rebuild_pages(tmp_path)
    page = (tmp_path / "audit.html").read_text()
    assert page.count('class="tip"') == 2 * 4  # wide, narrow; an attack and recall of two mechanisms
    assert "<title>masks, gradient: 0.300 ±0.100</title>" in page
    assert page.count("LineCollection") == 2 * 4


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("--format pdf --width column", b"/MediaBox [ 0 0 244.8 "),  # 3.4 inches
        ("--format svg --width page", b'width="504pt"'),
        ("--format png --width 5", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x05\xdc"),  # 1,500 pixels
    ],
)
def test_a_figure_is_saved_for_a_paper(words, size, command_line, tmp_path):
    write_audit_json(tmp_path)
    code, out, _ = command_line("plot", str(tmp_path), "--figure", "audit", *words.split())
    file = tmp_path / "figures" / f"audit.{words.split()[1]}"
    assert (code, out) == (0, f"figure: {file}\n")
    content = file.read_bytes()
    assert size in content
    command_line("plot", str(tmp_path), "--figure", "audit", *words.split())
    assert file.read_bytes() == content
    assert {file.name for file in tmp_path.iterdir()} == {"audit.json", "figures"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--figure audits", "no figure 'audits'; did you mean 'audit'?"),
        ("--format gif", "Invalid value for '--format': 'gif' is not one of 'svg', 'pdf', 'png'"),
        ("--width nan", "--width: 'nan' is no width; give column, page, or 2 to 20 inches"),
        ("--width wide", "--width: 'wide' is no width"),
    ],
)
def test_a_figure_that_there_is_not_is_one_line(words, message, command_line, tmp_path):
    write_audit_json(tmp_path)
    code, _, err = command_line("plot", str(tmp_path), *words.split())
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("notes.txt", "", r"no result \(report.json, compare.json, .*, ablate.json, sweep.json\)"),
        ("report.json", "{", "report.json: cannot read a result"),
        ("report.json", "{}", "report.json: scenario: is missing"),
        ("compare.json", '{"tuning": {}}', "compare.json: .*is missing"),
        ("timeline.json", "{}", "timeline.json: .*is missing"),
        ("audit.json", "[]", "audit.json: .*must be a mapping"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ReportError, match=message) as caught:
        rebuild_pages(tmp_path)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == [name]
