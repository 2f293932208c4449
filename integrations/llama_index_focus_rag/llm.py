"""FocusLLM: a LlamaIndex model over a FocusGenerator."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import Any, Self

import llama_index.core
from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.llm import default_completion_to_prompt
from llama_index.core.program.utils import FlexibleModel
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Model
from pydantic import BaseModel, ConfigDict

from focus_rag import Answer, FocusGenerator, FocusSettings, InvalidInputError, Passage, as_passages
from llama_index_focus_rag.calls import Call, assistant, collector, from_node
from llama_index_focus_rag.capture import CAPTURE
from llama_index_focus_rag.messages import chat_template_messages

Prompt = str | Sequence[Mapping[str, str]]


class FocusLLM(FocusSettings, CustomLLM):
    """Language model that focuses on the relevant ones among the passages that its query or chat engine retrieved.

        Settings.llm = FocusLLM(model="Qwen/Qwen2.5-7B-Instruct", focus_profile="path-or-hub-id")

    Nothing else in a chain changes. Which passages a call holds, and their scores, is found out from what LlamaIndex
    retrieved; a call that holds none (condensing a question) or that serves the retrieval (reranking) is not focused.
    How an answer came about stands in `additional_kwargs["focus_rag"]` of the response, and in the reports of
    `collect_reports`.

    Calls take `passages` (which then replace the captured ones), `query` (what those were retrieved for), `alpha`,
    `split`, `noise`, `score_kind`, `higher_is_better`, `max_new_tokens` (or `max_tokens`), `temperature`, `top_p`,
    `top_k`, `seed`, `stop` and `json_schema`. Asynchronous methods never block the event loop. Fields are those of
    `focus_rag.FocusSettings` and these:

    Attributes:
        max_new_tokens: Most tokens of an answer.
        use_chat_template: Whether prompts and messages are shown to the model by its chat template, if it has one.
        share_tokenizer: Whether this model's tokenizer becomes LlamaIndex's (`Settings.tokenizer`) if none is set yet,
            so that prompts are packed to this model's window.

    Raises:
        InvalidInputError: A setting cannot be used, or the model cannot be loaded.
        ValidationError: Of pydantic, where a setting is of no kind that its field takes.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    max_new_tokens: int | None = None
    use_chat_template: bool = True
    share_tokenizer: bool = True

    def __init__(self, generator: FocusGenerator | None = None, **settings: Any) -> None:
        super().__init__(generator, **settings)
        CAPTURE.install()
        if self.share_tokenizer and llama_index.core.global_tokenizer is None:
            llama_index.core.set_global_tokenizer(self.token_ids)

    @classmethod
    def passages_of(cls, values: Sequence[Any]) -> tuple[Passage, ...]:
        """Passages from nodes with or without scores and all that `focus_rag.as_passages` takes."""
        return as_passages(values, from_node)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """A model from the settings that `to_dict` wrote, which do not hold the loaded generator: `from_dict(data,
        generator=...)`.

        Raises:
            InvalidInputError: Neither a generator nor a model to load is given.
        """
        given = {**data, **kwargs}
        if given.get("generator") is None and given.get("model") is None:
            raise InvalidInputError(
                "A dump of FocusLLM does not hold its model: pass generator=..., or model=... and focus_profile=... "
                "to load it."
            )
        return super().from_dict(data, **kwargs)

    @classmethod
    def class_name(cls) -> str:
        return "FocusLLM"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self.generator.context_window,
            num_output=self.generation_settings({}).max_new_tokens,
            is_chat_model=self._has_chat_template,
            is_function_calling_model=False,
            model_name=self.model_name,
        )

    @property
    def tokenizer_fn(self) -> Callable[[str], list[int]]:
        """Text -> token ids, for `Settings.tokenizer` and `TokenCountingHandler`."""
        return self.token_ids

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        call = self._call(self._completion_prompt(prompt, formatted), kwargs)
        return call.completion(self.generator.run(call.request))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        call = self._call(self._completion_prompt(prompt, formatted), kwargs)
        return self._stream(call, _completion_piece, call.completion)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        call = self._call(self._chat_prompt(messages), kwargs)
        return call.chat(self.generator.run(call.request))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        call = self._call(self._chat_prompt(messages), kwargs)
        return self._stream(call, _chat_piece, call.chat)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        call = await asyncio.to_thread(self._call, self._completion_prompt(prompt, formatted), kwargs)
        return call.completion(await self._answer(call))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        call = await asyncio.to_thread(self._call, self._completion_prompt(prompt, formatted), kwargs)
        return await self._astream(call, _completion_piece, call.completion)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        call = await asyncio.to_thread(self._call, self._chat_prompt(messages), kwargs)
        return call.chat(await self._answer(call))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        call = await asyncio.to_thread(self._call, self._chat_prompt(messages), kwargs)
        return await self._astream(call, _chat_piece, call.chat)

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """As in LlamaIndex, with the answer held to the schema of the class where the extra `[structured]` is
        installed.
        """
        predicted: Model = super().structured_predict(
            output_cls, prompt, _held_to(output_cls, llm_kwargs), **prompt_args
        )
        return predicted

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """As `structured_predict`."""
        predicted: Model = await super().astructured_predict(
            output_cls, prompt, _held_to(output_cls, llm_kwargs), **prompt_args
        )
        return predicted

    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Model | FlexibleModel, None, None]:
        """As `structured_predict`, part by part."""
        return super().stream_structured_predict(output_cls, prompt, _held_to(output_cls, llm_kwargs), **prompt_args)

    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model | FlexibleModel, None]:
        """As `structured_predict`, part by part."""
        return await super().astream_structured_predict(
            output_cls, prompt, _held_to(output_cls, llm_kwargs), **prompt_args
        )

    async def _answer(self, call: Call) -> Answer:
        (answer,) = await self.generator.aanswer_batch([call.request])
        return answer  # type: ignore[no-any-return]

    def _stream(
        self, call: Call, piece: Callable[[str, str], Any], last: Callable[[Answer, str], Any]
    ) -> Generator[Any, None, None]:
        # Opened here and not in the generator: the passages and errors of a call are found when it is made.
        stream = self.generator.run_stream(call.request)

        def responses() -> Generator[Any, None, None]:
            with stream:
                text = ""
                for delta in stream:
                    text += delta
                    yield piece(text, delta)
                yield last(stream.answer, "")

        return responses()

    async def _astream(
        self, call: Call, piece: Callable[[str, str], Any], last: Callable[[Answer, str], Any]
    ) -> AsyncGenerator[Any, None]:
        stream = await self.generator.arun_stream(call.request)

        async def responses() -> AsyncGenerator[Any, None]:
            async with stream:
                text = ""
                async for delta in stream:
                    text += delta
                    yield piece(text, delta)
                yield last(stream.answer, "")

        return responses()

    def _call(self, prompt: Prompt, options: Mapping[str, Any]) -> Call:
        """Build a call. Asynchronous methods do it in a thread: altered passages of a long prompt take long to find."""
        return Call(self.focus_call(prompt, options, CAPTURE.passages), self.model_name, collector())

    @property
    def _has_chat_template(self) -> bool:
        return self.use_chat_template and bool(getattr(self.generator.tokenizer, "chat_template", None))

    def _completion_prompt(self, prompt: str, formatted: bool) -> Prompt:
        if not isinstance(prompt, str):
            raise InvalidInputError(f"prompt must be a string; got {type(prompt).__name__}. Messages go to chat.")
        if formatted:
            return prompt
        if self.completion_to_prompt is not default_completion_to_prompt:
            return str(self.completion_to_prompt(prompt))  # type: ignore[misc]
        if self._has_chat_template:
            return self._chat_prompt([ChatMessage(role=MessageRole.USER, content=prompt)], extend=True)
        return f"{self.system_prompt}\n\n{prompt}" if self.system_prompt else prompt

    def _chat_prompt(self, messages: Sequence[ChatMessage], extend: bool = False) -> Prompt:
        """What the model is shown.

        Args:
            messages: The conversation.
            extend: Whether the system prompt is still to be put before it; engines do so by themselves.
        """
        if extend and self.system_prompt:
            messages = [ChatMessage(role=MessageRole.SYSTEM, content=self.system_prompt), *messages]
        if self.messages_to_prompt is generic_messages_to_prompt and self._has_chat_template:
            return chat_template_messages(messages)
        chat_template_messages(messages)  # refuses what is not text
        return str(self.messages_to_prompt(messages))  # type: ignore[misc]


def _held_to(output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of a call whose answer has to follow the schema of a class; without llguidance it is left to the prompt,
    as LlamaIndex has it.
    """
    schema = {} if importlib.util.find_spec("llguidance") is None else {"json_schema": output_cls.model_json_schema()}
    return {**schema, **(llm_kwargs or {})}


def _completion_piece(text: str, delta: str) -> CompletionResponse:
    return CompletionResponse(text=text, delta=delta)


def _chat_piece(text: str, delta: str) -> ChatResponse:
    return ChatResponse(message=assistant(text), delta=delta)
