"""The messages of a conversation, and what its speakers may do to the past. Needs no torch."""

from __future__ import annotations

from sash.errors import UsageError


class Turns:
    """Messages of a conversation.

    Attributes:
        messages: so far, each {"role": ..., "content": ...}.
    """

    def __init__(self, system: str | None = None) -> None:
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    def set_system(self, system: str | None) -> None:
        """Change the system prompt."""
        rest = self.messages[1:] if self.system is not None else self.messages
        self.messages = ([{"role": "system", "content": system}] if system else []) + rest

    def replace(self, messages: list[dict[str, str]]) -> None:
        """Continue another conversation."""
        self.messages = [dict(message) for message in messages]

    def undo(self) -> str:
        """Take back the last turn, question and answer; the question.

        Raises:
            UsageError: there is no turn to take back.
        """
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages or self.messages[-1]["role"] != "user":
            raise UsageError("there is no turn to take back")
        return self.messages.pop()["content"]
