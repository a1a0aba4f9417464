"""A run's page while it is under way: on loopback alone, all events in order, gone with the run."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from fl_peel.events import Event
from simulations.cli.console import shown_at
from simulations.live import EventLog, live
from tests.helpers.browser import browser, needs_chromium


def asked(address: str, host: str | None = None) -> tuple[int, str]:
    """Status and text."""
    request = urllib.request.Request(address, headers={} if host is None else {"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_events_are_told_from_where_one_left_off():
    with live(0, "tiny <run>") as (address, tell):
        assert address.startswith("http://127.0.0.1:")
        tell(Event("data", 1, 1))
        tell(Event("refinement", 1, 8, "loss 0.5"))
        events = json.loads(asked(f"{address}events")[1])
        assert [(one["stage"], one["done"], one["total"], one["text"]) for one in events["events"]] == [
            ("data", 1, 1, ""),
            ("refinement", 1, 8, "loss 0.5"),
        ]
        assert (events["next"], events["ended"]) == (2, False)
        tell(Event("refinement", 2, 8))
        later = json.loads(asked(f"{address}events?since=2")[1])
        assert [one["done"] for one in later["events"]] == [2]
        assert json.loads(asked(f"{address}events?since=-1")[1])["next"] == 3
        status, page = asked(address)
        assert status == 200
        assert "tiny &lt;run&gt;: running" in page
        assert asked(f"{address}else")[0] == 404
    with pytest.raises(urllib.error.URLError):
        asked(address)  # gone with the run


def test_pages_from_elsewhere_are_told_nothing():
    """Whatever name they gave this machine."""
    with live(0, "tiny") as (address, _):
        assert asked(f"{address}events", host="example.org")[0] == 403
        assert asked(f"{address}events", host="localhost:1")[0] == 200


def test_figures_that_an_event_carries_are_told():
    @dataclass(frozen=True)
    class Measured(Event):
        figures: dict[str, float] = field(default_factory=dict)

    events = EventLog()
    events(Measured("refinement", 1, 2, figures={"refinement/loss": 0.5}))
    assert events.since(0)["events"][0]["figures"] == {"refinement/loss": 0.5}


def test_the_end_waits_for_those_who_look_and_for_nobody_else():
    now = [0.0]
    events = EventLog(lambda: now[0])
    events.end()  # at once: nobody has asked
    assert events.since(0)["ended"]


def test_the_terminal_and_the_page_are_told_the_same(capsys):
    console = Console(stderr=True, highlight=False, width=200)
    with shown_at(console, port=0, title="tiny") as tell:
        tell(Event("data", 1, 1, "read"))
        output = capsys.readouterr().err
        address = output.split("live: ")[1].split()[0]
        assert "data: read" in output
        assert json.loads(asked(f"{address}events")[1])["next"] == 1
    with shown_at(console, port=None, title="tiny") as tell:
        tell(Event("data", 1, 1, "read"))
    assert "live:" not in capsys.readouterr().err


@needs_chromium
def test_the_page_grows_with_the_run_and_says_when_it_has_ended(tmp_path):
    wait = "new Promise((done) => {{ const look = () => ({0}) ? done(true) : setTimeout(look, 50); look(); }})"
    with browser(tmp_path) as page:
        with live(0, "tiny") as (address, tell):
            tell(Event("data", 1, 1))
            page.ask("Page.navigate", url=address)
            assert page.tell(wait.format("document.querySelectorAll('#stages tbody tr').length === 1"))
            tell(Event("refinement", 3, 8, "loss <b>0.5</b>"))
            assert page.tell(wait.format("document.querySelectorAll('#stages tbody tr').length === 2"))
            row = page.tell("document.querySelectorAll('#stages tbody tr')[1].innerText")
            assert row.split("\t")[0] == "refinement"
            assert row.split("\t")[2:] == ["3 of 8", "loss <b>0.5</b>"]
            assert page.tell("document.querySelector('#steps li').innerText").endswith(
                "refinement 3 of 8, loss <b>0.5</b>"
            )
        assert page.tell(wait.format("document.querySelector('.lead').innerText.includes('has ended')"))
        assert not page.complaints
