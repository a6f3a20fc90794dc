"""The catalogue: models that Sash knows by a short name, and where their files come from (`catalog.toml`)."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A wheel of the Python package index: its size in bytes and its SHA-256 in hex."""

    name: str
    version: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A member of a wheel."""

    package: str
    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueFile:
    """A file of a model, made by joining parts in order; size and SHA-256 are those of the joined file."""

    path: str
    size: int
    sha256: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """A model that can be pulled by a short name.

    Attributes:
        name: what `sash pull` takes.
        description: one line for people.
        licence: name of the licence.
        licence_url: where it can be read.
        load: the file to load.
        packages: the wheels that hold the files.
        files: the files, licence texts included.
    """

    name: str
    description: str
    licence: str
    licence_url: str
    load: str
    packages: tuple[Package, ...]
    files: tuple[CatalogueFile, ...]

    @property
    def download_bytes(self) -> int:
        """Bytes that a pull fetches."""
        return sum(package.size for package in self.packages)

    @property
    def size(self) -> int:
        """Bytes of the model's files once pulled."""
        return sum(file.size for file in self.files)

    @property
    def source(self) -> str:
        """Where the files come from, for people."""
        return "Python package index: " + ", ".join(f"{package.name} {package.version}" for package in self.packages)


def _entry(name: str, raw: dict[str, Any]) -> CatalogueEntry:
    packages = tuple(Package(**package) for package in raw.pop("packages"))
    files = tuple(
        CatalogueFile(**(file | {"parts": tuple(Part(**part) for part in file["parts"])})) for file in raw.pop("files")
    )
    return CatalogueEntry(name=name, packages=packages, files=files, **raw)


@functools.cache
def catalogue() -> Mapping[str, CatalogueEntry]:
    """Every model of the catalogue by its name."""
    text = resources.files("sash").joinpath("catalog.toml").read_text(encoding="utf-8")
    return MappingProxyType({name: _entry(name, raw) for name, raw in tomllib.loads(text).items()})
