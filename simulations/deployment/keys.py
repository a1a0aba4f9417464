"""Certificates and keys of a deployment: an authority of its own, the SuperLink's certificate, a key a SuperNode.

``python -m simulations.deployment.keys FOLDER --nodes 3 --host superlink`` writes ca.crt, ca.key, server.pem and
server.key for these names and addresses, and node-0, node-0.pub, ...: what each SuperNode proves itself by, and is
registered with.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_peel.errors import EngineError, FlPeelError

VALID_DAYS = 365
AUTHORITY, CERTIFICATE, KEY = "ca.crt", "server.pem", "server.key"
AUTHORITY_KEY = "ca.key"


@dataclass(frozen=True)
class KeyFolder:
    """The folder of keys and certificates; the authority's private key is needed for further certificates alone."""

    folder: Path

    @property
    def authority(self) -> Path:
        """Return the certificate of the authority, which every party that connects to the SuperLink needs."""
        return self.folder / AUTHORITY

    @property
    def certificate(self) -> Path:
        return self.folder / CERTIFICATE

    @property
    def key(self) -> Path:
        """Return the private key of the SuperLink."""
        return self.folder / KEY

    def node(self, number: int) -> Path:
        """Return a SuperNode's private key; the public key that it is registered with has the same name and the ending
        ``.pub``.
        """
        return self.folder / f"node-{number}"


def make_keys(folder: Path, *, hosts: Sequence[str] = ("127.0.0.1", "localhost"), nodes: int) -> KeyFolder:
    """Write all of them. hosts: names and addresses by which the SuperLink is reached.

    Raises:
        EngineError: the folder holds some already, which would no longer fit together, or cannot be written.
    """
    keys = KeyFolder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        there = [path for path in (keys.authority, keys.certificate, keys.node(0)) if path.exists()]
        if there:
            raise EngineError(f"{there[0]}: exists already; remove it, or give another folder")
        authority_key = ec.generate_private_key(ec.SECP384R1())
        authority = _signed(_name("fl-peel deployment"), authority_key, None, ())
        server_key = ec.generate_private_key(ec.SECP384R1())
        server = _signed(_name(hosts[0]), server_key, (authority, authority_key), hosts)
        _write(folder / AUTHORITY_KEY, _private(authority_key))
        _write(keys.authority, authority.public_bytes(Encoding.PEM), 0o644)
        _write(keys.certificate, server.public_bytes(Encoding.PEM), 0o644)
        _write(keys.key, _private(server_key))
        for number in range(nodes):
            own = ec.generate_private_key(ec.SECP384R1())
            _write(keys.node(number), own.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            public = own.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            _write(keys.node(number).with_suffix(".pub"), public, 0o644)
    except OSError as error:
        raise EngineError(f"{folder}: cannot be written ({error.strerror}); give another folder") from error
    return keys


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _signed(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    hosts: Sequence[str],
) -> x509.Certificate:
    """A certificate by an authority, or, by None, that of one."""
    now = datetime.now(UTC)
    issuer, signing = (subject, key) if authority is None else (authority[0].subject, authority[1])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        .add_extension(_usage(signs=authority is None), critical=True)
    )
    if authority is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(signing, hashes.SHA384())


def _usage(*, signs: bool) -> x509.KeyUsage:
    """An authority signs certificates, a server what it says."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def main() -> int:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="Certificates of a SuperLink and keys of its SuperNodes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, required=True, help="SuperNodes")
    parser.add_argument("--host", action="append", help="Name or address of the SuperLink; repeatable.")
    given = parser.parse_args()
    try:
        make_keys(given.folder, hosts=given.host or ("127.0.0.1", "localhost"), nodes=given.nodes)
    except FlPeelError as mistake:
        print(f"keys: error: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
