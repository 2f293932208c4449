"""LlamaIndex messages -> the roles and contents that chat templates take."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from focus_rag import InvalidInputError

_SYSTEM = frozenset({MessageRole.SYSTEM, MessageRole.DEVELOPER})
_ASSISTANT = frozenset({MessageRole.ASSISTANT, MessageRole.CHATBOT, MessageRole.MODEL})
_NOT_SHOWN = frozenset({"thinking", "tool_call", "cache"})


def chat_template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """One system message first, then turns of alternating roles, as the strictest chat templates want them.

    System messages are joined, and so are neighbours of the same role. What tools and functions return becomes user text.
    Messages without text are left out.

    Raises:
        InvalidInputError: A message holds something other than text, or there is no text at all.
    """
    system: list[str] = []
    turns: list[tuple[str, list[str]]] = []
    for message in messages:
        text = text_of(message)
        if not text.strip():
            continue
        role = "assistant" if message.role in _ASSISTANT else "user"
        if message.role in _SYSTEM:
            system.append(text)
        elif turns and turns[-1][0] == role:
            turns[-1][1].append(text)
        else:
            turns.append((role, [text]))
    if system:
        turns.insert(0, ("system", system))
    if not turns:
        raise InvalidInputError("The messages hold no text: give the model at least one message that is not empty.")
    return [{"role": role, "content": "\n\n".join(texts)} for role, texts in turns]


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
