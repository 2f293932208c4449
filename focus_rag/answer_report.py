"""An answer as one HTML page that loads nothing: its passages shaded by attention, alpha and noise in words.

With the attention of each answer token at hand (`trace_answer`), pointing at a token, or reaching it with the tab key,
shades the passages by what was attended to while that token was chosen.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from focus_rag.answers import Answer
    from focus_rag.generator import FocusGenerator
    from focus_rag.passages import Passage

_NO_ATTENTION = 1e-6  # probability mass on all passages together
_STYLE = """
:root{color-scheme:light dark;--shade:255,170,0}
body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:0 auto;padding:1rem;overflow-wrap:anywhere}
.answer{font-size:1.3rem;margin:1rem 0}
.answer span{border-radius:3px;white-space:pre-wrap}
.answer span:hover,.answer span:focus{outline:2px solid rgb(var(--shade))}
ol{padding:0;list-style:none}
li{padding:.6rem .8rem;margin:.5rem 0;border-radius:6px;border:1px solid #8884;
 background:rgba(var(--shade),calc(var(--share)*.75))}
.meta{font-size:.85rem;opacity:.8;display:flex;gap:1rem;flex-wrap:wrap}
.dropped{opacity:.6;border-style:dashed}
"""

_SCRIPT = """
const rows=[...document.querySelectorAll('li[data-place]')];
const show=shares=>rows.forEach(row=>{const share=shares[row.dataset.place]??0;row.style.setProperty('--share',share);
 const label=row.querySelector('.share');if(label)label.textContent=(100*share).toFixed(1)+'% of attention';});
const data=JSON.parse(document.getElementById('attention').textContent);
document.querySelectorAll('.answer span[data-token]').forEach(token=>{
 const shares=data.tokens[token.dataset.token];
 for(const name of ['mouseenter','focus'])token.addEventListener(name,()=>show(shares));
 for(const name of ['mouseleave','blur'])token.addEventListener(name,()=>show(data.whole));});
