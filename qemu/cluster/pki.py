"""The certificates of a control plane: one authority, and what it signs, as PEM files in one folder."""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LIFE = dt.timedelta(days=30)  # longer than any test, shorter than a forgotten cluster
_EARLIER = dt.timedelta(hours=1)  # a guest's clock may be behind


class Authority:
    """A certificate authority that lives in `folder`: ca.crt, ca.key, and NAME.crt and NAME.key of each it issued."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = self._write_key("ca")
        self._name = _subject("initd test cluster", ())
        self._certificate = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._write_certificate("ca", self._certificate)

    @property
    def certificate(self) -> Path:
        """The authority's own certificate, which clients trust."""
        return self.folder / "ca.crt"

    def issue(self, name: str, user: str, groups: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        """Sign a key for `user` in `groups`, as Kubernetes reads them (common name, organizations); with `hosts`, names
        and addresses, also one that serves there.
        """
        key = self._write_key(name)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
        builder = _builder(_subject(user, groups), self._name, key).add_extension(
            x509.ExtendedKeyUsage(usages), critical=False
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        self._write_certificate(name, builder.sign(self._key, hashes.SHA256()))

    def key_pair(self, name: str) -> None:
        """Write NAME.key and NAME.pub, a pair that nobody signs."""
        public = self._write_key(name).public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        (self.folder / f"{name}.pub").write_bytes(public.public_bytes(serialization.Encoding.PEM, form))

    def _write_key(self, name: str) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        form, plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        path = self.folder / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
        return key

    def _write_certificate(self, name: str, certificate: x509.Certificate) -> None:
        (self.folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _subject(user: str, groups: Sequence[str]) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + _LIFE)
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
