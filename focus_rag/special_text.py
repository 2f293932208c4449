"""Text that a tokenizer or its chat template gives a meaning to, and how untrusted text loses that meaning."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str]


def through_template(tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
    """Messages as a tokenizer's chat template renders them, up to where the assistant's answer begins."""
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **options))


class SpecialTextGuard:
    """Knows which strings a tokenizer or its chat template gives a meaning to, and takes that meaning away.

    Args:
        tokenizer: The tokenizer.
        template_options: What its chat template is called with besides the messages.
    """

    def __init__(self, tokenizer: Any, template_options: Mapping[str, Any]) -> None:
        conversation = _probe(tokenizer, template_options)
        template = str(tokenizer.chat_template or "")
        special = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special
            or (token.content.strip() and (token.content in template or token.content in conversation))
            or re.fullmatch(r"<\|.*\|>|<｜.*｜>", token.content)
        }
        special.update({text: tokenizer.convert_tokens_to_ids(text) for text in tokenizer.all_special_tokens})
        # Ordinary words become the unknown token where a vocabulary lacks them; it says nothing about the text.
        roles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        self._ids = frozenset(special.values()) - ({tokenizer.unk_token_id} - roles)
        # Stripped, so that a space put inside always breaks the string.
        strings = {text.strip() for text in special if text.strip()} | _turn_markers(conversation, set(special))
        pattern = "|".join(re.escape(text) for text in sorted(strings, key=len, reverse=True))
        self._pattern = re.compile(pattern) if strings else None
        self._any_case = re.compile(pattern, re.IGNORECASE) if strings else None

    def safe(self, text: str, *, fold: bool = False) -> str:
        """Put a space into every meaningful string, so that it is read as text.

        Args:
            text: Untrusted text.
            fold: Fold compatibility characters first and read capitals like small letters, for tokenizers that do so
                before they look for special tokens.
        """
        text = encodable(text)
        if fold:
            text = unicodedata.normalize("NFKC", text)
        pattern = self._any_case if fold else self._pattern
        if pattern is None:
            return text
        while (safer := pattern.sub(_break, text)) != text:
            text = safer
        return text

    def without_markers(self, text: str) -> str:
        """What text says beside meaningful strings."""
        return text if self._any_case is None else self._any_case.sub("", text)

    def count(self, ids: Sequence[int]) -> int:
        """Number of special tokens among ids."""
        return sum(token in self._ids for token in ids)


def encodable(text: str) -> str:
    """Replace surrogates: they cannot be encoded, and no tokenizer takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _break(match: re.Match[str]) -> str:
    return broken(match.group())


def broken(marker: str) -> str:
    """A marker with a space before its last character, so that it marks nothing; one of a single character is gone."""
    return f"{marker[:-1]} {marker[-1]}" if len(marker) > 1 else ""


_PROBE = {"system": "qwfp", "user": "arst", "assistant": "zxcd"}


def _probe(tokenizer: Any, options: Mapping[str, Any]) -> str:
    """A conversation of meaningless words through the chat template: what is not these words is the template's own."""
    if not tokenizer.chat_template:
        return ""
    turns = [{"role": role, "content": _PROBE[role]} for role in ("system", "user", "assistant", "user")]
    for conversation in (turns, turns[1:], turns[1:2]):
        try:
            return through_template(tokenizer, conversation, options)
        except Exception:  # a template that takes no system message, or only one turn
            continue
    return ""


def _turn_markers(conversation: str, special: set[str]) -> set[str]:
    """Plain-text strings a chat template puts between turns, such as `[INST]` or `### User:`."""
    for known in sorted(special, key=len, reverse=True):
        conversation = conversation.replace(known, "\n")
    pieces = {piece.strip() for piece in re.split("|".join([*_PROBE.values(), r"\n"]), conversation)} - {""}
    # What follows another one there marks by itself as well, as the `<<SYS>>` of `[INST] <<SYS>>` does.
    rests = {rest.strip() for piece in pieces for other in pieces if other != piece for rest in piece.split(other)}
    return {piece for piece in pieces | rests if len(piece) >= 3 and re.search(r"[^\w\s]", piece)}
