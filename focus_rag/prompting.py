"""From a question and passages to token ids, with the exact token span of every passage.

Retrieved text, questions and message contents are data: whatever they contain, none of it becomes a special token or
a chat turn.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from focus_rag.errors import InvalidInputError, PromptTooLongError
from focus_rag.locating import CharSpan, locate_passages
from focus_rag.passages import Passage

TokenSpan = tuple[int, int]
_LABEL_TOKENS = (
    12  # at most, for "[1] " and the blank line of a passage: so that no passage more than needed is dropped
)
Message = Mapping[str, str]


class PromptLayout(BaseModel):
    """How a question and its passages become one user message.

    The question stands before the passages as well as after them: a causal model writes the keys of a passage before
    it reads what follows, so only then can a passage's keys know whether it is relevant.

    Attributes:
        instruction: First line of the message.
        question_first: Whether the question also stands before the passages.
        plain_ending: What follows the message where a tokenizer has no chat template.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruction: str = "Answer the question from the passages. If they do not hold the answer, say: not stated."
    question_first: bool = True
    plain_ending: str = "\nAnswer:"

    def user_content(self, question: str, passages: Sequence[str]) -> tuple[str, list[CharSpan]]:
        """The message and where each passage stands in it.

        Args:
            question: The question.
            passages: Passages as they are to be shown (title included).
        """
        if not passages:
            return question, []
        head = f"{self.instruction}\n"
        if self.question_first:
            head += f"Question: {question}\n"
        parts, spans, position = [head], [], len(head)
        for number, content in enumerate(passages, start=1):
            label = f"\n[{number}] "
            spans.append((position + len(label), position + len(label) + len(content)))
            parts.append(f"{label}{content}\n")
            position = spans[-1][1] + 1
        parts.append(f"\nQuestion: {question}")
        return "".join(parts), spans


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """A prompt ready for the model.

    Attributes:
        text: The rendered prompt.
        input_ids: Its tokens, special tokens included.
        spans: For every passage of the request its tokens `[start, end)`, None where it is not in the prompt.
        dropped: Indices of passages left out so that the prompt fits the window.
    """

    text: str
    input_ids: tuple[int, ...]
    spans: tuple[TokenSpan | None, ...]
    dropped: tuple[int, ...] = ()


