'''Where the lines of a chat come from: a terminal with history and editing, or any stream of lines.

A message between `"""` and `"""` may have several lines.
'''

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sash.errors import TextEncodingError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

FENCE = '"""'
PROMPT = ">>> "
MORE = "... "


def is_open(text: str) -> bool:
    '''Whether a block was begun and not ended yet.

    >>> is_open('"""a'), is_open('"""a"""'), is_open('a """'), is_open('"""')
    (True, False, False, True)
    '''
    text = text.strip()
    return text.startswith(FENCE) and not (len(text) >= 2 * len(FENCE) and text.endswith(FENCE))


def unfenced(text: str) -> tuple[str, bool]:
    r'''A message without the quotes around a block, and whether it was one: then it is never a command.

    >>> unfenced('"""\nline\n/not a command\n"""'), unfenced(" /help ")
    (('line\n/not a command', True), ('/help', False))
    '''
    text = text.strip()
    if not text.startswith(FENCE):
        return text, False
    return text.removeprefix(FENCE).removesuffix(FENCE).strip("\n"), True


def plain_messages(stream: TextIO) -> Iterator[str]:
    """Messages from a stream that is no terminal: a line each, or a block."""
    lines = _lines(stream)
    for line in lines:
        message = line
        while is_open(message):
            more = next(lines, None)
            if more is None:
                break
            message += more
        yield message


def _lines(stream: TextIO) -> Iterator[str]:
    try:
        yield from stream
    except UnicodeDecodeError as error:
        raise TextEncodingError("standard input is not UTF-8: convert it, e.g. iconv -f LATIN1 -t UTF-8") from error


def history_file() -> Path:
    """Where messages are remembered, in the user's state directory."""
    import platformdirs

    return Path(platformdirs.user_state_dir("sash", appauthor=False)) / "chat_history"


def terminal_messages(completions: list[str]) -> Iterator[str]:
    """Messages that a person types: Enter sends, Alt-Enter begins a new line, Ctrl-D leaves."""
    session = _prompt_session(completions)
    while True:
        try:
            message = _asked(session)
        except KeyboardInterrupt:
            sys.stderr.write("(Ctrl-D or /bye leaves)\n")
            continue
        except EOFError:
            return
        yield message


def _asked(session: PromptSession[str]) -> str:
    """What is typed. Ctrl-C is a key there; as a signal, in the moments before and after, it would break the prompt."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return session.prompt(PROMPT, prompt_continuation=MORE)
    finally:
        signal.signal(signal.SIGINT, before)


def _prompt_session(completions: list[str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.output import create_output

    path = history_file()
    history: History
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        history = FileHistory(str(path))
    except OSError:
        history = InMemoryHistory()
    return PromptSession(
        history=history,
        multiline=True,
        key_bindings=_keys(),
        completer=WordCompleter(completions, sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=True,
        # Answers go to standard output; what is typed and shown while typing does not.
        output=create_output(stdout=sys.stderr),
    )


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    bind: Callable[..., Callable[[Callable[[KeyPressEvent], None]], object]] = keys.add
    bind("enter")(enter)
    bind("escape", "enter")(new_line)
    return keys
