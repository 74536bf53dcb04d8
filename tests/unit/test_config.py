"""A site's file: the issue's example, safe defaults, and each mistake refused by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.config import Config, read_config
from service.errors import ConfigError
from service.settings.destinations import Destination

EXAMPLE = """\
[intake]
ae_title = "OVERREAD"
host = "0.0.0.0"
port = 11112
quiet_seconds = 30

[analysis]
backend = "triton://triton.hospital:8001"
models_directory = "models"

[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "10.0.0.5"
port = 104

[store]
directory = "/var/lib/overread"
database = "postgresql+psycopg://overread@db/overread"

[api]
host = "0.0.0.0"
port = 8080
tls = { certificate_file = "our.pem", key_file = "/etc/our.key" }

[[api.tokens]]
name = "viewer"
role = "viewer"
file = "viewer.token"
"""


def _read(folder: Path, text: str) -> Config:
    path = folder / "site.toml"
    path.write_text(text, "utf-8")
    return read_config(path)


def test_the_example_says_what_it_says(tmp_path: Path) -> None:
    config = _read(tmp_path, EXAMPLE)
    assert (config.intake.ae_title, config.intake.host, config.intake.port) == ("OVERREAD", "0.0.0.0", 11112)
    assert config.intake.quiet_seconds == 30
    assert config.analysis.backend == "triton://triton.hospital:8001"
    (pacs,) = config.destinations
    assert (pacs.name, pacs.ae_title, pacs.host, pacs.port) == ("pacs", "PACS", "10.0.0.5", 104)
    assert config.destination("pacs") is pacs
    assert config.destination("archive") is None
    assert config.store.database.startswith("postgresql+psycopg://")
    assert (config.api.host, config.api.port) == ("0.0.0.0", 8080)
    assert config.api.tls is not None
    assert (config.api.tls.certificate_file, config.api.tls.key_file) == (tmp_path / "our.pem", Path("/etc/our.key"))
    assert config.api.tokens[0].file == tmp_path / "viewer.token"


def test_an_empty_file_listens_on_loopback_only_and_sends_nothing_anywhere(tmp_path: Path) -> None:
    config = _read(tmp_path, "")
    assert (config.intake.host, config.api.host) == ("127.0.0.1", "127.0.0.1")
    assert config.destinations == ()
    assert config.analysis.backend == "onnxruntime"
    assert config.store.database == ""
    assert config.intake.minimum_free_gib > 0


def test_certificates_are_sought_from_the_files_own_folder(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "overread.toml").write_text(
        '[triton]\ntls = true\nca_file = "ca.pem"\nkey_file = "/etc/key.pem"\n'
    )
    triton = read_config(tmp_path / "site" / "overread.toml").triton
    assert triton.ca_file == tmp_path / "site" / "ca.pem"
    assert triton.key_file == Path("/etc/key.pem")
    assert triton.certificate_file is None


def test_relative_folders_are_taken_from_the_files_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "site.toml").write_text('[analysis]\nmodels_directory = "m"\n[store]\ndirectory = "v"')
    monkeypatch.chdir(tmp_path)
    config = read_config(Path("site/site.toml"))
    assert config.analysis.models_directory == tmp_path / "site" / "m"
    assert config.store.directory == tmp_path / "site" / "v"


def test_absolute_folders_stay_as_they_are(tmp_path: Path) -> None:
    assert _read(tmp_path, EXAMPLE).store.directory == Path("/var/lib/overread")


def test_what_is_read_cannot_be_changed(tmp_path: Path) -> None:
    config = _read(tmp_path, EXAMPLE)
    with pytest.raises(ValidationError):
        config.intake.port = 1


DESTINATION = '[[destinations]]\nname = "{name}"\nae_title = "{ae}"\nhost = "pacs"\nport = {port}\n'
TOKEN = '[[api.tokens]]\nname = "a"\nrole = "viewer"\n{where}\n'
MISTAKES = {
    "a section that there is not": ("[intakes]\nport = 1", "intakes"),
    "a key misspelt": ("[intake]\nprot = 104", "intake.prot"),
    "a key in the wrong section": ("[api]\nae_title = 'X'", "api.ae_title"),
    "a word for a number": ('[intake]\nport = "dicom"', "intake.port"),
    "a table for a list": ('[destinations]\nname = "a"', "destinations"),
    "a port of nought": ("[api]\nport = 0", "api.port"),
    "a port too high": ("[intake]\nport = 65536", "intake.port"),
    "no quiet time": ("[intake]\nquiet_seconds = 0", "intake.quiet_seconds"),
    "a quiet time that is no number": ("[intake]\nquiet_seconds = nan", "intake.quiet_seconds"),
    "negative free space": ("[intake]\nminimum_free_gib = -1", "intake.minimum_free_gib"),
    "an AE title too long": ('[intake]\nae_title = "SEVENTEEN-LETTERS"', "intake.ae_title"),
    "an AE title of spaces": ('[intake]\nae_title = "   "', "intake.ae_title"),
    "an AE title with a backslash": ("[intake]\nae_title = 'A\\B'", "intake.ae_title"),
    "an AE title with an umlaut": ('[intake]\nae_title = "RÖNTGEN"', "intake.ae_title"),
    "a backend that there is not": ('[analysis]\nbackend = "torch"', "analysis.backend"),
    "a Triton without a port": ('[analysis]\nbackend = "triton://host"', "analysis.backend"),
    "no study at once": ("[analysis]\nstudies_at_once = 0", "analysis.studies_at_once"),
    "negative threads": ("[analysis]\nthreads = -1", "analysis.threads"),
    "a destination without a host": ('[[destinations]]\nname = "a"\nae_title = "A"\nport = 1', "destinations.0.host"),
    "a destination named with a space": (DESTINATION.format(name="the pacs", ae="A", port=1), "destinations.0.name"),
    "a second destination wrong": (
        DESTINATION.format(name="a", ae="A", port=1) + DESTINATION.format(name="b", ae="B", port=0),
        "destinations.1.port",
    ),
    "two destinations of one name": (DESTINATION.format(name="a", ae="A", port=1) * 2, "destinations"),
    "a confirmation that there is not": (
        DESTINATION.format(name="a", ae="A", port=1) + 'confirm = "phone"',
        "destinations.0.confirm",
    ),
    "an HTTP side open to all": ('[api]\nhost = "0.0.0.0"', "api"),
    "two tokens of one name": (2 * TOKEN.format(where='environment = "A"'), "api"),
    "a token that is nowhere": (TOKEN.format(where=""), "api.tokens.0"),
    "a token in two places": (TOKEN.format(where='environment = "A"\nfile = "a"'), "api.tokens.0"),
    "a certificate without its key": (
        DESTINATION.format(name="a", ae="A", port=1) + 'tls = { certificate_file = "a.pem" }',
        "destinations.0.tls",
    ),
    "addresses that are none": ('[intake]\naddresses = ["10.1.0.0/33"]', "intake.addresses.0"),
    "a password in a URL": ('[store]\ndatabase = "postgresql+psycopg://a:b@db/c"', "store.database"),
    "a process without a part": ("[process]\nparts = []", "process.parts"),
    "another database": ('[store]\ndatabase = "mysql://db"', "store.database"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_by_file_and_key(mistake: str, tmp_path: Path) -> None:
    text, key = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, text)
    assert str(tmp_path / "site.toml") in caught.value.doing
    assert f"{key}: " in caught.value.found
    assert "\n" not in caught.value.found


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, "[intake]\nprot = 1\nquiet_seconds = -1\n[api]\nport = 0")
    for key in ("intake.prot", "intake.quiet_seconds", "api.port"):
        assert key in caught.value.found


def test_a_refused_password_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, '[store]\ndatabase = "postgres://overread:s3cret@db/overread"')
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"[intake", b"[intake]\nae_title = '\xff'"], ids=["none", "TOML", "UTF-8"])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"site\.toml"):
        read_config(path)


def test_every_setting_is_described() -> None:
    for section in (*Config.model_fields.values(), *Destination.model_fields.values()):
        model = section.annotation
        for name, field in getattr(model, "model_fields", {}).items():
            assert field.description, name
    assert all(field.description for field in Destination.model_fields.values())
