"""Chat models whose answers follow a schema, as LangChain's `with_structured_output` makes them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from focus_rag import InvalidInputError

_METHODS: Final = ("json_schema", "json_mode", "function_calling")
_SCHEMA_KEYWORDS: Final = frozenset({"$ref", "allOf", "anyOf", "const", "enum", "items", "oneOf", "properties"})


def structured(
    model: BaseChatModel,
    schema: Any,
    *,
    include_raw: bool = False,
    method: str = "json_schema",
    strict: bool | None = None,
) -> Runnable[Any, Any]:
    """The model with answers that follow a schema, parsed.

    Args:
        model: It takes `json_schema` as an option of a call.
        schema: A pydantic class, a `TypedDict`, a JSON Schema or a function's.
        include_raw: Whether to return the message, what was parsed of it, and what went wrong in parsing, instead of
            raising that.
        method: `json_schema`, `json_mode` or `function_calling`, which are the same here: the text of the answer is
            what follows the schema.
        strict: Whether all fields have to be given, as OpenAI has it, of a schema that LangChain has to convert.

    Raises:
        InvalidInputError: `method` is another one.
    """
    if method not in _METHODS:
        raise InvalidInputError(f"method must be one of {', '.join(_METHODS)}; got {method!r}.")
    held = _json_schema(schema, strict)
    llm = model.bind(
        json_schema=held,
        ls_structured_output_format={"kwargs": {"method": method}, "schema": _for_traces(schema, held)},
    )
    reader: BaseOutputParser[Any] = (
        PydanticOutputParser(pydantic_object=schema) if _is_class(schema) else JsonOutputParser()
    )
    parser = RunnableGenerator(_whole, _awhole) | reader
    if not include_raw:
        return llm | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _whole(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    """Hand on a message, or the parts of a stream, and refuse in the end what was cut off: LangChain's parsers mend it
    as if it were whole.
    """
    parts = []
    for message in messages:
        parts.append(message)
        yield message
    _require_whole(parts)


async def _awhole(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    parts = []
    async for message in messages:
        parts.append(message)
        yield message
    _require_whole(parts)


def _require_whole(parts: Sequence[BaseMessage]) -> None:
    text = "".join(str(part.text) for part in parts)
    reasons = [part.response_metadata["finish_reason"] for part in parts if "finish_reason" in part.response_metadata]
    try:
        if reasons and reasons[-1] != "stop":
            raise ValueError(f"it ended by {reasons[-1]}")
        json.loads(text)
    except ValueError as error:
        raise OutputParserException(
            f"The answer is cut off ({error}): give it more max_tokens. It reads {text!r:.200}", llm_output=text
        ) from error


def _is_class(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _json_schema(schema: Any, strict: bool | None) -> dict[str, Any]:
    """What answers are held to: LangChain's conversion is for tools, and loses what stands outside of properties."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    if (
        isinstance(schema, Mapping)
        and schema.get("type") != "function"
        and ("type" in schema or not _SCHEMA_KEYWORDS.isdisjoint(schema))
    ):
        return dict(schema)
    return convert_to_json_schema(schema, strict=strict)


def _for_traces(schema: Any, held: dict[str, Any]) -> dict[str, Any]:
    """What LangSmith is told of: what LangChain makes of the schema, if it makes anything of it."""
    try:
        return convert_to_json_schema(schema)
    except ValueError:
        return held
