"""A real OpenID Connect provider (npm's certified ``oidc-provider``), and a browser's steps through its sign-in."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import trustme
from joserfc.jwk import ECKey, KeySet, RSAKey

from tests.support import REPOSITORY, counterpart, free_port, missing

SECRET = "what-only-we-and-the-provider-know"
AUDIENCE = "overread-api"  # as provider.mjs has it
ACCOUNTS = {
    "ada": ["radiology", "it-admins"],
    "bob": ["radiology"],
    "cid": ["kitchen"],
}
_HERE = REPOSITORY / "tests" / "browser"


def new_keys() -> KeySet:
    """A key pair of each kind."""
    return KeySet(
        [
            RSAKey.generate_key(2048, {"use": "sig"}, auto_kid=True),
            ECKey.generate_key("P-256", {"use": "sig"}, auto_kid=True),
        ]
    )


@dataclass(kw_only=True)
class Hospital:
    """A provider of a hospital: its files, its keys, and itself while it runs."""

    folder: Path
    back_to: str
    port: int = field(default_factory=free_port)
    keys: KeySet = field(default_factory=new_keys)
    client: dict[str, Any] = field(default_factory=dict)  # how we are entered there, beside the usual
    claims_at_userinfo: bool = True

    def __post_init__(self) -> None:
        self.authority = trustme.CA()
        certificate = self.authority.issue_cert("127.0.0.1", "localhost")
        self.authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))
        certificate.private_key_and_cert_chain_pem.write_to_path(str(self.folder / "provider.pem"))
        (self.folder / "secret").write_text(SECRET + "\n")

    @property
    def issuer(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def settings(self, **more: Any) -> dict[str, Any]:
        """The keys of ``[api.oidc]``."""
        return {
            "issuer": self.issuer,
            "client_id": "overread",
            "client_secret_file": self.folder / "secret",
            "audience": AUDIENCE,
            "role_claim": "groups",
            "viewers": ("radiology",),
            "admins": ("it-admins",),
            "ca_file": self.folder / "ca.pem",
            **more,
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """The provider, for as long."""
        node = counterpart("node")
        if not (_HERE / "node_modules" / "oidc-provider").is_dir():
            missing("npm's oidc-provider (npm ci --prefix tests/browser)")
        client = {
            "client_id": "overread",
            "client_secret": SECRET,
            "redirect_uris": [self.back_to],
            "grant_types": ["authorization_code", "client_credentials"],
            **self.client,
        }
        site = {
            "issuer": self.issuer,
            "port": self.port,
            "certificate": str(self.folder / "provider.pem"),
            "key": str(self.folder / "provider.pem"),
            "jwks": self.keys.as_dict(private=True),
            "clients": [{key: value for key, value in client.items() if value is not None}],
            "accounts": ACCOUNTS,
            "claims_at_userinfo": self.claims_at_userinfo,
        }
        (self.folder / "provider.json").write_text(json.dumps(site))
        log = self.folder / "provider.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [node, "provider.mjs", str(self.folder / "provider.json")],
                cwd=_HERE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        try:
            assert process.stdout
            assert process.stdout.readline() == "listening\n", log.read_text()
            yield
        finally:
            process.terminate()
            process.wait(20)

    def access_token(self) -> str:
        """What a program gets from the provider for our API (RFC 6749 section 4.4)."""
        form = {"grant_type": "client_credentials", "resource": f"urn:{AUDIENCE}"}
        answer = httpx.post(
            f"{self.issuer}/token", data=form, auth=("overread", SECRET), verify=self.trusting(), trust_env=False
        )
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def sign_in(self, address: str, name: str) -> str:
        """Sign in at the provider as somebody, from where we send a browser; where that ends: with us."""
        with httpx.Client(verify=self.trusting(), trust_env=False) as browser:
            answer = browser.get(address)
            for _ in range(20):
                if answer.is_redirect:
                    where = urljoin(str(answer.url), answer.headers["location"])
                    if urlsplit(where).port != self.port:
                        return where
                    answer = browser.get(where)
                    continue
                assert answer.status_code == 200, answer.text
                action = re.search(r'<form[^>]* action="([^"]+)"', answer.text)
                prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
                assert action, answer.text
                assert prompt, answer.text
                form = {"prompt": prompt[1], **({"login": name, "password": "x"} if prompt[1] == "login" else {})}
                answer = browser.post(urljoin(str(answer.url), action[1]), data=form)
            raise AssertionError("the provider goes round in circles")
