"""LangChain messages -> the roles and contents that chat templates take."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, SystemMessage

from focus_rag import InvalidInputError


def chat_template_messages(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    """One system message first, then turns of alternating roles, as the strictest chat templates want them.

    System messages are joined, and so are neighbours of the same role. Tool results become user text, because few
    templates of models without tools have a place for them. Messages without text (bare tool calls) and names of
    speakers are left out.

    Raises:
        InvalidInputError: A message holds something other than text, or there is no text at all.
    """
    system: list[str] = []
    turns: list[tuple[str, list[str]]] = []
    for message in messages:
        text = _text_of(message)
        role = _role_of(message)
        if not text.strip():
            continue
        if role == "system":
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
