"""The pages' templates, by file name.

They are Python text and not `.html` files because a Flower app bundle takes no `.html`: under `flwr run` the
server must find them too.
"""

from collections.abc import Mapping
from types import MappingProxyType

from simulations.report.templates.base import BASE, NOTEBOOK, PAGE, PARTS
from simulations.report.templates.demo import DEMO
from simulations.report.templates.live import LIVE

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "parts.html": PARTS,
        "base.html": BASE,
        "page.html": PAGE,
        "demo.html": DEMO,
        "notebook.html": NOTEBOOK,
        "live.html": LIVE,
    }
)
