"""FocusGenerator: answers over noisy passages, with focus chosen for every request."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, overload

from focus_rag.answers import AlphaSetting, Answer, GenerationSettings, Request
from focus_rag.batch_generation import Batch, batches_of
from focus_rag.errors import InvalidInputError, MissingDependencyError
from focus_rag.focus_choice import choose_focus
from focus_rag.model_layout import window_of
from focus_rag.model_turns import ModelTurns
from focus_rag.passage_ranking import require_count
from focus_rag.passages import Passage
from focus_rag.prepared_request import PreparedRequest
from focus_rag.profile import FocusProfile
from focus_rag.prompt_layout import PromptLayout
from focus_rag.prompting import PromptBuilder
from focus_rag.request_preparation import prepare_request
from focus_rag.score_split import SplitSetting
from focus_rag.special_text import Message
from focus_rag.streams import AnswerStream, AsyncAnswerStream
from focus_rag.weights_digest import weights_digest

Outcome = Answer | Exception
OnOutcome = Callable[[int, Outcome], None]
"""Told the place of a request among those of its batch, and what became of it."""
_REQUEST_OPTIONS = frozenset({"alpha", "split", "query", "higher_is_better", "score_kind", "noise", "keep_best"})
_MAX_BATCH = 16
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class FocusGenerator:
    """A local causal LM that answers from passages and pays more attention to the relevant ones.

    One generation runs at a time; `answer_batch` is the way to throughput, with one alpha per row.

    Attributes:
        model_name: What the model is called in reports.
        prompts: Lays out its prompts.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its fast tokenizer.
        profile: Contextual heads, focus directions and alpha policy; None leaves the model bare.
        alpha: `"auto"` (the profile's policy), a number, or a policy.
        settings: Generation settings where a request gives none.
        layout: How question and passages are laid out; by default as where the profile was fitted.
        split: Split softmax on the best scored passages of each request: `"auto"` (the profile's, where alpha is
            `"auto"` too), a `ScoreSplit`, or `"off"`.
        keep_best: How many of the passages of a question to lay out, where a request does not say it: the best by
            scores and shared words together. Among fewer than the profile's split begins with (`fewest`) nothing is
            leaned on. None for all that fit the window, of which the worst by these are dropped first.
        measure: Whether to measure which passages the contextual heads attend to.
        max_batch: Most requests in one forward pass; larger batches run in parts.
        name: What to call the model in reports; by default its id or the last part of its folder.

    Raises:
        ProfileMismatchError: The profile belongs to another model.
        InvalidInputError: alpha, split or keep_best cannot be used, or needs a profile, or the tokenizer is not a fast
            one.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        profile: FocusProfile | None = None,
        *,
        alpha: AlphaSetting = "auto",
        settings: GenerationSettings | None = None,
        layout: PromptLayout | None = None,
        split: SplitSetting = "auto",
        keep_best: int | None = None,
        measure: bool = True,
        max_batch: int = _MAX_BATCH,
        name: str | None = None,
    ) -> None:
        if profile is not None:
            profile.check(model, tokenizer)
        if max_batch < 1:
            raise InvalidInputError(f"max_batch must be at least 1; got {max_batch}.")
        if keep_best is not None:
            require_count(keep_best)
        self.model = model
        self.tokenizer = tokenizer
        self.profile = profile
        self.alpha = alpha
        self.split = split
        self.keep_best = keep_best
        self.settings = settings or GenerationSettings()
        self.measure = measure
        self.max_batch = max_batch
        path = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        self.model_name = name or path.rstrip("/").rsplit("/", maxsplit=1)[-1]
        self.prompts = PromptBuilder(tokenizer, layout or (None if profile is None else profile.layout))
        self._turns = ModelTurns()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="focus-rag")
        trial = Request(prompt="a trial", passages=(Passage("one"), Passage("two")), noise=0.5)
        choose_focus(trial, (0, 1), profile, alpha, split)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        profile: str | Path | FocusProfile | None = None,
        *,
        dtype: Any = "auto",
        device_map: Any = None,
        quantization_config: Any = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        alpha: AlphaSetting = "auto",
        settings: GenerationSettings | None = None,
        layout: PromptLayout | None = None,
        split: SplitSetting = "auto",
        keep_best: int | None = None,
        measure: bool = True,
        max_batch: int = _MAX_BATCH,
        **model_kwargs: Any,
    ) -> FocusGenerator:
        """Load a model, its tokenizer and a profile.

        Args:
            model: Hub id or folder; None for the model that comes with the package, and its profile.
            profile: A profile, its folder, or its Hub id; None leaves a model of your own bare.
            dtype: As in transformers, which also takes the arguments that follow.
            device_map: Where the weights go.
            quantization_config: How the weights are quantised.
            attn_implementation: `sdpa`, `eager`, `flash_attention_2`, `flex_attention`; any can be steered.
            revision: Revision on the Hub.
            trust_remote_code: Whether code that comes with the model may run. Off by default.
            alpha: See the class, like the arguments that follow.
            settings: Generation settings where a request gives none.
            layout: See the class.
            split: See the class.
            keep_best: See the class.
            measure: Whether to measure which passages are attended to.
            max_batch: Most requests in one forward pass.
            **model_kwargs: Handed to `AutoModelForCausalLM.from_pretrained`.

        Raises:
            InvalidInputError: The model cannot be loaded.
            MissingDependencyError: transformers needs a package for it that is not installed.
            ProfileError: The profile cannot be loaded.
            ProfileMismatchError: The profile belongs to another model.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        name = None
        if model is None:
            from focus_rag.embedded import embedded_model_folder, embedded_profile_folder

            name = "embedded reader"
            model, profile = embedded_model_folder(), profile or embedded_profile_folder()
        if not Path(model).is_dir() and not _HUB_ID.fullmatch(str(model)):
            raise InvalidInputError(f"No model at {str(model)!r}: neither a folder nor a Hub id (owner/name).")
        if isinstance(profile, (str, Path)):  # read before the weights, which may take minutes
            profile = FocusProfile.load(profile)
        optional = {
            "device_map": device_map,
            "quantization_config": quantization_config,
            "attn_implementation": attn_implementation,
        }
        where = {"revision": revision, "trust_remote_code": trust_remote_code}
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, **where)
            loaded = AutoModelForCausalLM.from_pretrained(
                model,
                dtype=dtype,
                **where,
                **{name: value for name, value in optional.items() if value is not None},
                **model_kwargs,
            )
        except ImportError as error:
            raise MissingDependencyError(f"The model {str(model)!r} cannot be loaded: {error}") from error
        except Exception as error:  # a damaged or unknown model fails in whatever way it meets first
            raise InvalidInputError(f"The model {str(model)!r} cannot be loaded: {error}") from error
        loaded.eval()
        return cls(
            loaded,
            tokenizer,
            profile,
            alpha=alpha,
            settings=settings,
            layout=layout,
            split=split,
            keep_best=keep_best,
            measure=measure,
            max_batch=max_batch,
            name=name,
        )

    @property
    def identity(self) -> str:
        """Sixteen hexadecimal digits that tell this model and profile from others, whatever they are called."""
        profile = "" if self.profile is None else self.profile.digest
        return hashlib.sha256(f"{self._weights} {profile}".encode()).hexdigest()[:16]

    @cached_property
    def _weights(self) -> str:
        return weights_digest(self.model)

    @property
    def context_window(self) -> int:
        """Tokens that prompt and answer may have together."""
        return window_of(self.model, min(self.tokenizer.model_max_length, 4096))

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, special tokens not added."""
        return self.prompts.count_tokens(text)

    def answer(self, question: str, passages: Sequence[Passage] = (), **options: Any) -> Answer:
        """Answer a question from passages.

        Args:
            question: The question.
            passages: What was retrieved, in retrieval order.
            **options: `alpha`, `split`, `query`, `higher_is_better`, `score_kind`, `noise`, `keep_best` (see `Request`)
                and the fields of `GenerationSettings`.

        Raises:
            InvalidInputError: Something about the input cannot be used; the message says what.
            PromptTooLongError: The question alone does not fit the window.
        """
        return self.run(self._request(options, question=question, passages=passages))

    def stream(self, question: str, passages: Sequence[Passage] = (), **options: Any) -> AnswerStream:
        """Like `answer`, piece by piece."""
        return self.run_stream(self._request(options, question=question, passages=passages))

    def generate(
        self, messages_or_prompt: str | Sequence[Message], *, passages: Sequence[Passage] = (), **options: Any
    ) -> Answer:
        """Generate from a conversation or a raw prompt in which the passages already stand.

        Args:
            messages_or_prompt: Messages with role and content, rendered by the chat template; or raw text.
            passages: What was retrieved; those that do not stand in the text are reported as not used.
            **options: As for `answer`, except for `keep_best`, which is refused: the passages stand there already.

        Raises:
            InvalidInputError: Something about the input cannot be used; the message says what.
            PromptTooLongError: The text does not fit the window.
        """
        return self.run(self._text_request(messages_or_prompt, passages, options))

    def stream_generate(
        self, messages_or_prompt: str | Sequence[Message], *, passages: Sequence[Passage] = (), **options: Any
    ) -> AnswerStream:
        """Like `generate`, piece by piece."""
        return self.run_stream(self._text_request(messages_or_prompt, passages, options))

    @overload
    def answer_batch(
        self, requests: Sequence[Request], *, return_errors: Literal[False] = False, on_outcome: OnOutcome | None = None
    ) -> list[Answer]: ...

    @overload
    def answer_batch(
        self, requests: Sequence[Request], *, return_errors: Literal[True], on_outcome: OnOutcome | None = None
    ) -> list[Outcome]: ...

    def answer_batch(
        self, requests: Sequence[Request], *, return_errors: bool = False, on_outcome: OnOutcome | None = None
    ) -> Sequence[Outcome]:
        """Serve many requests in left-padded batches, each row with its own alpha.

        Args:
            requests: What is asked.
            return_errors: Whether a request that cannot be used, or whose preparation fails, gets its error in the
                place of an answer, while the others are served. What goes wrong in the model itself is raised all the
                same.
            on_outcome: Called once for each request, as soon as its answer or error is there: short answers need not
                wait for the long ones beside them. It runs between two tokens, in the thread of the model, and must not
                use this generator; what it raises ends the batch.

        Raises:
            InvalidInputError: One of them cannot be used; nothing is generated then, unless errors are returned.
        """
        return self._answer_all(requests, return_errors=return_errors, on_outcome=on_outcome)

    def run(self, request: Request) -> Answer:
        """Serve one request."""
        return self.answer_batch([request])[0]

    def run_stream(self, request: Request) -> AnswerStream:
        """Serve one request piece by piece; input errors are raised here, before the stream begins."""
        prepared = self._prepare(request)
        return AnswerStream(partial(self._run_alone, lambda: prepared))

    async def aanswer(self, question: str, passages: Sequence[Passage] = (), **options: Any) -> Answer:
        """`answer` without blocking the event loop."""
        return await self.arun(self._request(options, question=question, passages=passages))

    async def agenerate(
        self, messages_or_prompt: str | Sequence[Message], *, passages: Sequence[Passage] = (), **options: Any
    ) -> Answer:
        """`generate` without blocking the event loop."""
        return await self.arun(self._text_request(messages_or_prompt, passages, options))

    @overload
    async def aanswer_batch(
        self, requests: Sequence[Request], *, return_errors: Literal[False] = False, on_outcome: OnOutcome | None = None
    ) -> list[Answer]: ...

    @overload
    async def aanswer_batch(
        self, requests: Sequence[Request], *, return_errors: Literal[True], on_outcome: OnOutcome | None = None
    ) -> list[Outcome]: ...

    async def aanswer_batch(
        self, requests: Sequence[Request], *, return_errors: bool = False, on_outcome: OnOutcome | None = None
    ) -> Sequence[Outcome]:
        """`answer_batch` without blocking the event loop; cancelling the task stops the model within a token.

        `on_outcome` is called in the thread of the model, not in the loop's.
        """
        cancelled, context = threading.Event(), contextvars.copy_context()
        work = partial(self._answer_all, requests, cancelled.is_set, return_errors=return_errors, on_outcome=on_outcome)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, context.run, work)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def arun(self, request: Request) -> Answer:
        """`run` without blocking the event loop."""
        return (await self.aanswer_batch([request]))[0]

    async def astream(self, question: str, passages: Sequence[Passage] = (), **options: Any) -> AsyncAnswerStream:
        """`stream` for `async for`: `async for piece in await generator.astream(...)`."""
        return await self.arun_stream(self._request(options, question=question, passages=passages))

    async def astream_generate(
        self, messages_or_prompt: str | Sequence[Message], *, passages: Sequence[Passage] = (), **options: Any
    ) -> AsyncAnswerStream:
        """`stream_generate` for `async for`."""
        return await self.arun_stream(self._text_request(messages_or_prompt, passages, options))

    async def arun_stream(self, request: Request) -> AsyncAnswerStream:
        """`run_stream` for `async for`; input errors are raised by the stream."""
        return AsyncAnswerStream(partial(self._run_alone, lambda: self._prepare(request)))

    def _run_alone(
        self, prepare: Callable[[], PreparedRequest], on_text: Callable[[str], None], is_cancelled: Callable[[], bool]
    ) -> Answer:
        answers: dict[int, Answer] = {}
        self._run({0: prepare()}, answers.__setitem__, on_text, is_cancelled)
        return answers[0]

    def _answer_all(
        self,
        requests: Sequence[Request],
        is_cancelled: Callable[[], bool] = lambda: False,
        *,
        return_errors: bool = False,
        on_outcome: OnOutcome | None = None,
    ) -> list[Outcome]:
        """Prepare all requests, then serve them in batches."""
        outcomes: dict[int, Outcome] = {}

        def settle(place: int, outcome: Outcome) -> None:
            outcomes[place] = outcome
            if on_outcome is None:
                return
            try:
                on_outcome(place, outcome)
            except StopIteration as error:  # asyncio cannot hand it on, and whoever waits would wait for ever
                raise RuntimeError("on_outcome raised StopIteration.") from error

        prepared: dict[int, PreparedRequest] = {}
        for place, request in enumerate(requests):
            if is_cancelled():
                break
            try:
                prepared[place] = self._prepare(request)
            except Exception as error:  # also what nobody foresaw, say of a chat template: it is not the others' fault
                if not return_errors:
                    raise
                settle(
                    place,
                    RuntimeError("Preparing the request raised StopIteration.")
                    if isinstance(error, StopIteration)
                    else error,
                )
        for part in batches_of(prepared, self.max_batch, self.context_window):
            self._run(part, settle, is_cancelled=is_cancelled)
        return [outcomes[place] for place in range(len(requests)) if place in outcomes]  # all of them, unless cancelled

    def _request(self, options: Mapping[str, Any], **what: Any) -> Request:
        own = {name: value for name, value in options.items() if name in _REQUEST_OPTIONS}
        settings = self.settings.changed(
            {name: value for name, value in options.items() if name not in _REQUEST_OPTIONS}
        )
        return Request(**what, **own, settings=settings)

    def _text_request(
        self, messages_or_prompt: str | Sequence[Message], passages: Sequence[Passage], options: Mapping[str, Any]
    ) -> Request:
        key = "prompt" if isinstance(messages_or_prompt, str) else "messages"
        return self._request(options, **{key: messages_or_prompt}, passages=passages)

    def _prepare(self, request: Request) -> PreparedRequest:
        return prepare_request(
            request,
            prompts=self.prompts,
            window=self.context_window,
            profile=self.profile,
            settings=self.settings,
            alpha=self.alpha,
            split=self.split,
            keep_best=self.keep_best,
        )

    def _run(
        self,
        prepared: Mapping[int, PreparedRequest],
        on_answer: Callable[[int, Answer], None],
        on_text: Callable[[str], None] | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Generate one batch; `on_answer` is told the place of each request and its answer, as soon as it is there."""
        places = list(prepared)
        batch = Batch(self.model, self.tokenizer, self.profile, list(prepared.values()), measure=self.measure)
        with self._turns.turn(is_cancelled):
            batch.run(lambda index, answer: on_answer(places[index], answer), on_text, is_cancelled)
