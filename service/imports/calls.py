"""One object of a bundle's configuration that names a class: its arguments, each read or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.imports.expressions import Configuration
from service.imports.refusal import Unmappable

_SPECIAL = frozenset({"_target_", "_disabled_", "_desc_", "_requires_", "_mode_"})
_FLOAT32 = frozenset({"float32", "$torch.float32", "$np.float32", "$numpy.float32", "$torch.float", "torch.float32"})
_PREFIX = "monai."


class Call:
    """A transform or an inferer as it stands in the configuration.

    Every argument must be read, or named as harmless; `finish` refuses what is left, so that an argument nobody here
    knows can't change what the network sees.
    """

    def __init__(self, raw: Mapping[str, Any], configuration: Configuration) -> None:
        self._raw = {key: value for key, value in raw.items() if key not in _SPECIAL}
        self._configuration = configuration
        self._read: set[str] = set()
        target = raw.get("_target_")
        self.target = target if isinstance(target, str) else "(without a name)"
        disabled = configuration.resolve(raw.get("_disabled_", False))
        self.is_disabled = disabled.strip().lower() == "true" if isinstance(disabled, str) else bool(disabled)

    @property
    def name(self) -> str:
        """The class's name, as MONAI spells it with a small d at the end; another package's is given in full."""
        if "." in self.target and not self.target.startswith(_PREFIX):
            return self.target
        last = self.target.rpartition(".")[2]
        for suffix in ("Dict", "D"):
            if last.endswith(suffix):
                return last.removesuffix(suffix) + "d"
        return last

    def take(self, key: str, default: Any = None) -> Any:
        """The value of an argument."""
        self._read.add(key)
        return self._configuration.resolve(self._raw[key]) if key in self._raw else default

    def one(self, key: str, default: Any = None) -> Any:
        """The value of an argument that may be given once for each key: of the only key."""
        value = self.take(key, default)
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    def number(self, key: str, default: float | None = None) -> float:
        """A number."""
        value = self.one(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unmappable(f"{key} is {value!r}, not a number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; the text "True", as some bundles have it, is true."""
        value = self.one(key, default)
        if value in ("True", "true"):
            return True
        if value is None:
            return default
        if not isinstance(value, bool):
            raise Unmappable(f"{key} is {value!r}, neither true nor false")
        return value

    def only(self, key: str, *allowed: Any) -> Any:
        """An argument that must have one of these values; the first is its default."""
        value = self.one(key, allowed[0])
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise Unmappable(f"{key} = {value!r}; only {' or '.join(repr(one) for one in allowed)} is mapped")
        return value

    def refers(self, key: str, reference: str) -> None:
        """An argument that must stand there as this text; what it refers to is not worked out."""
        self._read.add(key)
        value = self._raw.get(key, reference)
        if value != reference:
            raise Unmappable(f"{key} = {value!r}; only {reference!r} is mapped")

    def sizes(self, key: str) -> tuple[int, ...]:
        """Three whole numbers above 0; one stands for all three."""
        value = self.take(key)
        numbers = value if isinstance(value, list) else [value] * 3
        if len(numbers) != 3 or not all(type(number) is int and number > 0 for number in numbers):
            raise Unmappable(f"{key} is {value!r}, not three sizes")
        return tuple(numbers)

    def float32(self, key: str = "dtype") -> None:
        """A type, which must be float32; it is compared as it stands there, not worked out."""
        self._read.add(key)
        value = self._raw.get(key)
        if value is not None and value not in _FLOAT32:
            raise Unmappable(f"{key} = {value!r}; only float32 is mapped")

    def harmless(self, *keys: str) -> None:
        """Arguments that change nothing for us, whatever they are; they are not worked out."""
        self._read.update(keys)

    def applies_to(self, key: str) -> None:
        """The item of the data that it works on, which must be this one alone."""
        value = self.take("keys")
        keys = value if isinstance(value, list) else [value]
        if keys != [key]:
            raise Unmappable(f"keys is {value!r}, not {key!r} alone")
        self.harmless("allow_missing_keys", "lazy")

    def finish(self) -> None:
        """Refuse the arguments that were not read."""
        left = sorted(set(self._raw) - self._read)
        if left:
            raise Unmappable(f"the argument {', '.join(left)} is not known here")
