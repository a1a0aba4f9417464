"""The pages' templates, by file name.

They are Python text and not `.html` files because a Flower app bundle takes no `.html`: under `flwr run` the
server must find them too.
"""

from collections.abc import Mapping
from types import MappingProxyType

from simulations.report.templates.ablate import ABLATE
from simulations.report.templates.audit import AUDIT
from simulations.report.templates.base import BASE, PARTS
from simulations.report.templates.compare import COMPARE
from simulations.report.templates.demo import DEMO
from simulations.report.templates.leaderboard import LEADERBOARD
from simulations.report.templates.live import LIVE
from simulations.report.templates.notebook import NOTEBOOK
from simulations.report.templates.report import REPORT
from simulations.report.templates.sweep import SWEEP
from simulations.report.templates.tables import TABLES
from simulations.report.templates.timeline import TIMELINE

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "parts.html": PARTS,
        "base.html": BASE,
        "report.html": REPORT,
        "compare.html": COMPARE,
        "demo.html": DEMO,
        "leaderboard.html": LEADERBOARD,
        "ablate.html": ABLATE,
        "audit.html": AUDIT,
        "notebook.html": NOTEBOOK,
        "sweep.html": SWEEP,
        "live.html": LIVE,
        "tables.html": TABLES,
        "timeline.html": TIMELINE,
    }
)
