"""Sections by name: every shipped one keeps the contract, one of an installed package is last, one that fails is left
out."""

from importlib.metadata import EntryPoint

import pytest

from fl_peel import plugins
from simulations.report.contracts import SectionContract, example_results
from simulations.report.run_files import run_page
from simulations.report.section import SECTIONS, Section
from tests.simulations.report.test_report import run_result


@pytest.fixture(params=SECTIONS.shipped)
def shipped(request):
    return SECTIONS.get(request.param)


@pytest.mark.usefixtures("undrawn")
class TestShipped(SectionContract):
    results = (*example_results(), run_result())

    @pytest.fixture(autouse=True)
    def one_of_them(self, shipped, monkeypatch):
        monkeypatch.setattr(type(self), "section", staticmethod(shipped), raising=False)


def added(result):
    return Section("added", "Added", ["of an installed package"])


def broken(result):
    raise ZeroDivisionError("no devices")


@pytest.mark.usefixtures("undrawn")
def test_sections_of_installed_packages_come_last_and_cost_no_report(monkeypatch, caplog):
    points = [EntryPoint(name, f"{__name__}:{name}", SECTIONS.group) for name in ("added", "broken", "missing")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == SECTIONS.group else [])
    text = run_page(run_result())
    assert text.index('<section id="costs">') < text.index('<section id="added">') < text.index('id="reproduce"')
    assert "of an installed package" in text
    assert [record.message for record in caplog.records] == [
        "the section 'broken' is left out of the report: ZeroDivisionError: no devices",
        *(record.message for record in caplog.records if "'missing'" in record.message),
    ]
    assert len(caplog.records) == 2
