"""A SuperNode starts its ClientApp anew for every message: what that loads is waited for each time."""

from tests.helpers.light import loaded_by


def test_a_client_app_loads_nothing_that_the_server_alone_needs():
    later = {"dp_accounting", "ray", "scipy.linalg", "scipy.special", "sklearn", "torch"}
    assert not loaded_by("import clients.client_app") & later
