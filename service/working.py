"""The part of the service that works: models on a backend, and the watch that gives them studies, and delivers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from service import decoding, log
from service.analysis.schedule import Scheduler
from service.backend import open_backend
from service.backends.engine import OnnxBackend
from service.config import Config
from service.errors import BackendError
from service.models import installed, survey
from service.snapshot import LOADING
from service.store import Store
from service.types import Model
from service.watch import Watch

_TICK_SECONDS = 0.2  # between two looks at whether to stop
GRACE_SECONDS = 3.0  # with the receivers' five: container engines kill ten seconds after SIGTERM


class Working:
    """Models, backend, scheduler and watch, in the order in which they start, and stop.

    Parameters
    ----------
    name
        Of this process.

    Raises
    ------
    ConfigError
        If there is no model, or no backend.
    """

    def __init__(self, config: Config, store: Store, *, name: str) -> None:
        models, self._unreadable = survey(config.analysis.models_directory, config.analysis.models)
        if not models and not self._unreadable:
            installed(config.analysis.models_directory)  # says that there is none, and what to do
        self.models = tuple(models)
        self.backend = open_backend(config.analysis, config.triton)
        self.scheduler = Scheduler(self.backend)
        self.watch = Watch(config, store, self.models, self.scheduler, name=name)
        self._broken = {"models": LOADING}

    def start(self, stop: threading.Event) -> None:
        """Load the models, which may take minutes where an engine is built for a GPU; then look for studies.

        Parameters
        ----------
        stop
            Set when the service is to end: then nothing of that is waited for.
        """
        loading = threading.Thread(target=self._load, args=(stop,), name="models", daemon=True)
        loading.start()
        while loading.is_alive() and not stop.is_set():
            loading.join(_TICK_SECONDS)

    def _load(self, stop: threading.Event) -> None:
        self._broken |= _load(self.models, self.scheduler, stop)
        if stop.is_set():
            return
        for name, error in self._unreadable.items():
            self._broken[name] = error.found
            log.failure("model.broken", error, model=name)
        del self._broken["models"]
        self.watch.start()

    def stop(self) -> None:
        """Begin nothing new, give what runs a moment, end the backend."""
        self.watch.stop(grace_seconds=GRACE_SECONDS)
        decoding.end()
        self.scheduler.close()

    def readiness(self) -> dict[str, str]:
        """By part: empty if it is well, else what is wrong with it."""
        failing = ((state.name, state.failing) for state in self.scheduler.states() if state.failing)
        return {
            "worker": "" if self.watch.is_watching() else "it does not look for studies",
            "models": "; ".join(f"{name}: {reason}" for name, reason in [*self._broken.items(), *failing]),
            "backend": "" if self.backend.ready() else f"{self.backend.name} does not answer",
        }

    def networks(self) -> list[dict[str, Any]]:
        """The models, with how each of their networks is."""
        states = {state.name: state for state in self.scheduler.states()}
        return [
            {
                "name": model.spec.name,
                "version": model.spec.version,
                "broken": self._broken.get(model.spec.name, ""),
                "networks": [states[n.name].as_json() for n in model.networks if n.name in states],
            }
            for model in self.models
        ]

    def resident_bytes(self) -> dict[str, int]:
        """What each loaded network holds while it is idle."""
        loaded = (state for state in self.scheduler.states() if state.loaded)
        return {state.name: state.envelope.resident_bytes if state.envelope else 0 for state in loaded}

    @property
    def engine_pid(self) -> int | None:
        """Number of the inference engine's process, where it is one of ours."""
        return self.backend.pid if isinstance(self.backend, OnnxBackend) else None


def _load(models: Sequence[Model], scheduler: Scheduler, stop: threading.Event) -> dict[str, str]:
    """Load all models; those that can't run, and why: the others run, and their own answers say that they failed."""
    broken = {}
    for model in models:
        if stop.is_set():
            break
        try:
            scheduler.add(model)
        except BackendError as exc:
            if stop.is_set():  # it ended since the backend did
                break
            if not exc.retry:
                broken[model.spec.name] = exc.found
            log.failure("model.broken", exc, model=model.spec.name)
        else:
            log.event("model.loaded", model=model.spec.name, version=model.spec.version)
    return broken
