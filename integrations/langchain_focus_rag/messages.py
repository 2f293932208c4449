"""LangChain messages -> the roles and contents that chat templates take."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, SystemMessage

from focus_rag import InvalidInputError, chat_turns


def chat_template_messages(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    """The conversation as `focus_rag.chat_turns` merges it.

    Tool results become user text, because few templates of models without tools have a place for them. Messages without
    text (bare tool calls) and names of speakers are left out.

    Raises:
        InvalidInputError: A message holds something other than text, or there is no text at all.
    """
    return chat_turns((_role_of(message), _text_of(message)) for message in messages)


def _role_of(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    if isinstance(message, SystemMessage):
        return "system"
    return "assistant" if isinstance(message, AIMessage) else "user"


def _text_of(message: BaseMessage) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    texts = []
    for block in content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block.get("text", "")))
        elif block.get("type") not in ("tool_call", "tool_use", "tool_call_chunk", "reasoning"):
            raise InvalidInputError(
                f"A message holds a {block.get('type')!r} block; this model reads text only: leave it out."
            )
    return "".join(texts)
