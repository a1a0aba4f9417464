"""Certificates and keys are what TLS and Flower take, readable by their owner alone, and never replaced."""

import contextlib
import socket
import ssl
import stat
import subprocess
import sys
import threading

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fl_peel.errors import EngineError
from simulations.deployment.keys import make_keys
from tests.helpers.root import ROOT


def served_once(keys):
    """A server with the certificate, on a free port; returns the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.certificate, keys.key)
    listening = socket.create_server(("127.0.0.1", 0))

    def answer():
        with listening, listening.accept()[0] as plain, contextlib.suppress(OSError):
            context.wrap_socket(plain, server_side=True).close()

    threading.Thread(target=answer, daemon=True).start()
    return listening.getsockname()[1]


def shake_hands(keys, authority, name):
    port = served_once(keys)
    context = ssl.create_default_context(cafile=authority)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        context.wrap_socket(plain, server_hostname=name).close()


def test_a_client_trusts_the_superlink_by_its_names_and_its_authority_alone(tmp_path):
    keys = make_keys(tmp_path / "keys", hosts=("127.0.0.1", "superlink"), nodes=0)
    other = make_keys(tmp_path / "other", nodes=0)
    for name in ("127.0.0.1", "superlink"):
        shake_hands(keys, keys.authority, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="localhost"):
        shake_hands(keys, keys.authority, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(keys, other.authority, "127.0.0.1")


def test_each_node_has_a_key_of_its_own_and_no_other_reads_private_ones(tmp_path):
    keys = make_keys(tmp_path / "keys", nodes=2)
    publics = []
    for number in range(2):
        private = load_ssh_private_key(keys.node(number).read_bytes(), password=None)
        public = load_ssh_public_key(keys.node(number).with_suffix(".pub").read_bytes())
        assert private.public_key() == public
        publics.append(public.public_numbers())
    assert publics[0] != publics[1]
    for path in (keys.key, keys.folder / "ca.key", keys.node(0), keys.node(1)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_that_are_there_are_not_replaced(tmp_path):
    keys = make_keys(tmp_path, nodes=1)
    before = keys.key.read_bytes()
    with pytest.raises(EngineError, match=r"ca\.crt: exists already; remove it, or give another folder"):
        make_keys(tmp_path, nodes=1)
    assert keys.key.read_bytes() == before


def test_the_script_makes_them_and_says_one_line_where_it_cannot(tmp_path):
    module = [sys.executable, "-m", "simulations.deployment.keys"]
    command = [*module, str(tmp_path / "keys"), "--nodes", "1", "--host", "a.b"]
    first, second = (subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    assert (tmp_path / "keys" / "node-0.pub").is_file()
    assert second.returncode == 2
    assert second.stderr.startswith("keys: error: ")
    assert second.stderr.count("\n") == 1
