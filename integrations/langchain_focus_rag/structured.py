"""Chat models whose answers follow a schema, as LangChain's `with_structured_output` makes them."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from focus_rag import InvalidInputError

_METHODS: Final = ("json_schema", "json_mode", "function_calling")


def structured(model: BaseChatModel, schema: Any, *, include_raw: bool = False, method: str = "json_schema", strict: bool | None = None) -> Runnable[Any, Any]:
    """The model with answers that follow a schema, parsed.

    Args:
        model: It takes `json_schema` as an option of a call.
        schema: A pydantic class, a `TypedDict`, a JSON Schema or a function's.
        include_raw: Whether to return the message, what was parsed of it, and what went wrong in parsing, instead of raising that.
        method: `json_schema`, `json_mode` or `function_calling`, which are the same here: the text of the answer is what follows the schema.
        strict: Whether all fields have to be given, as OpenAI has it.

    Raises:
        InvalidInputError: `method` is another one.
    """
    if method not in _METHODS:
        raise InvalidInputError(f"method must be one of {', '.join(_METHODS)}; got {method!r}.")
    as_json = convert_to_json_schema(schema, strict=strict)
    llm = model.bind(json_schema=as_json, ls_structured_output_format={"kwargs": {"method": method}, "schema": as_json})
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    parser: BaseOutputParser[Any] = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
    if not include_raw:
        return llm | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")
