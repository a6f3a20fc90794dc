"""Bodies of the requests, route by route."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sash.server.fields import Fields, SamplingFields, TokenId, Window

MAX_PROMPTS = 64

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class ContentPart(Fields):
    """A part of a message; only text can be read."""

    type: str
    text: str | None = None


class FunctionCall(Fields):
    """A function that was called, its arguments as JSON text (OpenAI) or as an object (Mistral)."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str | dict[str, Any] = ""


class ToolCall(Fields):
    """A call that an earlier answer made."""

    id: Annotated[str, Field(max_length=256)] | None = None
    type: str | None = None
    index: int | None = None
    function: FunctionCall


class Message(Fields):
    """One turn of a conversation."""

    role: Role
    content: str | list[ContentPart] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    prefix: bool | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    refusal: str | None = None


class Function(Fields):
    """A function that the model may call, its parameters as a JSON schema."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool that the model may use."""

    type: Literal["function"] = "function"
    function: Function


class NamedFunction(Fields):
    """The name of a function."""

    name: str


class NamedTool(Fields):
    """The one tool that must be used."""

    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(Fields):
    """A schema that the answer keeps to."""

    name: Annotated[str, Field(max_length=256)] | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    schema_definition: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Fields):
    """What form an answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "any", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    safe_prompt: bool | None = None
    continue_final_message: bool | None = None
    session: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """Tokens to write at most, by either name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=16)] | None = None


class FimRequest(SamplingFields):
    """POST /v1/fim/completions."""

    prompt: str
    suffix: str | None = None


class TokenizeRequest(Fields):
    """POST /tokenize: a text, or a conversation as the model will read it."""

    model: Annotated[str, Field(max_length=500)] | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Fields):
    """POST /detokenize."""

    model: Annotated[str, Field(max_length=500)] | None = None
    tokens: list[TokenId]


class WindowRequest(Fields):
    """POST /v1/window: what the next token could see of a conversation."""

    model: Annotated[str, Field(max_length=500)] | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    safe_prompt: bool | None = None
    window: Window | None = None
