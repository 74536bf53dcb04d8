"""``overread models list``: what is in the models directory, and what a running service says of it."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from rich.table import Table

from service.backends.envelope import read_envelope
from service.errors import BackendUnavailable
from service.models import available, is_installed, survey
from service.show import console
from service.types import Envelope, Network
from service.web import opener

_PATIENCE_SECONDS = 5.0


def list_models(directory: Path, *, service: str = "", as_json: bool = False) -> int:
    """Print the models of a directory, the broken ones too.

    Parameters
    ----------
    service
        Address of a running service's API, which knows what is loaded; empty: that stays unknown.

    Returns
    -------
    int
        0 if none is broken.
    """
    entries = models_listed(directory, service=service)
    if as_json:
        console.print(json.dumps(entries, indent=1), markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(_table(entries))
        for entry in entries:
            if entry["broken"]:
                console.print(f"{entry['name']}: {entry['broken']}", markup=False, highlight=False, soft_wrap=True)
    return int(any(entry["broken"] for entry in entries))


def models_listed(directory: Path, *, service: str = "") -> list[dict[str, Any]]:
    """The models by name, as JSON has them.

    Raises
    ------
    ConfigError
        If there is no such directory.
    BackendUnavailable
        If the service does not answer.
    """
    models, broken = survey(directory)
    known = {model.spec.name: model for model in models}
    specs = {spec.name: spec for spec in available(directory)}
    running = _running(service) if service else None
    entries = []
    for name in sorted({*specs, *broken}):
        spec, model = specs.get(name), known.get(name)
        entries.append(
            {
                "name": name,
                "version": spec.version if spec else None,
                "task": spec.task if spec else None,
                "title": spec.title if spec else None,
                "licence": spec.licence if spec else None,
                "installed": bool(spec and is_installed(directory, spec)),
                "broken": str(broken[name]) if name in broken else "",
                "networks": [_network(network) for network in model.networks] if model else [],
                **_state(running, name),
            }
        )
    return entries


def _network(network: Network) -> dict[str, Any]:
    return {
        "name": network.name,
        "sha256": network.sha256,
        "envelopes": [
            {
                "device": envelope.device,
                "resident_bytes": envelope.resident_bytes,
                "best_batch": envelope.best_batch,
                "patch_bytes": envelope.batch_bytes[1],
                "best_batch_bytes": envelope.batch_bytes[envelope.best_batch],
                "patches_per_second": round(envelope.best_batch / envelope.batch_seconds[envelope.best_batch], 3),
            }
            for envelope in _envelopes(network)
        ],
    }


def _envelopes(network: Network) -> list[Envelope]:
    """What was measured of it, on each device."""
    try:
        devices = json.loads(network.file.with_name("envelope.json").read_text("utf-8"))["devices"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    found = (read_envelope(network, device) for device in devices)
    return [envelope for envelope in found if envelope]


def _running(service: str) -> dict[str, list[dict[str, Any]]]:
    """By model, how the running service has its networks."""
    url = f"{service.rstrip('/')}/api/v1/models"
    try:
        if not url.startswith(("http://", "https://")):
            raise ValueError("no http:// or https:// address")
        token = os.environ.get("OVERREAD_TOKEN")
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
        with opener().open(request, timeout=_PATIENCE_SECONDS) as answer:
            return {str(entry["name"]): list(entry["networks"]) for entry in json.load(answer)}
    except (OSError, ValueError, LookupError, TypeError) as exc:  # URLError and HTTPError are OSErrors
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        raise BackendUnavailable(
            doing=f"asking the service at {url}",
            found=str(reason) or type(exc).__name__,
            rule="--service is the address of a running Overread's API, as http://host:port",
            way_out="start the service, correct the address, put a viewer's token into the environment's "
            "OVERREAD_TOKEN where it asks for one, or leave --service out",
        ) from exc


def _state(running: dict[str, list[dict[str, Any]]] | None, name: str) -> dict[str, Any]:
    """Whether a model is loaded (None: unknown), and when one of its networks ran last."""
    if running is None:
        return {"loaded": None, "last_used": None}
    networks = running.get(name, [])
    loaded = bool(networks) and all(network.get("loaded") for network in networks)
    return {
        "loaded": loaded,
        "last_used": max((network.get("last_used") or 0 for network in networks), default=0) or None,
    }


def _table(entries: list[dict[str, Any]]) -> Table:
    table = Table(title="Models (research use only, not for diagnosis)", title_style="bold")
    for name in ("name", "version", "task", "licence", "installed", "loaded", "envelope", "last used"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        used = entry["last_used"]
        table.add_row(
            entry["name"],
            entry["version"] or "-",
            entry["task"] or "-",
            entry["licence"] or "-",
            "BROKEN" if entry["broken"] else "yes" if entry["installed"] else "no",
            {True: "yes", False: "no", None: "-"}[entry["loaded"]],
            "\n".join(_envelope_words(network) for network in entry["networks"]) or "-",
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(used)) if used else "-",
        )
    return table


def _envelope_words(network: dict[str, Any]) -> str:
    lines = [
        f"{network['name']}: {kept['resident_bytes'] / 2**30:.2f} GiB + {kept['patch_bytes'] / 2**30:.2f} a patch, "
        f"batch {kept['best_batch']} ({kept['device']})"
        for kept in network["envelopes"]
    ]
    return "\n".join(lines) or f"{network['name']}: not measured yet"
