"""Tables in a terminal of 80 columns, and in a pipe."""

import pytest

from simulations.cli.console import print_table
from simulations.report.table_view import TableView

NUMBERS = ("0.1234 [0.1111, 0.1357]", "123,456.7", "1.234 [1.111, 1.357]", "9.99 GB", "0.5", "12,345", "0.0001")
NAMES = ("recall", "budget KB", "relative to the best", "down", "share", "devices", "p (Holm)")
VIEW = TableView("T", ("method", *NAMES), (("a method of a long name", *NUMBERS),) * 2, brief=("share",))


def printed(capsys, view, **how) -> str:
    print_table(view, **how)
    return capsys.readouterr().out


@pytest.mark.parametrize("terminal", [True, False])
def test_at_80_columns_at_most_six_columns_and_no_digit_is_cut(capsys, monkeypatch, terminal):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    text = printed(capsys, VIEW)
    assert max(len(line) for line in text.splitlines()) <= 80
    shown = [number for number in NUMBERS if number in text]
    assert shown == [*NUMBERS[:2], NUMBERS[4], NUMBERS[5]] or len(shown) <= 5
    assert NUMBERS[4] in shown, "a column that is named comes first"
    hidden = len(NUMBERS) - len(shown)
    assert f"{hidden} more columns: --wide." in " ".join(text.split())


def test_wide_shows_all(capsys):
    text = printed(capsys, VIEW, wide=True)
    assert all(name in text for name in (*NAMES, *NUMBERS))
    assert "--wide" not in text


def test_a_table_that_fits_is_whole(capsys):
    small = TableView("T", NAMES[:3], (NUMBERS[:3],) * 2)
    assert "--wide" not in printed(capsys, small)
