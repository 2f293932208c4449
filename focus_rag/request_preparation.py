"""From a request to the prompt that it is answered from and the focus that is chosen for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from focus_rag.answer_grammar import AnswerGrammar
from focus_rag.answers import AlphaSetting, GenerationSettings, Request
from focus_rag.built_prompt import BuiltPrompt
from focus_rag.errors import InvalidInputError
from focus_rag.focus_choice import choose_focus
from focus_rag.passage_ranking import best_passages, by_relevance
from focus_rag.prepared_request import PreparedRequest
from focus_rag.profile import FocusProfile
from focus_rag.prompting import PromptBuilder
from focus_rag.score_order import orientation
from focus_rag.score_split import SplitSetting


def prepare_request(
    request: Request,
    *,
    prompts: PromptBuilder,
    window: int,
    profile: FocusProfile | None,
    settings: GenerationSettings,
    alpha: AlphaSetting,
    split: SplitSetting,
    keep_best: int | None,
) -> PreparedRequest:
    """Make a request ready for the model.

    Args:
        request: Its own settings come before those below.
        prompts: Lays out its prompt.
        window: Tokens that prompt and answer may have together.
        profile: Contextual heads, directions, policy and split; None leaves the model bare.
        settings: Where the request says nothing.
        alpha: Where the request says nothing.
        split: Where the request says nothing.
        keep_best: Where the request says nothing.

    Raises:
        InvalidInputError: Something about the request or its settings cannot be used.
        MissingDependencyError: An answer by a JSON Schema needs llguidance.
        PromptTooLongError: It does not fit the window.
    """
    if not isinstance(request, Request):
        raise InvalidInputError(f"Requests must be Request objects; got {type(request).__name__}.")
    settings = request.settings or settings
    room = window - settings.max_new_tokens
    if room < 1:
        raise InvalidInputError(
            f"max_new_tokens is {settings.max_new_tokens}, which leaves no room for a prompt in a window of {window} "
            "tokens."
        )
    grammar = None if settings.json_schema is None else AnswerGrammar(settings.json_schema, prompts.tokenizer)
    keep = keep_best if request.keep_best is None else request.keep_best
    given, kept = request.passages, list(range(len(request.passages)))
    if request.question is not None and keep is not None and len(given) > keep:
        request, kept = _of_the_best(request, keep)
    prompt = _prompt(request, prompts, room)
    choice = choose_focus(request, prompt.placed, profile, alpha, split)
    return PreparedRequest(
        request, settings, prompt, choice, given, kept, None if profile is None else profile.confidence, grammar
    )


def _of_the_best(request: Request, keep: int) -> tuple[Request, list[int]]:
    """The request as if only the best of its passages had been retrieved, and where these stand among all."""
    known: dict[str, Any] = {"higher_is_better": request.higher_is_better, "score_kind": request.score_kind}
    best = best_passages(request.passages, request.retrieved_for, keep, **known)
    kept = tuple(request.passages[place] for place in best)
    # Which end of the scores is the better one is told by the order of all of them: fewer may no longer tell it, or
    # seem to.
    rises = orientation([passage.score for passage in request.passages], **known)
    if rises is None:
        kept = tuple(replace(passage, score=None) for passage in kept)
    return replace(request, passages=kept, higher_is_better=rises), best


def _prompt(request: Request, prompts: PromptBuilder, room: int) -> BuiltPrompt:
    if request.messages is not None:
        return prompts.from_messages(request.messages, request.passages, max_tokens=room)
    if request.prompt is not None:
        return prompts.from_text(request.prompt, request.passages, max_tokens=room)
    return prompts.from_question(
        str(request.question), request.passages, max_tokens=room, drop_order=_first_to_drop(request)
    )


def _first_to_drop(request: Request) -> Iterator[int]:
    """Passages in the order in which to give them up; worked out where one has to be."""
    yield from reversed(
        by_relevance(
            request.passages,
            request.retrieved_for,
            higher_is_better=request.higher_is_better,
            score_kind=request.score_kind,
        )
    )