class PromptBuilder:
    """Builds prompts for one tokenizer.

    Args:
        tokenizer: A fast tokenizer, with or without a chat template.
        layout: How question and passages are laid out.

    Raises:
        InvalidInputError: The tokenizer is not a fast one, so token spans cannot be told.
    """

    def __init__(self, tokenizer: Any, layout: PromptLayout | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidInputError(
                f"{type(tokenizer).__name__} cannot tell which characters a token covers. Load the model's fast tokenizer (AutoTokenizer)."
            )
        self.tokenizer = tokenizer
        self.layout = layout or PromptLayout()
        self._guard = _SpecialTextGuard(tokenizer)

    def from_question(
        self, question: str, passages: Sequence[Passage], *, max_tokens: int, drop_order: Sequence[int]
    ) -> BuiltPrompt:
        """Lay out a question and passages, leaving out passages where the window is too small.

        Args:
            question: The question.
            passages: The passages, in the order they are to be shown.
            max_tokens: Tokens the prompt may have.
            drop_order: Indices of the passages, the first to be dropped first; those not in it are never dropped.

        Raises:
            PromptTooLongError: It does not fit even without passages.
        """
        kept = set(range(len(passages)))
        droppable = list(drop_order)
        while True:
            built = self._question_prompt(question, passages, sorted(kept))
            excess = len(built.input_ids) - max_tokens
            if excess <= 0:
                return built
            if not kept or not droppable:
                raise PromptTooLongError(
                    f"The question {f'and {len(kept)} passages that must stay' if kept else 'alone'} takes "
                    f"{len(built.input_ids)} tokens and the prompt may have {max_tokens}: shorten it, lower max_new_tokens, "
                    "or use a model with a larger window."
                )
            while excess > 0 and droppable:
                index = droppable.pop(0)
                span = built.spans[index]
                kept.discard(index)
                excess -= _LABEL_TOKENS + ((span[1] - span[0]) if span else 0)

    def from_messages(
        self, messages: Sequence[Message], passages: Sequence[Passage], *, max_tokens: int
    ) -> BuiltPrompt:
        """Render a conversation through the chat template and locate the passages that stand in it.

        Raises:
            InvalidInputError: Messages without role or content, or a template that refuses them.
            PromptTooLongError: It does not fit.
        """
        checked = _checked_messages(messages)
        for fold in (False, True):
            safe = [{**message, "content": self._guard.safe(message["content"], fold=fold)} for message in checked]
            text = self._rendered(safe)
            ids, offsets = self._tokens(text)
            if self._guard.count(ids) <= self._guard.count(
                self._tokens(self._rendered([{**m, "content": "x"} for m in checked]))[0]
            ):
                break
        else:
            raise InvalidInputError(
                "A message still turns into special tokens after it was neutralised; remove control markup from it."
            )
        self._require_fit(ids, max_tokens)
        shown = [_with_text(passage, self._guard.safe(passage.text, fold=fold)) for passage in passages]
        spans = [None if span is None else _token_span(offsets, span) for span in locate_passages(text, shown)]
        return BuiltPrompt(text, tuple(ids), tuple(spans))

    def from_text(self, prompt: str, passages: Sequence[Passage], *, max_tokens: int) -> BuiltPrompt:
        """Take a prompt as it is, neutralise the passages that stand in it, and locate them.

        Raises:
            PromptTooLongError: It does not fit.
        """
        prompt = _encodable(prompt)
        passages = [_with_text(passage, _encodable(passage.text)) for passage in passages]
        parts: list[str] = []
        spans: list[CharSpan | None] = [None] * len(passages)
        position = length = 0
        found = [(span, index) for index, span in enumerate(locate_passages(prompt, passages)) if span is not None]
        for (start, end), index in sorted(found):
            inside = self._guard.safe(prompt[start:end])
            parts += [prompt[position:start], inside]
            length += start - position
            spans[index] = (length, length + len(inside))
            length, position = length + len(inside), end
        text = "".join([*parts, prompt[position:]])
        # A prompt that was rendered elsewhere begins with the token already; two of them are not what the model was trained on.
        begins = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        ids, offsets = self._tokens(text, add_special_tokens=not begins)
        self._require_fit(ids, max_tokens)
        return BuiltPrompt(
            text, tuple(ids), tuple(None if span is None else _token_span(offsets, span) for span in spans)
        )

    def _question_prompt(self, question: str, passages: Sequence[Passage], kept: list[int]) -> BuiltPrompt:
        benign, _ = self.layout.user_content("x", ["x"] * len(kept))
        allowed = self._guard.count(self._tokens(self._rendered([{"role": "user", "content": benign}]))[0])
        for fold in (False, True):
            contents = [self._guard.safe(passages[index].content.strip(), fold=fold) for index in kept]
            content, within = self.layout.user_content(self._guard.safe(question.strip(), fold=fold), contents)
            text = self._rendered([{"role": "user", "content": content}])
            ids, offsets = self._tokens(text)
            if self._guard.count(ids) <= allowed:
                break
        else:
            raise InvalidInputError(
                "A passage still turns into special tokens after it was neutralised; remove control markup from it."
            )
        start = text.find(content)
        if start < 0 and kept:
            raise InvalidInputError(
                "The chat template changes the message's text, so that passages cannot be found in it; use another template."
            )
        spans: list[TokenSpan | None] = [None] * len(passages)
        for index, (first, last) in zip(kept, within, strict=True):
            spans[index] = _token_span(offsets, (start + first, start + last))
        dropped = tuple(index for index in range(len(passages)) if index not in set(kept))
        return BuiltPrompt(text, tuple(ids), tuple(spans), dropped)

    def _rendered(self, messages: Sequence[Message]) -> str:
        if not self.tokenizer.chat_template:
            turns = [
                message["content"] if message["role"] != "assistant" else f"Answer: {message['content']}"
                for message in messages
            ]
            return "\n\n".join(turns) + self.layout.plain_ending
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
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
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def _require_fit(self, ids: Sequence[int], max_tokens: int) -> None:
        if len(ids) > max_tokens:
            raise PromptTooLongError(
                f"The prompt takes {len(ids)} tokens and may have {max_tokens}. It was assembled by the caller, so nothing was cut: "
                "retrieve fewer passages, lower max_new_tokens, or use a model with a larger window."
            )


def _with_text(passage: Passage, text: str) -> Passage:
    return Passage(text, passage.score, passage.title, passage.id)


def _checked_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    if not messages:
        raise InvalidInputError("messages is empty: give at least one message with role and content.")
    checked = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise InvalidInputError(f"A message needs a role and a content, both strings; got {dict(message)!r:.200}.")
        checked.append({"role": role, "content": content})
    return checked


def _token_span(offsets: Sequence[tuple[int, int]], span: CharSpan) -> TokenSpan | None:
    """Tokens that overlap some characters; None where there are none."""
    if span[0] >= span[1]:
        return None
    inside = [index for index, (start, end) in enumerate(offsets) if start < end and start < span[1] and end > span[0]]
    return (inside[0], inside[-1] + 1) if inside else None


class _SpecialTextGuard:
    """Knows which strings a tokenizer or its chat template gives a meaning to, and takes that meaning away."""

    def __init__(self, tokenizer: Any) -> None:
        template = (
            tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else str(tokenizer.chat_template or "")
        )
        special = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special or token.content in template or re.fullmatch(r"<\|.*\|>", token.content)
        }
        special.update({text: tokenizer.convert_tokens_to_ids(text) for text in tokenizer.all_special_tokens})
        # Ordinary words become the unknown token where a vocabulary lacks them; it says nothing about the text.
        roles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        self._ids = frozenset(special.values()) - ({tokenizer.unk_token_id} - roles)
        # Stripped, so that a space put inside always breaks the string.
        strings = {text.strip() for text in special if text.strip()} | _turn_markers(tokenizer, set(special))
        pattern = "|".join(re.escape(text) for text in sorted(strings, key=len, reverse=True))
        self._pattern = re.compile(pattern) if strings else None
        self._any_case = re.compile(pattern, re.IGNORECASE) if strings else None

    def safe(self, text: str, *, fold: bool = False) -> str:
        """Put a space into every meaningful string, so that it is read as text.

        Args:
            text: Untrusted text.
            fold: Fold compatibility characters first and read capitals like small letters, for tokenizers that do so before
                they look for special tokens.
        """
        text = _encodable(text)
        if fold:
            text = unicodedata.normalize("NFKC", text)
        pattern = self._any_case if fold else self._pattern
        if pattern is None:
            return text
        while (broken := pattern.sub(_break, text)) != text:
            text = broken
        return text

    def count(self, ids: Sequence[int]) -> int:
        """Number of special tokens among ids."""
        return sum(token in self._ids for token in ids)


def _encodable(text: str) -> str:
    """Replace surrogates: they cannot be encoded, and no tokenizer takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _break(match: re.Match[str]) -> str:
    found = match.group()
    return f"{found[:-1]} {found[-1]}" if len(found) > 1 else ""


def _turn_markers(tokenizer: Any, special: set[str]) -> set[str]:
    """Plain-text strings a chat template puts between turns, such as `[INST]` or `### User:`."""
    if not tokenizer.chat_template:
        return set()
    contents = ("qwfp", "arst", "zxcd")
    turns = [
        {"role": role, "content": content}
        for role, content in zip(("user", "assistant", "user"), contents, strict=True)
    ]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception:  # a template that takes no such conversation has no turns to imitate
        return set()
    for known in sorted(special, key=len, reverse=True):
        text = text.replace(known, "\n")
    pieces = re.split("|".join(contents) + r"|\n", text)
    return {piece.strip() for piece in pieces if len(piece.strip()) >= 3 and re.search(r"[^\w\s]", piece.strip())}
