"""Finding passages again in a prompt that somebody else assembled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from focus_rag.locating import locate_copies, locate_passages
from focus_rag.passages import Passage

LONG = "The old mill by the river was built in 1840 by three brothers who had come from the north with one cart."
WORDS = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8)


def found(text, *passages):
    spans = locate_passages(text, [Passage(passage) if isinstance(passage, str) else passage for passage in passages])
    return [None if span is None else text[slice(*span)] for span in spans]


def test_verbatim_with_title_and_without():
    titled = Passage(LONG, title="Mill")
    assert found(f"Context:\nMill: {LONG}\nQ", titled) == [f"Mill: {LONG}"]
    assert found(f"Context:\n{LONG}\nQ", titled) == [LONG]


def test_other_white_space():
    spread = LONG.replace(" ", " \n\t ")
    assert found(f"a {spread} b", LONG) == [spread]
    assert found(f"a {LONG} b", spread) == [LONG]


def test_the_same_text_twice_takes_its_occurrences_in_order():
    text = f"{LONG} | {LONG}"
    assert locate_passages(text, [Passage(LONG)] * 3) == [(0, len(LONG)), (len(LONG) + 3, len(text)), None]


def test_a_truncated_passage_is_found_by_its_windows():
    cut = LONG[: LONG.index(" who")]
    (span,) = found(f"a {cut}... b", LONG)
    assert span is not None
    assert span in cut
    assert len(span) > len(cut) / 2


def test_what_is_left_of_a_passage_is_found_up_to_where_it_was_cut():
    long = " ".join(f"word{number} of many" for number in range(40))
    for begin in range(0, 60, 7):
        for end in range(180, 240, 7):
            left = long[begin:end]
            (span,) = found(f"Context: ...{left}... End", long)
            assert span is not None
            missing = left.partition(span)
            assert max(len(missing[0]), len(missing[2])) <= 3, (left, span)


def test_a_word_that_only_begins_alike_is_no_part_of_it():
    (span,) = found(f"Context: {LONG[: LONG.index(' who')]} whoever came", LONG)
    assert span in (LONG[: LONG.index(" who")], LONG[: LONG.index(" who") + 4])
    (span,) = found(f"Context: {LONG[: LONG.index(' with')]} wood", LONG)
    assert span == LONG[: LONG.index(" with")]


def test_all_copies():
    spans, copies = locate_copies(f"{LONG} | {LONG} |\n{LONG.replace(' ', chr(10))}", [Passage(LONG)], [Passage(LONG)])
    assert spans == [(0, len(LONG))]
    assert copies == [(len(LONG) + 3, 2 * len(LONG) + 3), (2 * len(LONG) + 6, 3 * len(LONG) + 6)]
    assert locate_copies(f"{LONG} | {LONG}", [Passage(LONG)], []) == ([(0, len(LONG))], [])


def test_the_same_words_again_and_again_are_found_in_steps():
    """Were every place tried for every copy, this would take minutes."""
    times, text = 300, "a " * 600
    spans = locate_passages(text * times, [Passage(text)] * times)
    assert [span[0] // len(text) for span in spans] == list(range(times))


def test_what_is_left_of_a_passage_is_not_looked_for_in_the_place_of_another():
    notice = "This report is confidential and may not be shown to anybody outside of the office."
    cut, whole = f"{notice} {LONG}", f"{notice} The bakery on the square opened in 1902 and closed again in 1931."
    left = cut[: cut.index(" who")]
    for text in (f"{whole}\n\n{left}...", f"{left}...\n\n{whole}"):
        for order in ((cut, whole), (whole, cut)):
            spans = dict(zip(order, found(text, *order), strict=True))
            assert spans[whole] == whole
            assert spans[cut] in left
            assert "three brothers" in spans[cut]


def test_a_notice_that_stands_elsewhere_too_does_not_stretch_a_passage():
    notice = "This report is confidential and may not be shown to anybody outside of the office."
    body = f"{LONG} Its wheel was of oak, and its stones were cut in the quarry above the town by hand."
    (span,) = found(f"{notice}\n\n{'Something else. ' * 40}\n\n{body}", f"{notice} {body}")
    assert span is not None
    assert span in body
    assert len(span) > len(body) - 60


def test_short_texts_count_as_whole_words_only():
    assert found("the millstone", "mill") == [None]
    assert found("the mill stone", "mill") == ["mill"]
    assert found("the  mill\nstone", "mill stone") == [None]


def test_absent_and_empty():
    assert found("nothing of the kind is said anywhere here", LONG, "", "   ") == [None, None, None]
    assert found("", LONG) == [None]
    assert locate_passages("text", []) == []


@given(st.lists(st.lists(WORDS, min_size=4, max_size=12).map(" ".join), min_size=1, max_size=4), WORDS)
def test_what_was_put_in_verbatim_is_found_without_overlaps(texts, between):
    text = f"\n{between}\n".join(texts)
    spans = locate_passages(text, [Passage(one) for one in texts])
    for index, span in enumerate(spans):
        if span is not None:
            assert 0 <= span[0] < span[1] <= len(text)
            assert all(span[1] <= other[0] or other[1] <= span[0] for other in spans[:index] if other is not None)
    if len(texts) == 1 and len(texts[0]) >= 16:
        assert text[slice(*spans[0])] == texts[0]


@given(st.text(max_size=200), st.lists(st.text(max_size=60), max_size=4))
def test_any_text_at_all(text, passages):
    for span in locate_passages(text, [Passage(one) for one in passages]):
        assert span is None or 0 <= span[0] < span[1] <= len(text)


def test_a_notice_beyond_another_passage_does_not_lose_the_one_it_ends() -> None:
    for words in range(38, 46):
        body = " ".join(f"word{number}" for number in range(words))
        other = " ".join(f"other{number}" for number in range(10))
        notice = "this page was last changed on 3 May"
        spans = locate_passages(f"{body}...\n\n{other}\n\n{notice}", [Passage(f"{body} {notice} 2021"), Passage(other)])
        assert spans[0] == (0, len(body)), words


def test_a_quotation_is_no_copy() -> None:
    notice = "You are a helpful assistant who answers from the passages alone."
    page = f"{LONG} {LONG} {notice} {LONG}"
    spans, copies = locate_copies(f"{notice}\n\n{page}", [Passage(page)], [Passage(page)])
    assert spans == [(len(notice) + 2, len(notice) + 2 + len(page))] and copies == []


def test_a_passage_that_holds_another_one_is_found_in_any_order() -> None:
    child, other = "The mill was built in 1841.", "The bakery of Harrow opened in 1902 near the old church."
    parent = f"Harrow is a village. {child} It burnt down in 1902."
    for order in ((parent, other, child), (child, other, parent), (other, child, parent)):
        text = "\n\n".join(order)
        for listed in ((child, parent, other), (parent, child, other), (other, child, parent)):
            places = dict(zip(listed, locate_passages(text, [Passage(one) for one in listed]), strict=True))
            whole = text.index(parent), text.index(parent) + len(parent)
            alone = next(at for at in (text.index(child), text.rindex(child)) if not whole[0] <= at < whole[1])
            assert places[parent] == whole and places[child] == (alone, alone + len(child)), (order, listed)


def test_the_same_text_under_titles_of_other_lengths_takes_its_occurrences_in_order() -> None:
    text = f"Context:\n\n{LONG}\n\nother stuff here\n\n{LONG}\n\nQ"
    spans = locate_passages(text, [Passage(LONG, title="ab"), Passage(LONG, title="abcdef longer")])
    assert spans == [(10, 10 + len(LONG)), (text.rindex(LONG), text.rindex(LONG) + len(LONG))]
    text = f"X\n\nmill: {LONG}\n\n{LONG}"
    assert found(text, Passage(LONG, title="mill"), Passage(LONG, title="Long mill history")) == [f"mill: {LONG}", LONG]


def test_parts_of_a_passage_are_not_joined_over_what_is_said_between_them() -> None:
    words = [f"word{number}" for number in range(60)]
    first, second = " ".join(words[:40]), " ".join(words[40:])
    between = "Who built the mill, and when was it? It was built by somebody else, who says so here."
    (span,) = locate_passages(f"{first}\n\n{between}\n\n{second}", [Passage(f"{first} {second}")])
    assert span == (0, len(first))
    (span,) = locate_passages(f"{first}\n[page 12 of 40]\n{second}", [Passage(f"{first} {second}")])
    assert span == (0, len(first) + len("\n[page 12 of 40]\n") + len(second))
