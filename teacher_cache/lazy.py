"""Names of a package (PEP 562) and entries of a registry, imported at their first use.

Otherwise a package's `__init__` would import all of its files, and with them torch, which takes seconds.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar


def lazy_names(
    package: str, files: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package's `__init__`.

    Args:
        package: its `__name__`.
        files: names by the module of the package that defines them. No name may equal a module's.
    """
    modules = {name: f"{package}.{file}" for file, names in files.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        found = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names


def load(place: str) -> Any:
    """Import and return the object at MODULE:NAME."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


Kind = TypeVar("Kind")


class Registry(Mapping[str, Kind]):
    """Objects by name, each imported at its first lookup."""

    def __init__(self, places: Mapping[str, str]) -> None:
        """Args:
        places: MODULE:NAME by name.
        """
        self._places = dict(places)

    def __getitem__(self, name: str) -> Kind:
        found: Kind = load(self._places[name])
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._places  # Mapping would import the object

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
