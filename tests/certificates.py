"""A hospital's certificate authority, and certificates good and bad, as PEM files."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import trustme

from service.settings.doors import ClientTls, ServerTls


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path

    def server(self, authority: Path | None = None) -> ServerTls:
        """The settings of a port with it; mutual where an authority is given."""
        return ServerTls(certificate_file=self.certificate, key_file=self.key, ca_file=authority)

    def client(self, authority: Path, *, server_name: str = "") -> ClientTls:
        """The settings of a connection with it."""
        return ClientTls(
            certificate_file=self.certificate, key_file=self.key, ca_file=authority, server_name=server_name
        )


class Authority:
    """An authority whose certificates go into a folder."""

    def __init__(self, folder: Path, name: str = "house") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name, self._ca = folder, name, trustme.CA(organization_name=name)
        self.file = folder / f"{name}-ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *identities: str, days: float = 30.0) -> Pair:
        """A certificate for these names and addresses; one of negative days has expired. A second one replaces it."""
        now = datetime.datetime.now(datetime.UTC)
        issued = self._ca.issue_cert(
            *(identities or ("localhost", "127.0.0.1")),
            not_before=now - datetime.timedelta(days=60),
            not_after=now + datetime.timedelta(days=days),
            key_type=trustme.KeyType.RSA,  # as most devices have
        )
        return self._write(
            name, b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes()
        )

    def self_signed(self, name: str) -> Pair:
        """A certificate that nobody vouches for but itself."""
        alone = trustme.CA(organization_name="alone", key_type=trustme.KeyType.RSA)
        return self._write(name, alone.cert_pem.bytes(), alone.private_key_pem.bytes())

    def _write(self, name: str, certificate: bytes, key: bytes) -> Pair:
        pair = Pair(
            certificate=self._folder / f"{self._name}-{name}.pem", key=self._folder / f"{self._name}-{name}.key"
        )
        for path, content in ((pair.certificate, certificate), (pair.key, key)):
            fresh = path.with_suffix(path.suffix + ".new")
            fresh.write_bytes(content)
            fresh.replace(path)
        return pair
