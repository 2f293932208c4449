"""The byte-level BPE tokenizer of the embedded model and its chat template.

Every word starts with a space, also the first of a text: an answer is then made of the same tokens as the words in the
passage that it is copied from. Numbers are cut into groups of at most two digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focus_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
START = "<|start|>"
END = "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (PAD, START, END, *(f"<|{role}|>" for role in ROLES))

CHAT_TEMPLATE = (
    "{{ '<|start|>' }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_WORDS = r" ?\p{L}+| ?\p{N}{1,2}|'s| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn byte-level BPE merges from `texts`.

    Args:
        texts: Training text; order does not matter.
        vocab_size: Tokens in all, special tokens and the 256 bytes included.

    Returns:
        The tokenizer with its chat template.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    parts: dict[str, Any] = {
        "normalizer": normalizers.Prepend(" "),
        "pre_tokenizer": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        "decoder": decoders.Sequence([decoders.ByteLevel(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    }
    for name, part in parts.items():
        setattr(model, name, part)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return wrap(model)


def wrap(model: Any) -> PreTrainedTokenizerFast:
    """A `tokenizers.Tokenizer` as the transformers tokenizer that is saved with the model."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`.

    Raises:
        InvalidInputError: There is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        # What the tokenizers library raises for damaged files has no type of its own.
        return wrap(Tokenizer.from_str(text))
    except Exception as error:
        raise InvalidInputError(
            f"{folder} holds no tokenizer ({error}): give the folder of a saved reader, with its tokenizer.json."
        ) from error
