"""LlamaIndex messages -> the roles and contents that chat templates take."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from focus_rag import InvalidInputError, chat_turns

_SYSTEM = frozenset({MessageRole.SYSTEM, MessageRole.DEVELOPER})
_ASSISTANT = frozenset({MessageRole.ASSISTANT, MessageRole.CHATBOT, MessageRole.MODEL})
_NOT_SHOWN = frozenset({"thinking", "tool_call", "cache"})


def chat_template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """The conversation as `focus_rag.chat_turns` merges it; what tools and functions return becomes user text.

    Raises:
        InvalidInputError: A message holds something other than text, or there is no text at all.
    """
    return chat_turns((_role_of(message), text_of(message)) for message in messages)


def _role_of(message: ChatMessage) -> str:
    if message.role in _SYSTEM:
        return "system"
    return "assistant" if message.role in _ASSISTANT else "user"


def text_of(message: ChatMessage) -> str:
    """The text of a message.

    Raises:
        InvalidInputError: It holds images, audio or documents.
    """
    texts = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif block.block_type not in _NOT_SHOWN:
            raise InvalidInputError(
                f"A message holds a {block.block_type!r} block; this model reads text only: leave it out."
            )
    return "\n".join(texts)
