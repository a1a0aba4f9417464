"""Every shipped scenario of ML-100K and each kind of study give the figures that are committed, to the last digit."""

import subprocess
import sys

import pytest

from tests.golden.run import REPORTS, other_versions
from tests.helpers.root import ROOT

LIMIT_S = 1800
pytestmark = pytest.mark.slow


def python(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)


@pytest.fixture(scope="module")
def compared():
    """`make golden`, with the caches and the data folder that are the user's: other fixtures change them later."""
    if different := other_versions(REPORTS):
        pytest.skip("; ".join(different))
    fetched = python("-m", "simulations.cli.main", "data", "fetch", "ml-100k")
    if fetched.returncode:
        pytest.skip(fetched.stderr.strip())
    return python("-m", "tests.golden")


def test_figures_are_those_that_are_committed(compared):
    assert compared.returncode == 0, compared.stdout + compared.stderr
