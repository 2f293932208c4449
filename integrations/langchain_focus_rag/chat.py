"""ChatFocus: a LangChain chat model over a FocusGenerator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, get_executor_for_config
from langchain_core.runnables.utils import gather_with_concurrency
from pydantic import BaseModel, ConfigDict

from focus_rag import Answer, FocusCall, InvalidInputError
from langchain_focus_rag.batching import LARGEST_BATCH, GatheredBatch, Row
from langchain_focus_rag.calls import LangChainSettings
from langchain_focus_rag.capture import StartedRuns, text_of
from langchain_focus_rag.messages import chat_template_messages
from langchain_focus_rag.structured import structured


class ChatFocus(LangChainSettings, BaseChatModel):
    """Chat model that focuses on the relevant ones among the passages that its chain retrieved.

    The passages and scores of a call are found by themselves (see `PassageCapture`); pass `passages=` by `bind`, per
    call or as a field to say them, and `query=` what they were retrieved for. `passages=[]` turns focusing off unless
    alpha is a number, for a model that rewrites or grades. How each answer came about is in
    `response_metadata["focus_rag"]`: alpha, noise, reason, how the passages were found, and how much attention each
    got.

    `with_structured_output` holds answers to a schema (extra `[structured]`). It calls no tools (`bind_tools` says so)
    and, as a loaded model cannot be written down, is not serialised by `dumpd`. A cache answers by prompt and settings;
    the scores of captured passages are not part of its key.

    Example:
        ```python
        llm = ChatFocus(model="Qwen/Qwen2.5-7B-Instruct", focus_profile="path-or-hub-id")      # or ChatFocus(generator)
        chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | llm
        ```
    """

    # A misspelt setting must not pass for one.
    model_config = ConfigDict(extra="forbid")

    streaming: bool = False

    @property
    def _llm_type(self) -> str:
        return "focus-rag-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.identity()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return cast(LangSmithParams, self.langsmith("chat", stop, kwargs))

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of a text by the model's own tokenizer; nothing is fetched."""
        return self.token_ids(text)

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """As in LangChain: a model whose answers follow a schema, parsed, by whichever `method`.

        Whatever the model, the answer follows the schema, unless it was cut off at `max_tokens`. The model is not told
        of the schema: say in the prompt what is wanted.
        """
        return structured(self, schema, include_raw=include_raw, **kwargs)

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        """Refused, because the model calls no tools.

        Raises:
            NotImplementedError: Always; it is what LangChain takes for a model without tools.
        """
        raise NotImplementedError(
            "ChatFocus calls no tools: retrieve before it, in a step of the chain or a node of the graph, and use "
            "with_structured_output where its answer is to be data."
        )

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer many inputs in one batch of the generator, with one alpha per row.

        At most `max_concurrency` rows go together, if the configuration sets it.
        """
        configs = get_config_list(config, len(inputs))
        outputs: list[Any] = []
        for part in _parts(len(inputs), configs):
            gathered = GatheredBatch(self.generator, len(part))

            def invoke(row: int, gathered: GatheredBatch = gathered) -> Any:
                try:
                    with Row(gathered):
                        return self.invoke(inputs[row], configs[row], **kwargs)
                except Exception as error:
                    if return_exceptions:
                        return error
                    raise

            # The rows of a part wait for each other, so each needs a thread.
            with get_executor_for_config({"max_concurrency": len(part)}) as executor:
                outputs += executor.map(invoke, part)
        return outputs

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """`batch` without blocking the event loop."""
        configs = get_config_list(config, len(inputs))
        outputs: list[Any] = []
        for part in _parts(len(inputs), configs):
            gathered = GatheredBatch(self.generator, len(part))

            async def invoke(row: int, gathered: GatheredBatch = gathered) -> Any:
                try:
                    async with Row(gathered):
                        return await self.ainvoke(inputs[row], configs[row], **kwargs)
                except Exception as error:
                    if return_exceptions:
                        return error
                    raise

            outputs += await gather_with_concurrency(None, *(invoke(row) for row in part))
        return outputs

    def generate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """As in LangChain."""
        with StartedRuns():
            return super().generate(messages, *args, **kwargs)

    async def agenerate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """As in LangChain."""
        with StartedRuns():
            return await super().agenerate(messages, *args, **kwargs)

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[AIMessageChunk]:
        """As in LangChain."""
        # The run is started and its passages are looked up on the way to the first chunk.
        with closing(cast(Generator[AIMessageChunk, None, None], super().stream(*args, **kwargs))) as chunks:
            with StartedRuns():
                first = next(chunks, None)
            if first is not None:
                yield first
                yield from chunks

    async def astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[AIMessageChunk]:
        """As in LangChain."""
        async with aclosing(cast(AsyncGenerator[AIMessageChunk, None], super().astream(*args, **kwargs))) as chunks:
            with StartedRuns():
                first = await anext(chunks, None)
            if first is not None:
                yield first
                async for chunk in chunks:
                    yield chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(messages, stop, run_manager, kwargs)
        row = Row.current(self.generator)
        answer = row.answer(call.request) if row is not None else self.generator.run(call.request)
        return self._result(call, answer)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = await asyncio.to_thread(self._call, messages, stop, run_manager, kwargs)
        row = Row.current(self.generator)
        if row is not None:
            return self._result(call, await row.aanswer(call.request))
        return self._result(call, (await self.generator.aanswer_batch([call.request]))[0])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._call(messages, stop, run_manager, kwargs)
        with self.generator.run_stream(call.request) as stream:
            for text in stream:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                if run_manager is not None:
                    run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk
            yield self._last_chunk(call, stream.answer)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = await asyncio.to_thread(self._call, messages, stop, run_manager, kwargs)
        stream = await self.generator.arun_stream(call.request)
        async with stream:
            async for text in stream:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                if run_manager is not None:
                    await run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk
            yield self._last_chunk(call, stream.answer)

    def _call(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
        options: dict[str, Any],
    ) -> FocusCall:
        # Asynchronous methods do this in a thread: altered passages of a long prompt take long to find.
        run_id = StartedRuns.of([text_of(messages)])[0] if run_manager is None else run_manager.run_id
        return self.chain_call(chat_template_messages(messages), run_id=run_id, stop=stop, options=options)

    def _metadata(self, call: FocusCall, answer: Answer) -> dict[str, Any]:
        return {
            "model_name": self.model_name,
            "finish_reason": answer.finish_reason,
            "focus_rag": call.report(answer),
        }

    def _result(self, call: FocusCall, answer: Answer) -> ChatResult:
        message = AIMessage(
            content=answer.text, response_metadata=self._metadata(call, answer), usage_metadata=_usage(answer)
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last_chunk(self, call: FocusCall, answer: Answer) -> ChatGenerationChunk:
        message = AIMessageChunk(
            content="",
            response_metadata=self._metadata(call, answer),
            usage_metadata=_usage(answer),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)


def _parts(rows: int, configs: Sequence[RunnableConfig]) -> Iterator[range]:
    size = (configs[0].get("max_concurrency") if configs else None) or LARGEST_BATCH
    if size < 1:
        raise InvalidInputError(f"max_concurrency must be at least 1; got {size}.")
    for start in range(0, rows, size):
        yield range(start, min(start + size, rows))


def _usage(answer: Answer) -> UsageMetadata:
    prompt, completion = answer.usage.prompt_tokens, answer.usage.completion_tokens
    return UsageMetadata(input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion)