"""


@dataclass(frozen=True, slots=True)
class AnswerTrace:
    """An answer with the attention behind each of its tokens.

    Attributes:
        answer: The answer.
        tokens: Text of each token.
        shares: For each token the share of the contextual heads' passage attention by passage, in the order of
            `answer.passages`; None for a passage that was not in the prompt. All 0 for a token at which these heads pay passages
            no attention to speak of.
    """

    answer: Answer
    tokens: tuple[str, ...]
    shares: tuple[tuple[float | None, ...], ...]


def trace_answer(
    generator: FocusGenerator, question: str, passages: Sequence[Passage] = (), **options: Any
) -> AnswerTrace:
    """Answer a question and keep the attention behind each token.

    Args:
        generator: The generator; without a profile there are no contextual heads, and no token has shares.
        question: The question.
        passages: What was retrieved.
        **options: As for `FocusGenerator.answer`.
    """
    from focus_rag.attention.measuring import SpanMeter
    from focus_rag.noise import worst_first

    answer = generator.answer(question, passages, **options)
    uses = [use for use in answer.passages if use.used]
    used = [use.passage for use in uses]
    if generator.profile is None or not used or not answer.text:
        return AnswerTrace(answer, (), ())
    prompt = generator.prompts.from_question(
        question, used, max_tokens=generator.context_window, drop_order=worst_first(used)
    )
    shown = [(span, use.favoured) for span, use in zip(prompt.spans, uses, strict=True) if span is not None]
    spans, favoured = [span for span, _ in shown], [span for span, is_favoured in shown if is_favoured]
    encoded = generator.tokenizer(answer.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = list(encoded["input_ids"])
    heads = generator.profile.head_pairs
    length = len(prompt.input_ids)
    # One pass over prompt and answer together: the row before a token is the one that chose it.
    rows = list(range(length - 1, length - 1 + len(tokens)))
    with ExitStack() as stack:
        import torch

        from focus_rag.attention.formulas import split_weights
        from focus_rag.attention.splitting import split_softmax
        from focus_rag.attention.steering import focus
        from focus_rag.probing import input_device

        stack.enter_context(torch.inference_mode())
        stack.enter_context(focus(generator.model, generator.profile, answer.alpha, passages_at=prompt.passages_at))
        if favoured:
            after = prompt.after_passages_in(length)
            stack.enter_context(split_softmax(generator.model, heads, [favoured], length + len(tokens), tau=answer.tau, first_row=after))
        meter = stack.enter_context(SpanMeter(generator.model, heads, [spans], length + len(tokens), rows=rows))
        ids = torch.tensor([[*prompt.input_ids, *tokens]], device=input_device(generator.model))
        generator.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    by_head = meter.steps[0][0]
    if favoured:  # the meter reads queries and keys, which split softmax leaves as they are
        by_head = split_weights(by_head, torch.tensor([is_favoured for _, is_favoured in shown]), answer.tau)
    mass = by_head.mean(dim=0)
    whole = mass.sum(dim=-1, keepdim=True)
    shares = torch.where(whole > _NO_ATTENTION, mass / whole.clamp_min(_NO_ATTENTION), 0.0).tolist()
    # Cut from the answer, not decoded one by one: alone, a token may lose its space or be part of a character.
    starts = [0, *(start for start, _ in encoded["offset_mapping"][1:]), len(answer.text)]
    pieces = [answer.text[start:end] for start, end in itertools.pairwise(starts)]
    return AnswerTrace(answer, tuple(pieces), tuple(_spread(answer, row) for row in shares))


def _spread(answer: Answer, row: Sequence[float]) -> tuple[float | None, ...]:
    values = iter(row)
    return tuple(next(values, None) if use.used else None for use in answer.passages)


def answer_to_html(answer: Answer | AnswerTrace, *, question: str | None = None) -> str:
    """One page of HTML.

    Args:
        answer: An answer, or a traced one, whose tokens can be pointed at.
        question: Shown above the answer.
    """
    trace = answer if isinstance(answer, AnswerTrace) else AnswerTrace(answer, (), ())
    given = trace.answer
    whole = [use.attention for use in given.passages]
    data = json.dumps(
        {"whole": [_rounded(one) for one in whole], "tokens": [[_rounded(one) for one in row] for row in trace.shares]}
    ).replace("<", "\\u003c")
    parts = [
        f"<h1>{html.escape(question)}</h1>" if question else "",
        f'<p class="answer">{_answer_text(trace)}</p>',
        f"<p>alpha {given.alpha:.3g}, noise {given.noise:.2f}: {html.escape(given.reason)}</p>",
        "<ol>" + "".join(_passage(place, use) for place, use in enumerate(given.passages)) + "</ol>",
        f'<script type="application/json" id="attention">{data}</script><script>{_SCRIPT}</script>',
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>focus_rag answer</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _answer_text(trace: AnswerTrace) -> str:
    if not trace.tokens:
        return html.escape(trace.answer.text) or "(the model answered with nothing)"
    return "".join(
        f'<span data-token="{place}" tabindex="0">{html.escape(token)}</span>'
        for place, token in enumerate(trace.tokens)
    )


def _passage(place: int, use: Any) -> str:
    title = f"<strong>{html.escape(use.passage.title)}</strong> " if use.passage.title else ""
    score = "" if use.passage.score is None else f"<span>score {use.passage.score:.3g}</span>"
    source = f"<span>{html.escape(str(use.passage.id))}</span>" if use.passage.id else ""
    text = f"{title}{html.escape(use.passage.text)}"
    if not use.used:
        meta = (
            f"<span>[{place + 1}]</span><span>not read: {html.escape(use.dropped_reason or '')}</span>{score}{source}"
        )
        return f'<li class="dropped" style="--share:0"><div class="meta">{meta}</div>{text}</li>'
    share = "" if use.attention is None else f'<span class="share">{use.attention:.1%} of attention</span>'
    meta = f"<span>[{place + 1}]</span>{share}{score}{source}"
    return (
        f'<li data-place="{place}" style="--share:{use.attention or 0:.4f}"><div class="meta">{meta}</div>{text}</li>'
    )


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
