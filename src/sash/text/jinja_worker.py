"""Renders chat templates in a process of its own, which its parent kills when a template takes too long.

Chat templates are programs by strangers. The sandbox keeps them from reaching Python; only a process can be kept from
running or growing forever. This file is run by path, not imported by the library, so it knows nothing of Sash.
It reads one JSON request a line and answers each with one JSON line.

The environment below is the only one in Sash. Its settings and extra names are those that chat templates are written
for (transformers, `utils/chat_template_utils.py`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_MEMORY = 512 << 20


class GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; rendering shows them as they are."""

    tags = {"generation"}  # noqa: RUF012, jinja2 reads a plain class attribute

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag's body in a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class PlainNamespace(Namespace):
    """A namespace that refuses names with an underscore in front, the way into Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a chat template may not store {name!r}")
        super().__setitem__(name, value)


def raise_exception(message: str) -> None:
    """Lets a template refuse a conversation."""
    raise jinja2.TemplateError(message)


def strftime_now(pattern: str) -> str:
    """The date or time, as a template wants it written."""
    return datetime.now().strftime(pattern)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's escaping for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """The one Jinja environment of Sash."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    env.globals["namespace"] = PlainNamespace
    env.globals.pop("lipsum", None)
    return env


@lru_cache(maxsize=4)
def compiled(source: str) -> jinja2.Template:
    """A template, compiled once."""
    return environment().from_string(source)


def render(request: dict[str, Any]) -> dict[str, str]:
    """The answer to one request: {"text": ...} or {"error": ...}."""
    parts: list[str] = []
    room = int(request["max_output"])
    try:
        for part in compiled(request["source"]).generate(**request["variables"]):
            room -= len(part)
            if room < 0:
                return {"error": f"it writes more than {request['max_output']:,} characters"}
            parts.append(part)
    except MemoryError:
        parts.clear()
        return {"error": f"it needs more than {MAX_MEMORY >> 20} MiB"}
    except RecursionError:
        return {"error": "it nests too deeply"}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except Exception as error:  # whatever a stranger's template does wrong, the answer is one line
        return {"error": str(error) or type(error).__name__}
    return {"text": "".join(parts)}


def limit_memory() -> None:
    """Caps the address space, where the system can."""
    try:
        import resource
    except ImportError:  # not on Windows; the time limit still holds
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def serve(read_line: Callable[[], bytes], write: Callable[[bytes], object], flush: Callable[[], object]) -> None:
    """Answers requests until the parent closes the pipe."""
    write(b"{}\n")
    flush()
    while line := read_line():
        answer = render(json.loads(line))
        write(json.dumps(answer).encode("ascii") + b"\n")
        flush()


if __name__ == "__main__":
    limit_memory()
    serve(sys.stdin.buffer.readline, sys.stdout.buffer.write, sys.stdout.buffer.flush)
