"""An audit record repository for tests: Debian's rsyslog, that writes what it receives into a file, as it came."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import trustme

from service.settings.doors import Audit, ClientTls
from tests.support import counterpart, free_port

Protocol = Literal["tls", "tcp", "udp"]


class Certificates:
    """Of a repository and of us, by one authority; and of somebody else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.authority, stranger = trustme.CA(), trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)
        self.strange_ca_file = folder / "strange-ca.pem"
        stranger.cert_pem.write_to_path(self.strange_ca_file)
        self.server = self._pair("server", self.authority, "127.0.0.1", "repository.hospital")
        self.client = self._pair("client", self.authority, "overread.hospital")
        self.stranger = self._pair("stranger", stranger, "overread.hospital")

    def _pair(self, name: str, authority: trustme.CA, *names: str) -> tuple[Path, Path]:
        made = authority.issue_cert(*names)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        for number, blob in enumerate(made.cert_chain_pems):
            blob.write_to_path(certificate, append=number > 0)
        made.private_key_pem.write_to_path(key)
        return certificate, key


class Repository:
    """rsyslog in the foreground, on a free port.

    Parameters
    ----------
    folder
        For its configuration, its pid and what it received.
    """

    def __init__(self, folder: Path, protocol: Protocol, certificates: Certificates | None = None) -> None:
        self._program = counterpart("rsyslogd")
        folder.mkdir(exist_ok=True)
        self.port, self.protocol = free_port(), protocol
        self._folder, self._received = folder, folder / "received"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "rsyslog.conf").write_text(self._configuration(certificates))

    def audit(self, tls: ClientTls | None = None, *, maximum_waiting: int = 100_000) -> Audit:
        """Settings that lead here."""
        return Audit(
            syslog=f"127.0.0.1:{self.port}",
            protocol=self.protocol,
            tls=tls or ClientTls(),
            maximum_waiting=maximum_waiting,
        )

    def start(self) -> None:
        """Start, and wait until it listens."""
        with (self._folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    self._program, "-n", "-f", str(self._folder / "rsyslog.conf"), "-i", str(self._folder / "pid"),
                ],
                stdout=output,
                stderr=output,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while not self._listens():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
            (self._folder / "pid").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop it where it is; its system goes on taking what is sent."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)

    def received(self) -> list[bytes]:
        """The lines that it wrote."""
        with suppress(FileNotFoundError):
            return self._received.read_bytes().splitlines()
        return []

    def _listens(self) -> bool:
        if self.protocol == "udp":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect(("127.0.0.1", self.port))
                with suppress(ConnectionRefusedError):
                    probe.send(b"<13>1 - - probe - - -")
                    time.sleep(0.05)
                    return probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            return False
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def _configuration(self, certificates: Certificates | None) -> str:
        # "Direct": what is read is written before more is read. rsyslog's own memory is not what is tested here.
        common = f"""
            global(workDirectory="{self._folder}" maxMessageSize="64k")
            template(name="raw" type="string" string="%rawmsg%\\n")
            ruleset(name="write" queue.type="Direct") {{
                action(type="omfile" file="{self._received}" template="raw" asyncWriting="off" flushOnTXEnd="on")
            }}
        """
        where = f'port="{self.port}" address="127.0.0.1" ruleset="write"'
        if self.protocol == "udp":
            return f'{common}\nmodule(load="imudp")\ninput(type="imudp" {where})\n'
        if self.protocol == "tcp":
            return f'{common}\nmodule(load="imtcp")\ninput(type="imtcp" {where})\n'
        assert certificates
        certificate, key = certificates.server
        return f"""
            global(
                defaultNetstreamDriverCAFile="{certificates.ca_file}"
                defaultNetstreamDriverCertFile="{certificate}"
                defaultNetstreamDriverKeyFile="{key}"
            )
            {common}
            module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
            input(type="imtcp" {where})
        """
