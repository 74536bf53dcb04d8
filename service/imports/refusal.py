"""How an import ends that can't be finished."""

from __future__ import annotations

from service.errors import ConfigError


class CannotImport(ConfigError):
    """A model from outside can't become a model folder: what it says is missing, unsafe, or not ours to do."""


class Unmappable(Exception):
    """One thing that Overread can't do as the model's makers did it; gathered, so that a refusal names all of them."""
