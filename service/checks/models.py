"""The models: each is loaded and run once, on nothing."""

from __future__ import annotations

import time

import numpy as np

from service.backend import open_backend
from service.checks.types import Attempt, Checks
from service.config import Config
from service.errors import ConfigError, ServiceError
from service.models import available, installed, survey
from service.types import Backend, Model


def checks(config: Config) -> Checks:
    """The models that would run, those that can't, and those that are left out."""
    if "work" not in config.process.parts:
        return
    try:
        models, broken = survey(config.analysis.models_directory, config.analysis.models)
        left_out = {spec.name for spec in available(config.analysis.models_directory)}
        backend = open_backend(config.analysis, config.triton)
    except ServiceError as exc:
        yield "models", _raising(exc)
        return
    try:
        for model in models:
            yield f"model {model.spec.name}", lambda m=model: _runs(m, backend)  # type: ignore[misc]
    finally:
        backend.close()
    for name, error in broken.items():
        yield f"model {name}", _raising(error)
    for name in sorted(left_out.difference(broken, (model.spec.name for model in models))):
        yield f"model {name}", lambda: "left out: it is not installed, or not named in [analysis]"
    if not models and not broken:
        yield "models", lambda: str(installed(config.analysis.models_directory))


def _runs(model: Model, backend: Backend) -> str:
    """Load a model's networks one after the other, and run each once, on nothing."""
    seconds = 0.0
    for network in model.networks:
        backend.load(network)
        began = time.perf_counter()
        answers = backend.infer(network.name, [np.zeros(network.input.dims, np.float32)])
        if not all(np.isfinite(answer).all() for answer in answers):
            raise ConfigError(
                doing=f"running the network {network.name} once, on nothing",
                found="an answer that is not finite (NaN)",
                rule="a network answers every image with numbers",
                way_out=f"overread models validate {model.spec.name}; export the network anew",
            )
        seconds += time.perf_counter() - began
        backend.unload(network.name)
    return f"version {model.spec.version} ran once on {backend.name} in {seconds:.1f} s"


def _raising(error: ServiceError) -> Attempt:
    def attempt() -> str:
        raise error

    return attempt
