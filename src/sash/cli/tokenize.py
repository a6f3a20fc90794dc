"""`sash tokenize`: the tokens that a model makes of a text or of a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from sash import hub
from sash.cli.known_model import open_tokenizer
from sash.cli.text_input import read_text
from sash.errors import EmptyPromptError, UsageError
from sash.explain.labels import table


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, folder or GGUF file.")],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="The text.")] = None,
    file: Annotated[str | None, typer.Option("-f", "--file", metavar="FILE", help="Read the text; - is stdin.")] = None,
    chat: Annotated[
        str | None,
        typer.Option("--chat", metavar="FILE", help='Encode a chat: JSON, a list of {"role", "content"}; - is stdin.'),
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print the ids only, on one line.")] = False,
    bos: Annotated[bool, typer.Option("--bos/--no-bos", help="Begin with the model's begin-of-text token.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Show the tokens of a text: position, id and what each stands for."""
    if sum(source is not None for source in (text, file, chat)) != 1:
        raise UsageError("give one of TEXT, -f FILE and --chat FILE")
    if ids and as_json:
        raise UsageError("give --ids or --json, not both")
    messages = None if chat is None else _messages(read_text(chat), chat)
    whole = read_text(file) if file is not None else text
    if messages is None and not whole:
        raise EmptyPromptError("the text is empty: give some to tokenize")
    tokenizer = open_tokenizer(hub.resolve(model))
    token_ids = tokenizer.encode(whole or "", bos=bos) if messages is None else tokenizer.encode_chat(messages)
    if ids:
        typer.echo(" ".join(map(str, token_ids)))
        return
    texts = [tokenizer.token_text(token_id) for token_id in token_ids]
    if as_json:
        tokens = [
            {"id": token_id, "text": shown, "control": token_id in tokenizer.control_ids}
            for token_id, shown in zip(token_ids, texts, strict=True)
        ]
        found = {"model": model, "tokenizer": tokenizer.kind, "n_tokens": len(tokens), "tokens": tokens}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = [["position", "id", "text"]]
    rows += [
        [
            str(position),
            str(token_id),
            shown if token_id in tokenizer.control_ids else json.dumps(shown, ensure_ascii=False),
        ]
        for position, (token_id, shown) in enumerate(zip(token_ids, texts, strict=True))
    ]
    typer.echo("\n".join(table(rows, right=[True, True, False])))
    typer.echo(f"{len(token_ids):,} tokens ({tokenizer.kind})", err=True)


def _messages(text: str, name: str) -> list[Mapping[str, str]]:
    """The messages of a chat file; what they hold is checked by the tokenizer."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}") from error
    if isinstance(found, dict):
        found = found.get("messages")
    if not isinstance(found, list):
        raise UsageError(f'{name} holds no chat: give a JSON list of {{"role": ..., "content": ...}}')
    return found
