"""`overread models list`: what is there, what is broken, what was measured, and what a running service says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.backends.envelope import write_envelope
from service.errors import BackendUnavailable
from service.listing import list_models, models_listed
from service.models import installed
from service.types import Envelope
from tests.support import free_port
from tests.toys import write_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model that was measured, one that was not, one without weights, one that is broken."""
    for name in ("measured", "new", "later", "wrong"):
        write_model(tmp_path, name)
    (tmp_path / "later" / "1" / "model.onnx").unlink()
    path = tmp_path / "wrong" / "model.toml"
    path.write_text(path.read_text().replace("threshold", "treshold"))
    (model,) = installed(tmp_path, ["measured"])
    write_envelope(
        model.networks[0],
        Envelope(
            device="a device",
            resident_bytes=1 << 30,
            batch_bytes={1: 1 << 29, 2: 1 << 30},
            batch_seconds={1: 1.0, 2: 1.25},
            load_seconds=1.0,
        ),
    )
    return tmp_path


@pytest.fixture
def service() -> Iterator[str]:
    """A real HTTP server that answers as a running service does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"[]"
            if self.path == "/api/v1/models":
                networks = [
                    {"name": "measured", "loaded": True, "last_used": 86400.0},
                    {"name": "organ", "loaded": True, "last_used": None},
                ]
                half = [{**networks[0], "name": "new"}, {**networks[1], "loaded": False, "last_used": 3.0}]
                body = json.dumps(
                    [{"name": "measured", "networks": networks}, {"name": "new", "networks": half}]
                ).encode()
            elif self.path != "/old/api/v1/models":
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_folder_is_listed_with_how_it_is(directory: Path) -> None:
    entries = {entry["name"]: entry for entry in models_listed(directory)}
    assert list(entries) == ["later", "measured", "new", "wrong"]
    assert {name: entry["installed"] for name, entry in entries.items()} == {
        "later": False, "measured": True, "new": True, "wrong": False
    }  # fmt: skip
    assert [name for name, entry in entries.items() if entry["broken"]] == ["wrong"]
    assert "treshold" in entries["wrong"]["broken"]
    assert (entries["new"]["version"], entries["new"]["task"], entries["new"]["licence"]) == (
        "1.0", "segmentation", "Apache-2.0"
    )  # fmt: skip
    assert {entry["loaded"] for entry in entries.values()} == {None}


def test_what_was_measured_is_told_by_device(directory: Path) -> None:
    entries = {entry["name"]: entry for entry in models_listed(directory)}
    assert entries["new"]["networks"][0]["envelopes"] == []
    assert entries["measured"]["networks"][0]["envelopes"] == [
        {
            "device": "a device",
            "resident_bytes": 1 << 30,
            "best_batch": 2,
            "patch_bytes": 1 << 29,
            "best_batch_bytes": 1 << 30,
            "patches_per_second": 1.6,
        }
    ]


def test_what_was_measured_of_other_weights_is_not_told(directory: Path) -> None:
    with (directory / "measured" / "1" / "model.onnx").open("ab") as file:
        file.write(b" ")
    entries = {entry["name"]: entry for entry in models_listed(directory)}
    assert entries["measured"]["networks"][0]["envelopes"] == []


def test_a_running_service_says_what_is_loaded(directory: Path, service: str) -> None:
    entries = {entry["name"]: entry for entry in models_listed(directory, service=f"{service}/")}
    assert {name: (entry["loaded"], entry["last_used"]) for name, entry in entries.items()} == {
        "measured": (True, 86400.0), "new": (False, 86400.0), "later": (False, None), "wrong": (False, None)
    }  # fmt: skip


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "{service}/none", "127.0.0.1:80", "file://{folder}"])
def test_a_service_that_does_not_answer_is_told(address: str, directory: Path, service: str) -> None:
    (directory / "api" / "v1").mkdir(parents=True)
    (directory / "api" / "v1" / "models").write_text("[]")
    with pytest.raises(BackendUnavailable, match="--service"):
        models_listed(directory, service=address.format(port=free_port(), service=service, folder=directory))


def test_the_table_and_the_json_say_the_same(directory: Path, service: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_models(directory, service=service) == 1
    table = capsys.readouterr().out
    for words in ("measured", "1.00 GiB + 0.50 a patch", "batch 2", "BROKEN", "treshold", "1970-01-0"):
        assert words in table
    assert list_models(directory, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == models_listed(directory)


def test_without_a_broken_model_the_exit_code_is_0(tmp_path: Path) -> None:
    write_model(tmp_path, "a")
    assert list_models(tmp_path) == 0
