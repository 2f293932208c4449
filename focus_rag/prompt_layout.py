"""How a question and its passages are laid out as a message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from focus_rag.abstention import NOT_STATED
from focus_rag.locating import CharSpan

_OURS = frozenset(
    ["add_generation_prompt", "additional_special_tokens", "bos_token", "chat_template", "cls_token",
    "continue_final_message", "conversation", "eos_token", "mask_token", "max_length", "messages", "pad_token",
    "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens", "self",
    "sep_token", "tokenize", "tokenizer_kwargs", "truncation", "unk_token"]
)  # fmt: skip
"""What a tokenizer's `apply_chat_template` takes for itself, or says to the template by itself."""


class PromptLayout(BaseModel):
    """How a question and its passages become one user message.

    The question stands before the passages as well as after them: a causal model writes the keys of a passage before
    it reads what follows, so only then can a passage's keys know whether it is relevant.

    Attributes:
        instruction: First line of the message. What counts as saying that the passages do not hold the answer is
            `focus_rag.abstention`: "not stated", as the default one asks for, and what models usually say instead.
        question_first: Whether the question also stands before the passages.
        plain_ending: What follows the message where a tokenizer has no chat template, and marks the assistant's turns
            there.
        template_options: What the chat template is called with besides the messages, such as `{"enable_thinking":
            False}`.

    Raises:
        ValidationError: A template option is no plain JSON value, or what this library or the tokenizer decides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruction: str = f"Answer the question from the passages. If they do not hold the answer, say: {NOT_STATED}."
    question_first: bool = True
    plain_ending: str = "\nAnswer:"
    template_options: Mapping[str, Any] = {}

    def user_content(self, question: str, passages: Sequence[str]) -> tuple[str, list[CharSpan]]:
        """The message and where each passage stands in it.

        Args:
            question: The question.
            passages: Passages as they are to be shown (title included).
        """
        if not passages:
            return question, []
        head = f"{self.instruction}\n" if self.instruction else ""
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

    @field_validator("template_options")
    @classmethod
    def _only_the_templates_own(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        # A profile brings its layout with it, from wherever it is: it must not bring a template, or other special
        # tokens.
        if taken := _OURS.intersection(options):
            raise ValueError(
                f"{', '.join(sorted(taken))} cannot be set: options are those that the chat template itself reads"
            )
        try:
            is_plain = json.loads(json.dumps(options, allow_nan=False)) == options
        except (TypeError, ValueError, RecursionError):
            is_plain = False
        if not is_plain:
            raise ValueError("options have to be plain JSON values, or they could not be kept in a profile")
        return options
