"""An address that is none, or of somebody who is no Ray, is one line at the start, within seconds."""

import socket
import time

import pytest

from fl_peel.errors import EngineError
from simulations.engine import ray_engine
from simulations.engine.inputs import checked
from simulations.engine.ray_engine import require_cluster


@pytest.mark.parametrize(
    "address", ["nonsense", "ray://", "ray://host", "host:port", ":6379", "host:99999", "http://h:80"]
)
def test_what_is_no_address_is_refused(tiny_scenario, address):
    engine = tiny_scenario.engine.model_copy(update={"ray_address": address})
    with pytest.raises(
        EngineError, match="is not an address of a Ray cluster; write HOST:PORT, ray://HOST:PORT or auto"
    ):
        checked(tiny_scenario.model_copy(update={"engine": engine}), None)


def test_ray_looks_for_the_cluster_of_this_machine_itself():
    require_cluster("auto")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_somebody_who_listens_and_says_nothing_is_no_ray(scheme, monkeypatch):
    monkeypatch.setattr(ray_engine, "CONNECT_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        address = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"the server at {address} is not a Ray cluster; correct the address"):
            require_cluster(address)
    assert time.monotonic() - start < 20
