"""From a question and passages to token ids, with the exact token span of every passage.

Retrieved text, questions and message contents are data: whatever they contain, none of it becomes a special token or
a chat turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from focus_rag.built_prompt import BuiltPrompt, ShownSentence, in_order, token_span
from focus_rag.errors import InvalidInputError, PromptTooLongError
from focus_rag.locating import SHORTEST, CharSpan, locate_copies, locate_passages
from focus_rag.passages import Passage
from focus_rag.prompt_layout import PromptLayout
from focus_rag.sentences import sentence_spans
from focus_rag.special_text import Message, SpecialTextGuard, broken, encodable, through_template

# At most, for "[1] " and the blank line of a passage: so that no passage more than needed is dropped.
_LABEL_TOKENS = 12
# Text of so many characters for each token of room is looked at in its beginning alone before it is tokenised whole,
# which takes seconds and gigabytes for megabytes.
_CHARACTERS_A_TOKEN = 8
_CUT_TOKENS = 16  # by which a text may take fewer tokens among others, or whole, than by itself or cut
_SHORTEN = ": shorten it, lower max_new_tokens, or use a model with a larger window."
_NOTHING_CUT = (
    ". It was assembled by the caller, so nothing was cut: retrieve fewer passages, lower max_new_tokens, or use a "
    "model with a larger window."
)
_STILL_SPECIAL = "A {} still turns into special tokens after it was neutralised; remove control markup from it."


class PromptBuilder:
    """Builds prompts for one tokenizer.

    Args:
        tokenizer: A fast tokenizer, with or without a chat template.
        layout: How question and passages are laid out.

    Raises:
        InvalidInputError: The tokenizer is not a fast one, so token spans cannot be told; or the layout's instruction
            holds control markup.
    """

    def __init__(self, tokenizer: Any, layout: PromptLayout | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidInputError(
                f"{type(tokenizer).__name__} cannot tell which characters a token covers. Load the model's fast "
                "tokenizer (AutoTokenizer)."
            )
        self.tokenizer = tokenizer
        self.layout = layout or PromptLayout()
        self._guard = SpecialTextGuard(tokenizer, self.layout.template_options)
        if self._guard.safe(self.layout.instruction) != self.layout.instruction:
            raise InvalidInputError(
                "The instruction of a layout must hold no special tokens and no marks of chat turns; got "
                f"{self.layout.instruction!r:.200}."
            )

    def from_question(
        self, question: str, passages: Sequence[Passage], *, max_tokens: int, drop_order: Iterable[int]
    ) -> BuiltPrompt:
        """Lay out a question and passages, leaving out empty ones, and others where the window is too small.

        Args:
            question: The question.
            passages: The passages, in the order they are to be shown.
            max_tokens: Tokens the prompt may have.
            drop_order: Indices of the passages, the first to be dropped first; those not in it are never dropped. It is
                not read where all fit.

        Raises:
            PromptTooLongError: It does not fit even without passages.
        """
        self._require_hope(question.strip(), max_tokens, _SHORTEN)
        texts = {index: text for index, passage in enumerate(passages) if (text := passage.content.strip())}
        kept = set(texts)
        droppable: Iterator[int] = (index for index in drop_order if index in kept)
        if sum(map(len, texts.values())) > _CHARACTERS_A_TOKEN * max_tokens:
            kept, droppable = self._within_reach(texts, list(droppable), max_tokens)
        while True:
            built = self._question_prompt(question, passages, sorted(kept), max_tokens)
            excess = len(built.input_ids) - max_tokens
            if excess <= 0:
                return built
            before = len(kept)
            while excess > 0 and (index := next(droppable, None)) is not None:
                span = built.spans[index]
                kept.discard(index)
                excess -= _LABEL_TOKENS + ((span[1] - span[0]) if span else 0)
            if len(kept) == before:
                raise PromptTooLongError(
                    f"The question {f'and {len(kept)} passages that must stay' if kept else 'alone'} takes "
                    f"{len(built.input_ids)} tokens and the prompt may have {max_tokens}{_SHORTEN}"
                )

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, special tokens not added."""
        return len(self.tokenizer(encodable(text), add_special_tokens=False, verbose=False)["input_ids"])

    def has_room_for(self, question: str, *, max_tokens: int) -> bool:
        """Whether a question fits by itself: passages can be left out of a prompt, the question cannot."""
        try:
            self.from_question(question, (), max_tokens=max_tokens, drop_order=())
        except PromptTooLongError:
            return False
        return True

    def from_messages(
        self, messages: Sequence[Message], passages: Sequence[Passage], *, max_tokens: int
    ) -> BuiltPrompt:
        """Render a conversation through the chat template and locate the passages that stand in it.

        What the assistant said is not searched: it may quote a passage of an earlier turn.

        Raises:
            InvalidInputError: Messages without role or content, or a template that refuses them.
            PromptTooLongError: It does not fit.
        """
        checked = _checked_messages(messages)
        for fold in (False, True):
            safe = [{**message, "content": self._safe(message["content"], fold=fold)} for message in checked]
            text = self._rendered(safe)
            self._require_hope(text, max_tokens, _NOTHING_CUT)
            ids, offsets = self._tokens(text)
            if self._guard.count(ids) <= self._guard.count(
                self._tokens(self._rendered([{**m, "content": "x"} for m in checked]))[0]
            ):
                break
        else:
            raise InvalidInputError(_STILL_SPECIAL.format("message"))
        self._require_fit(ids, max_tokens)
        shown = [_with_text(passage, self._safe(passage.text, fold=fold)) for passage in passages]
        found = locate_passages(self._without_assistant(text, safe), shown)
        spans = [None if span is None else token_span(offsets, span) for span in found]
        return BuiltPrompt(
            text, tuple(ids), tuple(spans), sentences=self._sentences(text, offsets, shown, found, fold=fold)
        )

    def from_text(self, prompt: str, passages: Sequence[Passage], *, max_tokens: int) -> BuiltPrompt:
        """Take a prompt as it is, neutralise the passages that stand in it, and locate them.

        What else stands in it is the caller's: special tokens there, and in a question that the caller put there, are
        special.

        Raises:
            PromptTooLongError: It does not fit.
        """
        self._require_hope(prompt, max_tokens, _NOTHING_CUT)
        text = encodable(prompt)
        # A prompt that was rendered elsewhere begins with the token already; two of them are not what the model was
        # trained on.
        begins = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        ids, offsets = self._tokens(text, add_special_tokens=not begins)
        self._require_fit(ids, max_tokens)  # before a search that takes longer the longer the prompt is
        shown = [_with_text(passage, encodable(passage.text)) for passage in passages]
        marked = [
            one
            for one in shown
            if any(self._guard.safe(one.text, fold=fold) != one.text for fold in (False, True))
            # One that is nothing but markup stands in the caller's own as well.
            and len(self._guard.without_markers(one.text).strip()) >= SHORTEST
        ]
        found, copies = locate_copies(text, shown, marked)
        for fold in (False, True):
            safe, spans = self._neutralised(text, [*found, *copies], fold=fold)
            if safe != text:
                ids, offsets = self._tokens(safe, add_special_tokens=not begins)
                self._require_fit(ids, max_tokens)
            tokens = tuple(None if span is None else token_span(offsets, span) for span in spans)
            if not any(self._guard.count(ids[slice(*span)]) for span in tokens if span is not None):
                break
        else:
            raise InvalidInputError(_STILL_SPECIAL.format("passage"))
        sentences = self._sentences(safe, offsets, shown, spans[: len(shown)], fold=fold)
        return BuiltPrompt(safe, tuple(ids), tokens[: len(shown)], sentences=sentences)

    def _neutralised(
        self, prompt: str, found: Sequence[CharSpan | None], *, fold: bool
    ) -> tuple[str, list[CharSpan | None]]:
        """A raw prompt with what stands at some places of it neutralised, and where these are then."""
        parts: list[str] = []
        spans: list[CharSpan | None] = [None] * len(found)
        position = length = 0
        for (start, end), index in sorted((span, index) for index, span in enumerate(found) if span is not None):
            inside = self._guard.safe(prompt[start:end], fold=fold)
            parts += [prompt[position:start], inside]
            length += start - position
            spans[index] = (length, length + len(inside))
            length, position = length + len(inside), end
        return "".join([*parts, prompt[position:]]), spans

    def _within_reach(
        self, texts: Mapping[int, str], drop_order: list[int], max_tokens: int
    ) -> tuple[set[int], Iterator[int]]:
        """Of passages that are far more than can fit, those that there may be room for: without the ones that would be
        dropped first whatever the others take.

        Returns:
            Their indices, and the order in which they are dropped.
        """
        reach = set(texts) - set(drop_order)
        taken = sum(self._tokens_of_long(texts[index], max_tokens) for index in reach)
        for index in reversed(drop_order):
            if taken > max_tokens:
                break
            reach.add(index)
            taken += max(self._tokens_of_long(texts[index], max_tokens) - _CUT_TOKENS, 0)
        return reach, (index for index in drop_order if index in reach)

    def _tokens_of_long(self, text: str, enough: int) -> int:
        """Tokens of a text; of its beginning, where that alone has more than enough."""
        beginning = text[: _CHARACTERS_A_TOKEN * enough]
        of_beginning = self.count_tokens(beginning)
        return of_beginning if len(beginning) == len(text) or of_beginning > enough else self.count_tokens(text)

    def _require_hope(self, text: str, max_tokens: int, advice: str) -> None:
        """Refuse a long text that cannot fit before it is tokenised as a whole.

        Raises:
            PromptTooLongError: It cannot fit.
        """
        if len(text) > _CHARACTERS_A_TOKEN * max_tokens:
            enough = max_tokens + _CUT_TOKENS
            if self._tokens_of_long(text, enough) > enough:
                raise PromptTooLongError(
                    f"A text of {len(text)} characters takes more tokens than the {max_tokens} that the prompt may "
                    f"have{advice}"
                )

    def _question_prompt(
        self, question: str, passages: Sequence[Passage], kept: list[int], max_tokens: int
    ) -> BuiltPrompt:
        """The prompt with these passages; its sentences are told where it fits."""
        benign, _ = self.layout.user_content("x", ["x"] * len(kept))
        allowed = self._guard.count(self._tokens(self._rendered([{"role": "user", "content": benign}]))[0])
        for fold in (False, True):
            contents = [self._data(passages[index].content, fold=fold) for index in kept]
            content, within = self.layout.user_content(self._data(question, fold=fold), contents)
            text = self._rendered([{"role": "user", "content": content}])
            ids, offsets = self._tokens(text)
            if self._guard.count(ids) <= allowed:
                break
        else:
            raise InvalidInputError(_STILL_SPECIAL.format("passage"))
        start = text.find(content.strip())  # many templates strip messages
        if start < 0 and kept:
            raise InvalidInputError(
                "The chat template changes the message's text, so that passages cannot be found in it; use another "
                "template."
            )
        start -= len(content) - len(content.lstrip())
        found: list[CharSpan | None] = [None] * len(passages)
        for index, (first, last) in zip(kept, within, strict=True):
            found[index] = (start + first, start + last)
        spans = [None if span is None else token_span(offsets, span) for span in found]
        dropped = tuple(
            index for index, passage in enumerate(passages) if index not in kept and passage.content.strip()
        )
        sentences = self._sentences(text, offsets, passages, found, fold=fold) if len(ids) <= max_tokens else ()
        return BuiltPrompt(text, tuple(ids), tuple(spans), dropped, sentences)

    def _sentences(
        self,
        text: str,
        offsets: Sequence[tuple[int, int]],
        passages: Sequence[Passage],
        found: Sequence[CharSpan | None],
        *,
        fold: bool,
    ) -> tuple[ShownSentence, ...]:
        """The sentences of passages in a prompt.

        Args:
            text: The prompt.
            offsets: Characters of each of its tokens.
            passages: The passages.
            found: Where each stands.
            fold: As titles were made safe.
        """
        shown = []
        for index, (passage, span) in enumerate(zip(passages, found, strict=True)):
            if span is None or not passage.text.strip():
                continue
            begin, end = span
            # What stands before the text, as it was stripped and made safe together with it.
            title = self._data(f"{passage.title}: x", fold=fold)[:-1] if passage.title else ""
            begin += len(title) if text.startswith(title, begin, end) else 0
            for first, last in sentence_spans(text[begin:end]):
                if (tokens := token_span(offsets, (begin + first, begin + last))) is not None:
                    shown.append(ShownSentence(index, text[begin + first : begin + last], tokens))
        return tuple(shown)

    def _data(self, text: str, *, fold: bool) -> str:
        """A question or passage as it may stand in a prompt."""
        return self._safe(text.strip(), fold=fold)

    def _safe(self, text: str, *, fold: bool) -> str:
        """Text with neither special tokens nor the mark of an answer in it."""
        text = self._guard.safe(text, fold=fold)
        return text if self.tokenizer.chat_template else text.replace(self._answer_mark, broken(self._answer_mark))

    def _without_assistant(self, text: str, messages: Sequence[Message]) -> str:
        """A rendered conversation with blanks in the place of what the assistant said, wherever the template puts that
        and whatever it makes of it.
        """
        mark = next(word for n in range(len(text) + 1) if (word := f"said{n}before") not in text)
        marked = [
            {**message, "content": mark} if message["role"] == "assistant" and message["content"].strip() else message
            for message in messages
        ]
        if marked == list(messages):
            return text
        pieces = self._rendered(marked).split(mark)
        spans = _between(text, pieces) if len(pieces) > 1 else []
        # What a template writes beside a message may depend on it.
        for start, end in _said_by_assistant(text, messages) if spans is None else spans:
            text = f"{text[:start]}{' ' * (end - start)}{text[end:]}"
        return text

    @property
    def _answer_mark(self) -> str:
        """What begins the assistant's turns where there is no chat template."""
        return self.layout.plain_ending.strip()

    def _rendered(self, messages: Sequence[Message]) -> str:
        if not self.tokenizer.chat_template:
            turns = [
                message["content"] if message["role"] != "assistant" else f"{self._answer_mark} {message['content']}"
                for message in messages
            ]
            return "\n\n".join(turns) + self.layout.plain_ending
        try:
            return through_template(self.tokenizer, messages, self.layout.template_options)
        except Exception as error:  # templates raise whatever their authors chose
            raise InvalidInputError(
                f"The chat template refuses these messages ({[m['role'] for m in messages]}): {error}"
            ) from error

    def _tokens(self, text: str, *, add_special_tokens: bool | None = None) -> tuple[list[int], list[tuple[int, int]]]:
        if add_special_tokens is None:
            # A chat template writes its own beginning-of-sequence token; a plain prompt leaves that to the tokenizer.
            add_special_tokens = not self.tokenizer.chat_template
        encoded = self.tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False
        )
        return list(encoded["input_ids"]), in_order(encoded["offset_mapping"])

    def _require_fit(self, ids: Sequence[int], max_tokens: int) -> None:
        if len(ids) > max_tokens:
            raise PromptTooLongError(f"The prompt takes {len(ids)} tokens and may have {max_tokens}{_NOTHING_CUT}")


