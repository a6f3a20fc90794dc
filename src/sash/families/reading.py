"""Read an untrusted configuration key by key, with bounds, and refuse what is left over at the end.

A key that nobody asked for either is known not to matter or might change what the model computes; a reader cannot
tell later, so it refuses. Every message names the file, the key, its value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import TypeVar

from sash.errors import ConfigError

MAX_LAYERS = 10_000
MAX_SIZE = 1_000_000
MAX_VOCABULARY = 10_000_000
MAX_POSITIONS = 1_000_000_000
MAX_HEADS = 65_536
MAX_EXPERTS = 65_536

Taken = TypeVar("Taken")
Default = TypeVar("Default")


class _Required(Enum):
    REQUIRED = 0


REQUIRED = _Required.REQUIRED


class ConfigReader:
    """Typed, bounded access to a mapping that remembers which keys were read.

    A `default` stands in for a key that is missing or null; without one, the key is required.

    Args:
        values: what the file says.
        source: the name of the file, for messages.
        path: where in the file these values stand, e.g. "text_config.".

    Raises:
        ConfigError: `values` is not a mapping of strings.
    """

    def __init__(self, values: object, source: str = "config.json", path: str = "") -> None:
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise ConfigError(f"{source}: {path.rstrip('.') or 'the whole'} must be an object with named values")
        self._values: Mapping[str, object] = values
        self._read: set[str] = set()
        self.source = source
        self.path = path

    def __contains__(self, key: str) -> bool:
        """Whether the key is there with a value other than null; does not count as reading it."""
        return self._values.get(key) is not None

    def given(self) -> dict[str, object]:
        """All that is there and not null; does not count as reading it."""
        return {key: value for key, value in self._values.items() if value is not None}

    def says_null(self, key: str) -> bool:
        """Whether the key is there, and null."""
        return key in self._values and self._values[key] is None

    def raw(self, key: str) -> object:
        """Any value, or None; the caller checks it."""
        self._read.add(key)
        return self._values.get(key)

    def integer(
        self, key: str, default: Default | _Required = REQUIRED, *, low: int = 1, high: int = MAX_SIZE
    ) -> int | Default:
        """A whole number between `low` and `high`, both included."""

        def take(value: object) -> int | None:
            whole = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            return value if whole and isinstance(value, int) else None

        return self._get(key, default, take, f"a whole number from {low} to {high}")

    def number(
        self, key: str, default: Default | _Required = REQUIRED, *, above: float = 0.0, high: float = 1e15
    ) -> float | Default:
        """A finite number greater than `above` and at most `high`."""

        def take(value: object) -> float | None:
            real = isinstance(value, int | float) and not isinstance(value, bool)
            return float(value) if real and isinstance(value, int | float) and above < value <= high else None

        return self._get(key, default, take, f"a number above {above:g} and at most {high:g}")

    def flag(self, key: str, default: Default | _Required = REQUIRED) -> bool | Default:
        """True or false."""
        return self._get(key, default, lambda value: value if isinstance(value, bool) else None, "true or false")

    def text(self, key: str, allowed: Collection[str], default: Default | _Required = REQUIRED) -> str | Default:
        """One of the allowed words."""

        def take(value: object) -> str | None:
            return value if isinstance(value, str) and value in allowed else None

        return self._get(key, default, take, f"one of {', '.join(sorted(allowed))}")

    def fixed(self, key: str, *allowed: object) -> None:
        """A key that may be missing or null, or say what this family always does; anything else is refused.

        Raises:
            ConfigError: another value, which would change the result in a way that is not implemented.
        """
        value = self.raw(key)
        if value is None or any(type(value) is type(other) and value == other for other in allowed):
            return
        numbers = isinstance(value, int | float) and not isinstance(value, bool)
        if numbers and any(value == other for other in allowed if not isinstance(other, bool)):
            return
        choice = " or ".join(repr(other) for other in allowed) or "null"
        raise ConfigError(f"{self._name(key)} = {_shown(value)} would change the result: only {choice} can be computed")

    def reader(self, key: str) -> ConfigReader | None:
        """A reader of the object at `key`; None where it is missing, null or empty."""
        value = self.raw(key)
        return None if value is None or value == {} else ConfigReader(value, self.source, f"{self.path}{key}.")

    def sequence(self, key: str, length: int | None = None) -> Sequence[object] | None:
        """A list, of `length` entries if that is given; None where it is missing or null."""
        value = self.raw(key)
        if value is None:
            return None
        if isinstance(value, str | bytes) or not isinstance(value, Sequence) or length not in (None, len(value)):
            raise self.refusal(key, "a list" if length is None else f"a list of {length} entries")
        return value

    def refusal(self, key: str, allowed: str) -> ConfigError:
        """The error of a value that is not what it may be."""
        return ConfigError(f"{self._name(key)} must be {allowed}; got {_shown(self._values.get(key))}")

    def finish(self, inert: Collection[str] = ()) -> None:
        """Refuse every key that was neither read nor is known not to matter.

        Raises:
            ConfigError: the first such key, by name; null and empty values are harmless.
        """
        left = sorted(key for key, value in self._values.items() if key not in self._read and not _is_empty(value))
        left = [key for key in left if key not in inert]
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            value = _shown(self._values[left[0]])
            raise ConfigError(
                f"{self._name(left[0])} = {value} is not understood and could change the result{more}: "
                "remove the key if it does not matter, or use a checkpoint without it"
            )

    def _get(
        self, key: str, default: Default | _Required, take: Callable[[object], Taken | None], allowed: str
    ) -> Taken | Default:
        value = self.raw(key)
        if value is None:
            if isinstance(default, _Required):
                raise ConfigError(f"{self._name(key)} is missing: it must be {allowed}")
            return default
        taken = take(value)
        if taken is None:
            raise self.refusal(key, allowed)
        return taken

    def _name(self, key: str) -> str:
        return f"{self.source}: {self.path}{_shown(key, quoted=False)}"


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | Mapping | Sequence) and len(value) == 0)


def _shown(value: object, quoted: bool = True) -> str:
    try:
        text = repr(value) if quoted else str(value)
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        text = f"a {type(value).__name__} too long to show"
    return text if len(text) <= 60 else text[:57] + "..."
