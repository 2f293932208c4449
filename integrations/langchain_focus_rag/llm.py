"""FocusLLM: a LangChain text-in, text-out model over a FocusGenerator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, cast
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LangSmithParams
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict

from focus_rag import Answer, FocusCall
from langchain_focus_rag.calls import LangChainSettings
from langchain_focus_rag.capture import StartedRuns


class FocusLLM(LangChainSettings, BaseLLM):
    """Plain language model that focuses on the relevant ones among the passages that its chain retrieved.

    Everything said of `ChatFocus` holds here; how an answer came about is in `generation_info["focus_rag"]` of its
    generation (callbacks and `generate` see it, `invoke` returns the bare text).

    Attributes:
        use_chat_template: Whether a prompt is shown to the model as one user message, which is what models trained to
            chat expect; otherwise, and for tokenizers without a chat template, it is continued as it stands.
    """

    # A misspelt setting must not pass for one.
    model_config = ConfigDict(extra="forbid")

    use_chat_template: bool = True

    @property
    def _llm_type(self) -> str:
        return "focus-rag"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**self.identity(), "use_chat_template": self.use_chat_template}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return cast(LangSmithParams, self.langsmith("llm", stop, kwargs))

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of a text by the model's own tokenizer; nothing is fetched."""
        return self.token_ids(text)

    def generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        """Answer prompts in one batch of the generator, with one alpha per row."""
        with StartedRuns():
            return super().generate(prompts, *args, **kwargs)

    async def agenerate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        """`generate` without blocking the event loop."""
        with StartedRuns():
            return await super().agenerate(prompts, *args, **kwargs)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        calls = self._calls(prompts, stop, run_manager, kwargs)
        return self._result(calls, self.generator.answer_batch([call.request for call in calls]))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        calls = await asyncio.to_thread(self._calls, prompts, stop, run_manager, kwargs)
        return self._result(calls, await self.generator.aanswer_batch([call.request for call in calls]))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        call = self._call(prompt, stop, _run_id(run_manager), kwargs)
        with self.generator.run_stream(call.request) as stream:
            for text in stream:
                chunk = GenerationChunk(text=text)
                if run_manager is not None:
                    run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk
            yield GenerationChunk(text="", generation_info=self._info(call, stream.answer))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        call = await asyncio.to_thread(self._call, prompt, stop, _run_id(run_manager), kwargs)
        stream = await self.generator.arun_stream(call.request)
        async with stream:
            async for text in stream:
                chunk = GenerationChunk(text=text)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk
            yield GenerationChunk(text="", generation_info=self._info(call, stream.answer))

    def _calls(
        self,
        prompts: Sequence[str],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
        options: dict[str, Any],
    ) -> list[FocusCall]:
        runs = StartedRuns.of(prompts, _run_id(run_manager))
        return [self._call(prompt, stop, run, options) for prompt, run in zip(prompts, runs, strict=True)]

    def _call(self, prompt: str, stop: list[str] | None, run_id: UUID | None, options: dict[str, Any]) -> FocusCall:
        # Asynchronous methods do this in a thread: altered passages of a long prompt take long to find.
        chat = self.use_chat_template and getattr(self.generator.tokenizer, "chat_template", None)
        what: Any = [{"role": "user", "content": prompt}] if chat else prompt
        return self.chain_call(what, run_id=run_id, stop=stop, options=options)

    def _info(self, call: FocusCall, answer: Answer) -> dict[str, Any]:
        return {
            "model_name": self.model_name,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
            "focus_rag": call.report(answer),
        }

    def _result(self, calls: Sequence[FocusCall], answers: Sequence[Answer]) -> LLMResult:
        pairs = list(zip(calls, answers, strict=True))
        generations = [
            [Generation(text=answer.text, generation_info=self._info(call, answer))] for call, answer in pairs
        ]
        prompt = sum(answer.usage.prompt_tokens for answer in answers)
        completion = sum(answer.usage.completion_tokens for answer in answers)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return LLMResult(generations=generations, llm_output={"token_usage": usage, "model_name": self.model_name})


def _run_id(run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None) -> UUID | None:
    return None if run_manager is None else run_manager.run_id