def _between(text: str, pieces: Sequence[str]) -> list[CharSpan] | None:
    """What stands between some pieces of a text, which are all of the rest of it; None where they are not.

    Args:
        text: The text.
        pieces: At least two.
    """
    if not text.startswith(pieces[0]):
        return None
    spans, position = [], len(pieces[0])
    for piece in pieces[1:-1]:
        start = text.find(piece, position)
        if start < 0:
            return None
        spans.append((position, start))
        position = start + len(piece)
    last = len(text) - len(pieces[-1])
    return [*spans, (position, last)] if last >= position and text.endswith(pieces[-1]) else None


def _said_by_assistant(text: str, messages: Sequence[Message]) -> list[CharSpan]:
    """Where what the assistant said stands in a rendered conversation, if it stands there unaltered and in order."""
    spans, position = [], 0
    for message in messages:
        content = message["content"].strip()  # many templates strip messages
        start = text.find(content, position)
        if start >= 0:
            position = start + len(content)
            if message["role"] == "assistant":
                spans.append((start, position))
    return spans


def _with_text(passage: Passage, text: str) -> Passage:
    return Passage(text, passage.score, passage.title, passage.id)


def _checked_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidInputError(
            f"messages must be a list with at least one message of role and content; got {messages!r:.200}."
        )
    checked = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        # Templates write the role between their markers: only a word can do no harm there.
        if not isinstance(role, str) or not re.fullmatch(r"[\w-]+", role) or not isinstance(content, str):
            raise InvalidInputError(
                f"A message needs a role of one word and a content, both strings; got {message!r:.200}."
            )
        checked.append({"role": role, "content": content})
    return checked
