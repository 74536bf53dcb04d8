"""What `config show` shows and never shows, and that a token which `token` makes is one."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from service.__main__ import main
from service.api.tokens import Tokens
from service.config import Config, read_config
from service.masked import _masked
from service.settings.doors import Token

DIGEST = "5e" * 32
SITE = f"""\
[intake]
port = 104

[[sources]]
ae_title = "PACS"
query = {{ ae_title = "PACS", host = "10.0.0.5", port = 104 }}

[store]
database = "postgresql+psycopg://overread@db/overread?sslmode=verify-full&sslpassword=geheim"

[[api.tokens]]
name = "kiosk"
role = "viewer"
sha256 = "{DIGEST}"

[[api.tokens]]
name = "ops"
role = "operator"
environment = "OVERREAD_OPS"

[api.oidc]
issuer = "https://id.hospital"
client_id = "overread"
client_secret_file = "oidc.secret"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "oidc.secret").write_text("geheim")
    monkeypatch.setenv("OVERREAD_OPS", "geheim-geheim-geheim-geheim")
    (tmp_path / "site.toml").write_text(SITE)
    return tmp_path / "site.toml"


def test_every_setting_is_shown_with_where_it_is_from(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--config", str(site)]) == 0
    text = capsys.readouterr().out
    shown = tomllib.loads(text)
    assert shown["intake"]["port"] == 104
    assert shown["sources"][0]["query"]["host"] == "10.0.0.5"
    assert shown["api"]["oidc"]["client_secret_file"] == str(site.parent / "oidc.secret"), "as the service takes it"
    assert re.search(r"^port = 104 +# site\.toml$", text, re.MULTILINE)
    assert re.search(r"^quiet_seconds = 30\.0 +# default$", text, re.MULTILINE)
    assert re.search(r"^# ca_file = none +# default$", text, re.MULTILINE)
    for section in Config.model_fields:
        value = getattr(read_config(site), section)
        for key in type(value).model_fields if isinstance(value, BaseModel) else ():
            assert re.search(rf"^(# )?{key} = |^\[\[?{section}\.{key}\]", text, re.MULTILINE), (section, key)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_secret_is_shown(form: list[str], site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--config", str(site), *form]) == 0
    text = capsys.readouterr().out
    assert DIGEST not in text
    assert "geheim" not in text
    assert "sslmode=verify-full" in text
    assert "OVERREAD_OPS" in text


def test_as_json_for_programs(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["config", "show", "--config", str(site), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["intake"]["port"] == {"value": 104, "from": "file"}
    assert shown["intake"]["host"] == {"value": "127.0.0.1", "from": "default"}
    assert shown["api.tokens[0]"]["sha256"] == {"value": "***", "from": "file"}
    assert shown["api.tokens[1]"]["sha256"] == {"value": "", "from": "default"}


@pytest.mark.parametrize(
    ("key", "value", "masked"),
    [
        ("password", "geheim", "***"),
        ("client_secret", "geheim", "***"),
        ("token", "geheim", "***"),
        ("api_key", "geheim", "***"),
        ("password_file", "/etc/password", "/etc/password"),
        ("key_file", "/etc/key", "/etc/key"),
        ("qido_url", "https://user:geheim@pacs/dicom-web", "https://user:***@pacs/dicom-web"),
        ("database", "postgresql://h/d?password=geheim", "postgresql://h/d?password=***"),
        ("role_claim", "roles", "roles"),
        ("hosts", ["a://u:p@h"], ["a://u:***@h"]),
        ("port", 104, 104),
    ],
)
def test_what_counts_as_secret(key: str, value: Any, masked: Any) -> None:
    assert _masked(key, value) == masked


def _strings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        if field.annotation is str and re.search("secret|password|token|sha256|passphrase|credential", key):
            yield key


def test_no_setting_but_a_digest_holds_a_secret_itself() -> None:
    """Secrets come from files or the environment; whoever adds a key with one must think of the mask."""
    held = set()
    waiting: list[Any] = [Config]
    while waiting:
        model = waiting.pop()
        held |= set(_strings(model))
        for field in model.model_fields.values():
            for found in re.findall(r"service\.settings\.\w+\.\w+", str(field.annotation)):
                module, _, name = found.rpartition(".")
                waiting.append(getattr(__import__(module, fromlist=[name]), name))
    assert held == {"sha256"}


def test_a_token_that_is_made_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = []
    for _ in range(2):
        assert main(["token", "kiosk-3", "--role", "operator"]) == 0
        text = capsys.readouterr().out
        token = text.splitlines()[2].strip()
        section = text[text.index("[[api.tokens]]") :]
        (tmp_path / "site.toml").write_text(section)
        tokens = read_config(tmp_path / "site.toml").api.tokens
        found = Tokens(tokens).find(token)
        assert isinstance(found, Token)
        assert (found.name, found.role) == ("kiosk-3", "operator")
        assert token not in section
        made.append(token)
    assert made[0] != made[1]
    assert len(made[0]) == 43


def test_a_name_that_none_can_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "a b", "--role", "viewer"]) == 1
    assert "choose another name" in capsys.readouterr().err


def test_a_wrong_file_is_told_as_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.toml").write_text("[intake]\nprot = 1\n")
    assert main(["config", "show", "--config", str(tmp_path / "site.toml")]) == 1
    assert "there is no such key" in capsys.readouterr().err
