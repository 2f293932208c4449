"""An answer as one HTML page that loads nothing: its passages shaded by attention and its evidence underlined,
confidence, alpha and noise in words.

With the attention of each answer token at hand (`answer_trace.trace_answer`), pointing at a token, or reaching it with
the tab key, shades the passages by what was attended to while that token was chosen.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from focus_rag.special_text import encodable

if TYPE_CHECKING:
    from focus_rag.answers import Answer, PassageUse
    from focus_rag.evidence import Evidence

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
mark{background:none;color:inherit;text-decoration:underline 2px rgb(var(--shade))}
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
            `answer.passages`; None for a passage that was not in the prompt. All 0 for a token at which these heads pay
            passages no attention to speak of.
    """

    answer: Answer
    tokens: tuple[str, ...]
    shares: tuple[tuple[float | None, ...], ...]


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
        f"<p>{'' if given.confidence is None else f'confidence {given.confidence:.0%}, '}alpha {given.alpha:.3g}, "
        f"noise {given.noise:.2f}: {html.escape(given.reason)}</p>",
        "<ol>" + "".join(_passage(place, use, given.evidence) for place, use in enumerate(given.passages)) + "</ol>",
        f'<script type="application/json" id="attention">{data}</script><script>{_SCRIPT}</script>',
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>focus_rag answer</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    return encodable(page)


def _answer_text(trace: AnswerTrace) -> str:
    if not trace.tokens:
        return html.escape(trace.answer.text) or "(the model answered with nothing)"
    return "".join(
        f'<span data-token="{place}" tabindex="0">{html.escape(token)}</span>'
        for place, token in enumerate(trace.tokens)
    )


def _passage(place: int, use: PassageUse, evidence: Sequence[Evidence]) -> str:
    title = f"<strong>{html.escape(use.passage.title)}</strong> " if use.passage.title else ""
    score = "" if use.passage.score is None else f"<span>score {use.passage.score:.3g}</span>"
    source = f"<span>{html.escape(str(use.passage.id))}</span>" if use.passage.id else ""
    marked = sorted(
        (one.start, one.end)
        for one in evidence
        if one.passage == place and one.start is not None and one.end is not None
    )
    text = title + _marked(use.passage.text, marked)
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


def _marked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """A text with some of its characters underlined; of spans that overlap, what is new."""
    parts, position = [], 0
    for start, end in ((max(start, position), end) for start, end in spans if end > position):
        parts += [html.escape(text[position:start]), f"<mark>{html.escape(text[start:end])}</mark>"]
        position = end
    return "".join([*parts, html.escape(text[position:])])


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
