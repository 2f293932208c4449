"""The bodies of requests: those of the OpenAI API, and beside them what was retrieved."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from focus_rag.answers import GenerationSettings, Request
from focus_rag.errors import InvalidInputError
from focus_rag.passages import Passage
from focus_rag.score_order import ScoreKind
from focus_rag.score_split import ScoreSplit
from focus_rag.serving.settings import ServiceSettings

_WITHOUT_EFFECT: Final = frozenset(
    {"metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)
"""Fields of the API that say nothing about the answer: read and left alone."""
_NOT_HERE: Final[Mapping[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": (),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Fields of the API that this server does not have, and the values by which nothing is asked for."""

_Stop = Annotated[str, Field(max_length=500)]


class _Body(BaseModel):
    """Nulls say nothing, unknown fields are refused by the first of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, body: Any) -> Any:
        if not isinstance(body, Mapping):
            return body
        given = {name: value for name, value in body.items() if value is not None and name not in cls._ignored()}
        # One is enough to be told: a body of many would take as many lines.
        unknown = next((name for name in given if name not in _fields_of(cls)), None)
        if unknown is not None:
            raise ValueError(f"{unknown[:80]!r} is no field here")
        return given

    @classmethod
    def _ignored(cls) -> Collection[str]:
        return ()


@cache
def _fields_of(body: type[_Body]) -> frozenset[str]:
    """Names of a body's fields as they come over the wire."""
    return frozenset(field.alias or name for name, field in body.model_fields.items())


class PassageBody(_Body):
    """A retrieved passage, see `Passage`."""

    text: str
    score: Any = None
    title: str | None = None
    id: str | None = None


class MessageBody(_Body):
    """A message of a conversation; its text may come in parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_it_came(cls, message: Any) -> Any:
        """What clients send back of a reply: an answer of nothing, and lists of nothing."""
        if not isinstance(message, Mapping) or message.get("role") != "assistant":
            return message
        nothing = {"content": ""} if message.get("content") is None else {}
        kept = {name: value for name, value in message.items() if name not in ("tool_calls", "refusal") or value}
        return {**kept, **nothing}

    @classmethod
    def _ignored(cls) -> Collection[str]:
        return ("annotations",)

    @property
    def plain(self) -> dict[str, str]:
        """Role and content as the chat template takes them."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class TextPart(_Body):
    """A part of a message's text."""

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, part: Any) -> Any:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"only parts of text are taken, no {kind[:80]!r}")
        return part


class StreamOptions(_Body):
    """What a stream tells beside the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchemaBody(_Body):
    """A named JSON Schema, as the OpenAI API wraps it."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    """What an answer has to be: any text, any JSON object, or what follows a JSON Schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type json_schema, and to no other")
        return self

    @property
    def as_schema(self) -> dict[str, Any] | None:
        """What generation is held to."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class GenerationBody(_Body):
    """What all requests have in common: how to generate, and what was retrieved.

    Passages, alpha, split, score_kind, higher_is_better and noise are those of `Request`; they come beside the fields
    of the OpenAI API (`extra_body` of its client).
    """

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=0)
    seed: int | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    response_format: ResponseFormat | None = None
    passages: list[PassageBody] = Field(default_factory=list, fail_fast=True)
    alpha: Annotated[float, Strict()] | Literal["auto"] | None = None
    split: ScoreSplit | Literal["auto", "off"] | None = None
    score_kind: ScoreKind | None = None
    higher_is_better: bool | None = None
    noise: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _nothing_that_is_not_here(cls, body: Any) -> Any:
        known = body if isinstance(body, Mapping) else {}
        asked = [
            name for name, nothing in _NOT_HERE.items() if known.get(name) is not None and known[name] not in nothing
        ]
        if asked:
            raise ValueError(f"{', '.join(sorted(asked))}: not to be had here")
        return body

    @classmethod
    def _ignored(cls) -> Collection[str]:
        return _WITHOUT_EFFECT | _NOT_HERE.keys()

    def _request(self, default: GenerationSettings, limits: ServiceSettings, **what: Any) -> Request:
        """The request to the generator.

        Args:
            default: Generation settings where the body says nothing.
            limits: What a request may ask for.
            **what: Question, messages or prompt, and query.

        Raises:
            InvalidInputError: It asks for more than that, or for what cannot be used.
        """
        if len(self.passages) > limits.most_passages:
            raise InvalidInputError(
                f"{len(self.passages)} passages are more than this server takes ({limits.most_passages}): send the "
                "best ones."
            )
        longest = self.max_completion_tokens or self.max_tokens
        if longest is not None and longest > limits.most_new_tokens:
            raise InvalidInputError(
                f"max_tokens is {longest}, more than this server allows ({limits.most_new_tokens})."
            )
        changes: dict[str, Any] = {
            name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "seed", "stop")
        }
        changes["json_schema"] = None if self.response_format is None else self.response_format.as_schema
        settings = default.changed(
            {**changes, "max_new_tokens": longest or min(default.max_new_tokens, limits.most_new_tokens)}
        )
        signal = {name: getattr(self, name) for name in ("alpha", "split", "score_kind", "higher_is_better", "noise")}
        passages = [Passage(**passage.model_dump()) for passage in self.passages]
        return Request(**what, passages=passages, settings=settings, **signal)


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`: a conversation in which the passages stand already."""

    messages: list[MessageBody] = Field(min_length=1, fail_fast=True)
    query: str | None = None

    def request(self, default: GenerationSettings, limits: ServiceSettings) -> Request:
        """As `_request`."""
        return self._request(default, limits, messages=[message.plain for message in self.messages], query=self.query)


class CompletionBody(GenerationBody):
    """`POST /v1/completions`: raw text in which the passages stand already; one, in a list or not."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    query: str | None = None

    def request(self, default: GenerationSettings, limits: ServiceSettings) -> Request:
        """As `_request`."""
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return self._request(default, limits, prompt=prompt, query=self.query)


class AnswerBody(GenerationBody):
    """`POST /v1/answers`: a question and its passages, laid out here, all or the best of them; the reply is that to a
    conversation.
    """

    question: str
    keep_best: Annotated[int, Strict()] | None = Field(default=None, ge=1)

    def request(self, default: GenerationSettings, limits: ServiceSettings) -> Request:
        """As `_request`."""
        return self._request(default, limits, question=self.question, keep_best=self.keep_best)
