"""The sentences that an answer stands on: where they end, what they are ranked by, and that what is measured of them is
their attention.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from focus_rag import (
    Evidence,
    FocusGenerator,
    GenerationSettings,
    Passage,
    PromptLayout,
    Request,
    ScoreSplit,
    SpanMeter,
)
from focus_rag.answer_report import answer_to_html
from focus_rag.attention import formulas
from focus_rag.evidence import best_supported, values_of
from focus_rag.prompting import PromptBuilder
from focus_rag.sentences import sentence_spans
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

QUESTION = "When was the mill built?"
PASSAGES = [
    Passage("The mill is old. It was built in 1841.\nJ. R. Lee built it.", 0.9, title="Mill"),
    Passage("The bakery opened in 1902", 0.5),
    Passage("  ", 0.4),
    Passage("A bridge stands there. It is new.", 0.2),
]
SAID = [Passage("The mill is old."), Passage("It was built in 1841."), Passage("The bakery opened in 1902.")]
SETTINGS = GenerationSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def parts():
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=1024)
    return model, tokenizer, tiny_profile(model)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n ", []),
        ("one", ["one"]),
        (" One. Two!  Three? ", ["One.", "Two!", "Three?"]),
        ('He said "No." (So it was.) Then "Yes."', ['He said "No."', "(So it was.)", 'Then "Yes."']),
        ("Dr. J. R. Lee paid 1.5 m. to Mrs. Orr.", ["Dr. J. R. Lee paid 1.5 m. to Mrs. Orr."]),
        ("a line\nthat goes on\n\nThe next\n \nand в.\n\nг", ["a line\nthat goes on", "The next", "and в.", "г"]),
        (
            "Two things:\n- one thing\n  * another\n3) third:\n4. fourth",
            ["Two things:", "- one thing", "* another", "3) third:", "4. fourth"],
        ),
        (
            "built in\n1841. It burned down in\n1900. Nobody cared.",
            ["built in\n1841.", "It burned down in\n1900.", "Nobody cared."],
        ),
        ("Дом построен в 1990 г. в Москве. Он стар.", ["Дом построен в 1990 г. в Москве.", "Он стар."]),
        ("Die Mühle usw. über dem Fluss. Ähren.", ["Die Mühle usw. über dem Fluss.", "Ähren."]),
        (
            "See No. 5 there. In 1900. 5 men came, see Fig. 3.",
            ["See No. 5 there.", "In 1900.", "5 men came, see Fig. 3."],
        ),
        ("यह एक है। यह दो है।", ["यह एक है।", "यह दो है।"]),
        (
            "It was built ca. 1841, on Dec. 12, 1841. It is approx. 180 years old.",
            ["It was built ca. 1841, on Dec. 12, 1841.", "It is approx. 180 years old."],
        ),
        (
            "See Lee et al. (2020), cf. Roe, and Gen. Robert Lee. He came.",
            ["See Lee et al. (2020), cf. Roe, and Gen. Robert Lee.", "He came."],
        ),
        ("Born 5. Mai 1841. Es war 5. Mehr nicht.", ["Born 5. Mai 1841.", "Es war 5.", "Mehr nicht."]),
        ("1. First item\n2. Second. Third", ["1. First item\n2. Second.", "Third"]),
        ("“Built in 1841.” The next one is new.", ["“Built in 1841.”", "The next one is new."]),
        ("他说：“好。”然后走了。", ["他说：“好。”", "然后走了。"]),
        ("متى بني؟ بني سنة 1841.", ["متى بني؟", "بني سنة 1841."]),
        ("水车建于1841年。面包店很旧！好", ["水车建于1841年。", "面包店很旧！", "好"]),
    ],
)
def test_sentences_are_those_of_the_text_and_nothing_but_white_space_is_lost(text, sentences):
    spans = sentence_spans(text)
    assert [text[start:end] for start, end in spans] == sentences
    assert "".join("".join(text[start:end] for start, end in spans).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("answer", "attention", "best"),
    [
        ("1841", [], [1]),
        ("1841", [0.3, 0.1, 0.6], [1]),
        ("1841", [0.6, 0.0, 0.5], [1, 0]),
        ("an old mill", [0.0, 0.1, 0.05], [0, 1]),
        ("nothing shared", [0.2, 0.9, 0.5], [1, 2]),
        ("nothing shared", [], []),
        ("the", [], []),
        (" ", [0.2, 0.9, 0.5], []),
        ("1841", [0.0, 0.0, 0.0], [1]),
    ],
)
def test_a_sentence_is_supported_by_attention_and_by_shared_words(answer, attention, best):
    assert best_supported(answer, SAID, range(3), attention) == best


def test_the_title_of_a_passage_counts_as_said():
    sentences = [Passage("It was built in 1841.", title="Bakery"), Passage("It was built in 1841.", title="Mill")]
    assert best_supported("The mill was built in 1841.", sentences, [0, 1], [])[0] == 1


def test_no_more_than_three_sentences_and_none_without_passages():
    assert best_supported("mill", [Passage("a mill")] * 4, range(4), [0.1, 0.2, 0.2, 0.2]) == [1, 2, 3]
    assert best_supported("mill", [], [], []) == []


def test_what_a_passage_says_twice_is_said_once_and_what_two_passages_say_twice():
    assert best_supported("mill", [Passage("a mill")] * 4, [0, 0, 1, 1], [0.1, 0.2, 0.3, 0.2]) == [2, 1]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (
            '{"year": 1841, "built": true, "by": ["J. Lee", {"town": "Ash \\"Hill\\""}], "cost": null}',
            '1841 J. Lee Ash "Hill"',
        ),
        ('"1841"', "1841"),
        ('{"year": 18', '{"year": 18'),
        ("[" * 100_000, "[" * 100_000),
        ("[" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000),
    ],
)
def test_of_an_answer_by_a_schema_the_values_count_and_not_the_names(text, values):
    assert values_of(text) == values


def shown(builder: PromptBuilder, prompt) -> list[tuple[int, str]]:
    """Sentences with their passages, read off the tokens, which a byte-level tokenizer cuts exactly."""
    for one in prompt.sentences:
        assert builder.tokenizer.decode(prompt.input_ids[slice(*one.tokens)]).strip() == one.text
        assert prompt.spans[one.passage][0] <= one.tokens[0] < one.tokens[1] <= prompt.spans[one.passage][1]
    return [(one.passage, one.text) for one in prompt.sentences]


SENTENCES = [
    (0, "The mill is old."), (0, "It was built in 1841."), (0, "J. R. Lee built it."), (1, "The bakery opened in 1902"),
    (3, "A bridge stands there."), (3, "It is new."),
]  # fmt: skip


@pytest.mark.parametrize("question_first", [True, False])
def test_a_prompt_knows_the_sentences_of_its_passages_but_not_their_titles(question_first):
    builder = PromptBuilder(tiny_tokenizer(), PromptLayout(question_first=question_first))
    prompt = builder.from_question(QUESTION, PASSAGES, max_tokens=900, drop_order=())
    assert shown(builder, prompt) == SENTENCES
    told = "\n\n".join(" ".join(one.content.split()) for one in PASSAGES)
    for built in (
        builder.from_messages([{"role": "user", "content": f"{told}\n{QUESTION}"}], PASSAGES, max_tokens=900),
        builder.from_text(f"{told}\n{QUESTION}", PASSAGES, max_tokens=900),
    ):
        assert shown(builder, built) == [(index, " ".join(text.split())) for index, text in SENTENCES]
    dropped = builder.from_question(QUESTION, PASSAGES, max_tokens=len(prompt.input_ids) - 5, drop_order=[0, 1, 3])
    assert {index for index, _ in shown(builder, dropped)} == {1, 3}


@pytest.mark.parametrize(
    "title", [" Mill", "Mill ", "  ", "Mi\ud800ll", f"{tiny_tokenizer().eos_token} Mill", "Mill 1841"]
)
def test_a_title_is_left_out_however_it_is_shown(parts, title):
    generator = FocusGenerator(*parts, settings=SETTINGS, alpha=0.5)
    passages = [Passage("It was built in 1841.", title=title), Passage("", title=title), PASSAGES[1]]
    told = "\n\n".join(one.content.strip() for one in passages)
    for answer in (generator.answer(QUESTION, passages), generator.generate(f"{told}\nWhen?", passages=passages)):
        assert {one.text for one in answer.evidence} <= {"It was built in 1841.", "The bakery opened in 1902"}
        assert all(passages[one.passage].text[one.start : one.end] == one.text for one in answer.evidence)


def test_so_many_sentences_that_measuring_them_would_take_memory_are_told_by_words_alone(parts, monkeypatch):
    generator = FocusGenerator(*parts, settings=SETTINGS, alpha=0.5)
    monkeypatch.setattr("focus_rag.decoding.RowText.text", property(lambda self: "In 1902."))
    assert generator.answer(QUESTION, PASSAGES).evidence[0].attention is not None
    monkeypatch.setattr("focus_rag.prepared_request._MOST_MEASURED", 10)
    answer = generator.answer(QUESTION, PASSAGES)
    assert (
        answer.evidence == (Evidence(1, "The bakery opened in 1902", 0, 25, None),) and answer.passages[0].attention > 0
    )


def test_what_could_be_control_markup_stands_in_a_sentence_as_in_the_prompt(parts):
    model, tokenizer, profile = parts
    passages = [
        Passage(f"The mill {tokenizer.eos_token} was built in 1841. It is old.", title="Mill"),
        Passage("The bakery opened in 1902."),
    ]
    answer = FocusGenerator(model, tokenizer, profile, alpha=0.5, settings=SETTINGS).answer(QUESTION, passages)
    for one in answer.evidence:
        assert tokenizer.eos_token not in one.text
        assert (one.start is None) == (one.text not in passages[one.passage].text) == (one.end is None)


@pytest.mark.parametrize("split", ["off", ScoreSplit(reach=0.0, tau=0.2)])
@pytest.mark.parametrize("tokens", [1, 5])
def test_the_share_of_a_sentence_is_its_attention_under_what_is_done_to_the_heads(parts, split, tokens):
    """Against weights of single keys, written out."""
    model, _, profile = parts
    generator = FocusGenerator(*parts, settings=GenerationSettings(max_new_tokens=tokens), alpha=0.0, split=split)
    prompt = generator.prompts.from_question(QUESTION, PASSAGES, max_tokens=900, drop_order=())
    length = len(prompt.input_ids)
    with SpanMeter(model, profile.head_pairs, [[(place, place + 1) for place in range(length)]], length) as meter:
        answer = generator.answer(QUESTION, PASSAGES)
    weights = torch.stack([step[0, :, 0] for step in meter.steps[: answer.usage.completion_tokens]])
    on_passages = torch.zeros(length, dtype=torch.bool)
    for span in filter(None, prompt.spans):
        on_passages[slice(*span)] = True
    weights = weights * on_passages
    if split != "off":
        favoured = torch.zeros(length, dtype=torch.bool)
        favoured[slice(*prompt.spans[0])] = True
        weights = formulas.split_weights(weights, favoured, 0.2)
    keys = weights.mean(dim=(0, 1))
    expected = {one.text: float(keys[slice(*one.tokens)].sum() / keys.sum()) for one in prompt.sentences}
    assert answer.evidence and answer.tau == (1.0 if split == "off" else 0.2)
    for one in answer.evidence:
        assert one.attention == pytest.approx(expected[one.text], abs=1e-5)
        assert PASSAGES[one.passage].text[one.start : one.end] == one.text
        assert one.attention <= answer.passages[one.passage].attention + 1e-6
    said = [Passage(one.text, title=PASSAGES[one.passage].title) for one in prompt.sentences]
    order = best_supported(answer.text, said, [one.passage for one in prompt.sentences], list(expected.values()))
    assert [one.text for one in answer.evidence] == [prompt.sentences[index].text for index in order]


def test_evidence_is_the_same_alone_and_in_a_batch_and_names_passages_as_they_were_given(parts):
    generator = FocusGenerator(*parts, settings=SETTINGS, alpha=0.5)
    requests = [
        Request(question=QUESTION, passages=PASSAGES),
        Request(question=QUESTION, passages=PASSAGES[:2]),
        Request(question="What stands there?", passages=PASSAGES, keep_best=2),
        Request(prompt=f"{PASSAGES[3].text}\nWhat?", passages=PASSAGES),
        Request(question=QUESTION),
    ]
    together = generator.answer_batch(requests)
    for one, request in zip(together, requests, strict=True):
        alone = generator.run(request)
        assert one.text == alone.text
        assert [(e.passage, e.text, e.start, e.end) for e in one.evidence] == [
            (e.passage, e.text, e.start, e.end) for e in alone.evidence
        ]
        assert [e.attention for e in one.evidence] == pytest.approx([e.attention for e in alone.evidence], abs=1e-5)
        assert all(one.passages[e.passage].used and e.text in request.passages[e.passage].text for e in one.evidence)
    assert together[4].evidence == () and all(e.passage == 3 for e in together[3].evidence) and together[3].evidence


def test_a_sentence_that_stands_twice_in_a_passage_is_found_where_it_stands(parts, monkeypatch):
    generator = FocusGenerator(*parts, settings=SETTINGS, alpha=0.5)
    monkeypatch.setattr(
        "focus_rag.prepared_request.best_supported", lambda said, sentences, of_passage, shares: [2, 0, 3]
    )
    again = Passage("It is old. A mill. It is old. It is old.")
    answer = generator.answer(QUESTION, [again, PASSAGES[1]])
    assert [(one.start, one.end) for one in answer.evidence] == [(19, 29), (0, 10), (30, 40)]
    # In a prompt that somebody else laid out, white space may be another.
    other = generator.generate(
        "It is old. A mill. It is old. It is old.\nWhen?",
        passages=[Passage("It is old.  A mill. It\nis old. It is old."), PASSAGES[1]],
    )
    assert [(one.start, one.end) for one in other.evidence] == [(20, 30), (0, 10), (31, 41)]


def test_without_attention_the_words_of_the_answer_tell(parts, monkeypatch):
    model, tokenizer, _ = parts
    bare = FocusGenerator(model, tokenizer, settings=SETTINGS)
    monkeypatch.setattr("focus_rag.decoding.RowText.text", property(lambda self: "In 1902."))
    answer = bare.answer(QUESTION, PASSAGES)
    assert answer.evidence == (Evidence(1, "The bakery opened in 1902", 0, 25, None),)
    unmeasured = FocusGenerator(*parts, settings=SETTINGS, alpha=0.5, measure=False)
    assert unmeasured.answer(QUESTION, PASSAGES).evidence == answer.evidence


def test_a_report_and_a_page_show_the_evidence(parts):
    answer = FocusGenerator(*parts, settings=SETTINGS, alpha=0.5).answer(QUESTION, PASSAGES)
    plain = [
        {"passage": e.passage, "text": e.text, "start": e.start, "end": e.end, "attention": e.attention}
        for e in answer.evidence
    ]
    assert plain and answer.report()["evidence"] == plain == answer.to_dict()["evidence"]
    page = answer_to_html(answer)
    over = replace(
        answer, evidence=(Evidence(0, "", 4, 8, None), Evidence(0, "", 6, 11, None), Evidence(0, "", 4, 8, None))
    )
    assert "The <mark>mill</mark><mark> is</mark> old." in answer_to_html(over)
    assert page.count("<mark>") == len(plain) and all(f"<mark>{e.text}</mark>" in page for e in answer.evidence)


def test_a_page_of_half_a_character_can_be_written(parts):
    answer = FocusGenerator(*parts).answer(QUESTION, [Passage("half \ud83d of it"), *PASSAGES], max_new_tokens=3)
    assert answer_to_html(answer, question="\ud83d?").encode()


def test_a_sentence_is_not_looked_for_in_one_that_was_made_safe(parts):
    text = "Why <|pad|> said 1978. is new? 1978. Later."
    generator = FocusGenerator(*parts)
    prepared = generator._prepare(Request(question=QUESTION, passages=[Passage(text)]))
    spans = prepared._spans_of_sentences({0})
    assert [text[slice(*spans[place])] for place in sorted(spans)] == ["1978.", "Later."]
    assert spans[1][0] == text.rindex("1978.")
