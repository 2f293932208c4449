import math
import re

from focus_rag.answer_report import answer_to_html
from focus_rag.answer_trace import trace_answer
from focus_rag.answers import Answer, PassageUse, Usage
from focus_rag.generator import FocusGenerator
from focus_rag.passages import Passage
from focus_rag.prompt_layout import PromptLayout
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

HOSTILE = "</script><img src=x onerror=alert(1)> & <b>bold</b>"


def answer(**more):
    passages = (
        PassageUse(Passage(HOSTILE, score=0.5, title="<i>", id='"x"'), 0.75, used=True),
        PassageUse(Passage("second"), 0.25, used=True),
        PassageUse(Passage("third"), None, used=False, dropped_reason="too long"),
    )
    return Answer(
        **{
            "text": HOSTILE, "alpha": 0.2, "noise": 0.5, "reason": "because <3", "passages": passages,
            "usage": Usage(1, 1), "finish_reason": "stop", **more,
        }
    )  # fmt: skip


def test_nothing_of_a_passage_becomes_markup():
    page = answer_to_html(answer(), question=HOSTILE)
    assert "<img" not in page
    assert "<b>bold" not in page
    assert page.count("</script>") == 2
    assert not re.search(r"https?://|src=\"(?!data)", page)


def test_shares_and_reasons_are_shown():
    page = answer_to_html(answer(text="x"))
    assert "75.0% of attention" in page
    assert "--share:0.7500" in page
    assert "not read: too long" in page
    assert "alpha 0.2, noise 0.50: because &lt;3" in page


def test_every_token_has_its_own_shares_and_their_mean_is_the_answers():
    model = tiny_model(vocab_size=270, max_position_embeddings=2048)
    generator = FocusGenerator(model, tiny_tokenizer(), tiny_profile(model))
    passages = [Passage("The mill was built in 1841."), Passage("The bakery opened in 1902.")]
    for seed in range(20):
        traced = trace_answer(generator, "When?", passages, alpha=0.5, max_new_tokens=6, temperature=1.0, seed=seed)
        if traced.answer.finish_reason == "length" and len(traced.tokens) == 6 and "�" not in traced.answer.text:
            break
    else:
        raise AssertionError("no seed gave six readable tokens")
    assert all(math.isclose(sum(row), 1.0, rel_tol=1e-4) for row in traced.shares)
    assert len({tuple(round(share, 4) for share in row) for row in traced.shares}) > 1
    # The answer's own share pools mass over tokens before dividing, so it lies between its tokens' shares.
    first = [row[0] for row in traced.shares]
    assert min(first) - 1e-4 <= traced.answer.passages[0].attention <= max(first) + 1e-4
    assert answer_to_html(traced).count("data-token=") == 6


def test_the_traced_prompt_has_the_generators_layout(monkeypatch):
    model = tiny_model(vocab_size=270, max_position_embeddings=2048)
    layout = PromptLayout(instruction="In one word.")
    generator = FocusGenerator(model, tiny_tokenizer(), tiny_profile(model), layout=layout)
    lengths = []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model),
        "forward",
        lambda self, input_ids=None, **more: (
            lengths.append(input_ids.shape[1]) or forward(self, input_ids=input_ids, **more)
        ),
    )
    passages = [Passage("The mill was built in 1841."), Passage("The bakery opened in 1902.")]
    for seed in range(20):
        lengths.clear()
        traced = trace_answer(generator, "When?", passages, alpha=0.5, max_new_tokens=3, temperature=1.0, seed=seed)
        if traced.tokens:
            break
    assert max(lengths[:-1]) < lengths[-1] <= max(lengths[:-1]) + 20


def test_without_a_profile_the_answer_is_shown_without_shares():
    generator = FocusGenerator(tiny_model(vocab_size=270, max_position_embeddings=2048), tiny_tokenizer())
    traced = trace_answer(generator, "When?", [Passage("x")], max_new_tokens=3)
    assert traced.shares == ()
    assert "of attention</span>" not in answer_to_html(traced)


def test_the_tokens_of_the_embedded_reader_put_together_are_its_answer():
    generator = FocusGenerator.from_pretrained()
    passages = [Passage("The founding year of the mill is 1841.", 2.0), Passage("The head of the mill is Ann Vé.", 1.0)]
    traced = trace_answer(generator, "What is the founding year of the mill?", passages, max_new_tokens=12)
    assert len(traced.tokens) > 3
    assert "".join(traced.tokens) == traced.answer.text
    assert all(abs(sum(row) - 1) < 1e-3 or sum(row) == 0 for row in traced.shares)
    assert sum(sum(row) > 0 for row in traced.shares) > len(traced.shares) / 2
    assert answer_to_html(traced).count("data-token=") == len(traced.tokens)
