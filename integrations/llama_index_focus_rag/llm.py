"""FocusLLM: a LlamaIndex model over a FocusGenerator."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import Any, Literal

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
from pydantic import ConfigDict, Field, PrivateAttr

from focus_rag import (
    AlphaPolicy,
    Answer,
    CapturedPassages,
    FocusGenerator,
    GenerationSettings,
    InvalidInputError,
    Request,
    estimate_noise,
)
from llama_index_focus_rag.calls import (
    SETTINGS,
    SIGNAL_OPTIONS,
    Call,
    assistant,
    collector,
    passages_of,
)
from llama_index_focus_rag.capture import CAPTURE
from llama_index_focus_rag.messages import chat_template_messages

logger = logging.getLogger("llama_index_focus_rag")

Prompt = str | Sequence[Mapping[str, str]]


class FocusLLM(CustomLLM):
    """Language model that focuses on the relevant ones among the passages that its query or chat engine retrieved.

        Settings.llm = FocusLLM(model="Qwen/Qwen2.5-7B-Instruct", focus_profile="path-or-hub-id")

    Nothing else in a chain changes. Which passages a call holds, and their scores, is found out from what LlamaIndex retrieved; a call
    that holds none (condensing a question) or that serves the retrieval (reranking) is not focused. How an answer came about stands
    in `additional_kwargs["focus_rag"]` of the response, and in the reports of `collect_reports`.

    Calls take `passages` (which then replace the captured ones), `alpha`, `noise`, `score_kind`, `higher_is_better`, `max_new_tokens`
    (or `max_tokens`), `temperature`, `top_p`, `top_k`, `seed` and `stop`. Asynchronous methods never block the event loop.
    What is None below is left to the generator.

    Attributes:
        generator: A loaded `FocusGenerator`; without one the model below is loaded.
        model: Hub id or folder; None for the model that comes with focus_rag.
        focus_profile: Profile, folder or Hub id.
        model_kwargs: More arguments of `FocusGenerator.from_pretrained`.
        alpha: A number, `"auto"`, or a policy.
        noise: Expected share of irrelevant passages, if it is known.
        score_kind: What the retriever's scores are, if it is known (see `focus_rag.estimate_noise`).
        higher_is_better: Orientation of the scores; by default their order at retrieval tells it.
        passages: Passages of every call, instead of the captured ones. Empty: never focus.
        max_new_tokens: Most tokens of an answer.
        temperature: 0 decodes greedily.
        top_p: Sample from the smallest set of tokens with this probability mass.
        top_k: Sample from this many tokens; 0 for all.
        seed: Makes sampling repeatable.
        stop: Strings before which generation ends; a call's own replace them.
        use_chat_template: Whether prompts and messages are shown to the model by its chat template, if it has one.
        share_tokenizer: Whether this model's tokenizer becomes LlamaIndex's (`Settings.tokenizer`) if none is set yet, so that prompts
            are packed to this model's window.

    Raises:
        InvalidInputError: A setting cannot be used, or the model cannot be loaded.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    generator: Any = Field(default=None, exclude=True, repr=False)
    model: str | None = None
    focus_profile: Any = Field(default=None, exclude=True)
    model_kwargs: dict[str, Any] = Field(default_factory=dict, exclude=True)
    alpha: float | Literal["auto"] | AlphaPolicy | None = None
    noise: float | None = None
    score_kind: str | None = None
    higher_is_better: bool | None = None
    passages: Sequence[Any] | None = Field(default=None, exclude=True)
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    use_chat_template: bool = True
    share_tokenizer: bool = True

    _warned: bool = PrivateAttr(default=False)

    def __init__(self, generator: FocusGenerator | None = None, **settings: Any) -> None:
        super().__init__(generator=generator, **settings)
        if self.generator is None:
            self.generator = FocusGenerator.from_pretrained(self.model, self.focus_profile, **self.model_kwargs)
        elif self.model is not None or self.focus_profile is not None or self.model_kwargs:
            raise InvalidInputError(
                "Give either generator, or model, focus_profile and model_kwargs to load one; not both."
            )
        # Wrong settings are told now, not by the first call.
        self._settings({})
        estimate_noise([], score_kind=self.score_kind)  # type: ignore[arg-type]
        passages_of(self.passages or ())
        CAPTURE.install()
        if self.share_tokenizer and llama_index.core.global_tokenizer is None:
            llama_index.core.set_global_tokenizer(self.tokenizer_fn)

    @classmethod
    def class_name(cls) -> str:
        return "FocusLLM"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self.generator.context_window,
            num_output=self._settings({}).max_new_tokens,
            is_chat_model=self._has_chat_template,
            is_function_calling_model=False,
            model_name=str(self.generator.model_name),
        )

    @property
    def tokenizer_fn(self) -> Callable[[str], list[int]]:
        """Text -> token ids, for `Settings.tokenizer` and `TokenCountingHandler`."""
        tokenizer = self.generator.tokenizer
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False, verbose=False))

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
        call = self._call(self._completion_prompt(prompt, formatted), kwargs)
        return call.completion(await self._answer(call))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        call = self._call(self._completion_prompt(prompt, formatted), kwargs)
        return await self._astream(call, _completion_piece, call.completion)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        call = self._call(self._chat_prompt(messages), kwargs)
        return call.chat(await self._answer(call))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        call = self._call(self._chat_prompt(messages), kwargs)
        return await self._astream(call, _chat_piece, call.chat)

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
        """Build the request of a call: passages given by hand, else the captured ones."""
        settings = self._settings(options)
        given = options.get("passages", self.passages)
        how: Any = "given"
        if given is not None:
            found = CapturedPassages(passages_of(given), note="passages given by the caller")
        else:
            text = prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
            found = CAPTURE.passages(text)
            how = found.how
            self._warn_if_missed(found)
        signal: dict[str, Any] = {
            name: options[name] if options.get(name) is not None else getattr(self, name) for name in SIGNAL_OPTIONS
        }
        if signal["higher_is_better"] is None:
            signal["higher_is_better"] = found.higher_is_better
        request = Request(
            prompt=prompt if isinstance(prompt, str) else None,
            messages=None if isinstance(prompt, str) else prompt,
            passages=found.passages,
            settings=settings,
            **signal,
        )
        return Call(request, how, found.note, str(self.generator.model_name), collector())

    def _settings(self, options: Mapping[str, Any]) -> GenerationSettings:
        unknown = set(options) - {*SETTINGS, *SIGNAL_OPTIONS, "passages"}
        if unknown:
            raise InvalidInputError(
                f"Unknown option {', '.join(map(repr, sorted(unknown)))}: a call takes passages, "
                f"{', '.join((*SIGNAL_OPTIONS, *SETTINGS))}."
            )
        changes = {name: getattr(self, name) for name in set(SETTINGS.values())}
        changes.update(
            {SETTINGS[name]: value for name, value in options.items() if name in SETTINGS and value is not None}
        )
        settings: GenerationSettings = self.generator.settings.changed(changes)
        return settings

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

    def _warn_if_missed(self, found: CapturedPassages) -> None:
        if found.how == "none" and found.retrieved and not self._warned:
            self._warned = True
            logger.warning(
                "%d texts were retrieved, but none of them stands in the prompt: alpha is 0 for such calls (rewriting a question and "
                "merging summaries are some). If the prompt does hold passages, pass them to the call: passages=nodes. This is said once.",
                found.retrieved,
            )


def _completion_piece(text: str, delta: str) -> CompletionResponse:
    return CompletionResponse(text=text, delta=delta)


def _chat_piece(text: str, delta: str) -> ChatResponse:
    return ChatResponse(message=assistant(text), delta=delta)
