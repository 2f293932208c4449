from __future__ import annotations

import random
import threading

import pytest

from focus_rag.adapters.passage_registry import PassageRegistry, RetrievedText
from focus_rag.adapters.retrieval_records import Hit, Origin, Retrieval, StoredText, from_registry


def texts(n: int, seed: int = 0, words: int = 40) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join("".join(rng.choices("abcdefghij", k=rng.randint(3, 9))) for _ in range(words)) + "." for _ in range(n)
    ]


def rows(found: list[str], scores: list[object] | None = None) -> list[RetrievedText]:
    return [(text, scores[i] if scores else None, f"id{i}") for i, text in enumerate(found)]


def chain(registry: PassageRegistry, name: str = "r") -> tuple[str, str, str]:
    """A root with a retriever and a model call below it."""
    root, retriever, call = f"{name}-root", f"{name}-retriever", f"{name}-call"
    registry.record(root)
    registry.record(retriever, root, gate=True)
    registry.record(call, root)
    return root, retriever, call


def test_lineage_gives_exactly_the_passages_in_the_prompt_in_its_order() -> None:
    registry, found = PassageRegistry(), texts(5)
    _, retriever, call = chain(registry)
    registry.put(retriever, rows(found, [0.9, 0.8, 0.7, 0.6, 0.5]), query="q", source="faiss")
    got = registry.lookup(call, f"[1] {found[3]}\n\n[2] {found[0]}\n\nQuestion: q")
    assert got.how == "lineage"
    assert [(p.text, p.score, p.id) for p in got.passages] == [(found[3], 0.6, "id3"), (found[0], 0.9, "id0")]
    assert got.higher_is_better is True
    assert got.retrieved == 5


def test_ten_runs_that_share_passages_keep_their_own_scores() -> None:
    registry, found = PassageRegistry(), texts(10)
    calls = []
    for i in range(10):
        _, retriever, call = chain(registry, str(i))
        registry.put(retriever, rows(found, [i + j / 100 for j in range(10)]), query=f"question {i}")
        calls.append(call)
    prompt = "\n".join(found)
    for i, call in enumerate(calls):
        assert [p.score for p in registry.lookup(call, prompt).passages] == [i + j / 100 for j in range(10)]
        assert registry.lookup(call, prompt).higher_is_better is False


def test_a_call_without_passages_gets_none_and_says_why() -> None:
    registry, found = PassageRegistry(), texts(3)
    _, retriever, call = chain(registry)
    before = registry.lookup(call, "Rewrite the question.")
    registry.put(retriever, rows(found), query="q")
    after = registry.lookup(call, "Rewrite the question.")
    assert (before.how, before.passages, before.retrieved) == ("none", (), 0)
    assert (after.how, after.passages, after.retrieved) == ("none", (), 3)
    assert "none of them" in after.note


def test_calls_below_a_gate_get_nothing() -> None:
    registry, found = PassageRegistry(), texts(3)
    _, retriever, _ = chain(registry)
    registry.put(retriever, rows(found), query="q")
    registry.record("inner", retriever)
    registry.record("inner-call", "inner")
    got = registry.lookup("inner-call", found[0])
    assert (got.how, got.passages) == ("none", ())


def test_without_lineage_the_query_in_the_prompt_decides_between_retrievals() -> None:
    registry, found = PassageRegistry(), texts(4)
    registry.put("a", rows(found, [4.0, 3.0, 2.0, 1.0]), query="who built it")
    registry.put("b", rows(found, [0.4, 0.3, 0.2, 0.1]), query="who burnt it")
    for run in (None, "never seen"):
        got = registry.lookup(run, "\n".join(found) + "\nwho built it")
        assert (got.how, [p.score for p in got.passages]) == ("registry", [4.0, 3.0, 2.0, 1.0])


def test_without_lineage_or_query_the_retrieval_that_explains_most_wins_and_ties_lose_their_scores() -> None:
    registry, found = PassageRegistry(), texts(5)
    registry.put("b", rows(found[1:4], [0.6, 0.5, 0.4]), query="two")
    registry.put("a", rows(found[:3], [0.9, 0.8, 0.7]))
    best = registry.lookup(None, "\n".join(found[:3]))
    assert [p.score for p in best.passages] == [0.9, 0.8, 0.7]
    tied = registry.lookup(None, "\n".join(found[1:3]))
    assert [p.score for p in tied.passages] == [None, None]
    assert "several queries" in tied.note


def test_passages_of_a_question_that_is_not_asked_here_lose_scores_and_question() -> None:
    registry, found = PassageRegistry(), texts(3)
    registry.put("somebody else", rows(found, [0.9, 0.8, 0.7]), query="Who built the mill?")
    got = registry.lookup(None, "\n".join(found) + "\nWho burnt it down?")
    assert (got.how, got.query, [p.score for p in got.passages]) == ("registry", None, [None] * 3)
    assert "does not stand in the prompt" in got.note
    asked = registry.lookup(None, "\n".join(found) + "\nwho built\nthe mill?")
    assert (asked.query, [p.score for p in asked.passages]) == ("Who built the mill?", [0.9, 0.8, 0.7])


def test_a_conversation_is_about_its_last_question() -> None:
    registry, found = PassageRegistry(), texts(4)
    registry.put("a", rows(found[:2], [0.9, 0.8]), query="Who built it?")
    registry.put("b", rows(found[2:], [0.7, 0.6]), query="Who burnt it?")
    first, second = "\n".join(found[:2]) + "\nWho built it?", "\n".join(found[2:]) + "\nWho burnt it?"
    assert registry.lookup(None, f"{first}\nAnn Cole.\n{second}").query == "Who burnt it?"
    together = "\n".join(found) + "\nWho built it? Who burnt it?"
    assert registry.lookup(None, together).query == "Who built it? Who burnt it?"


@pytest.mark.parametrize("fused", [False, True])
def test_scores_of_several_searches_are_compared_only_by_who_ranks_by_them(fused: bool) -> None:
    registry, found = PassageRegistry(), texts(4)
    scores = [0.9, 0.5, 0.8, 0.4]
    _, outer, call = chain(registry)
    for i in range(2):
        registry.record(f"base {i}", outer, query=f"rewritten {i}", source="store")
        registry.put(f"base {i}", rows(found[2 * i : 2 * i + 2], scores[2 * i : 2 * i + 2]))
    order = [0, 2, 1, 3] if fused else [0, 1, 2, 3]
    registry.put(outer, rows([found[i] for i in order], [scores[i] for i in order]), query="q", source="store")
    got = registry.lookup(call, "\n".join(found) + "\nq")
    assert [p.score for p in got.passages] == (scores if fused else [None] * 4)
    assert ("several searches" in got.note) != fused and got.query == "q"


def test_passages_that_were_not_retrieved_together_lose_their_scores() -> None:
    registry, found = PassageRegistry(), texts(4)
    registry.put("a", rows(found[:2], [0.9, 0.8]), query="one")
    registry.put("b", rows(found[2:], [0.6, 0.5]), query="two")
    got = registry.lookup(None, "\n".join(found))
    assert [p.score for p in got.passages] == [None] * 4
    assert "not retrieved together" in got.note
    asked = registry.lookup(None, "\n".join(found) + "\none, two")
    assert [p.score for p in asked.passages] == [None] * 4
    assert "several searches" in asked.note and set(asked.query.split()) == {"one", "two"}
    alone = registry.lookup(None, "\n".join(found[2:]) + "\none, two")
    assert [p.score for p in alone.passages] == [0.6, 0.5]


def test_the_later_of_two_retrievals_with_the_same_query_counts() -> None:
    registry, found = PassageRegistry(), texts(3)
    registry.put("a", rows(found, [0.9, 0.8, 0.7]), query="one")
    registry.put("b", rows(found, [3.0, 2.0, 1.0]), query="one")
    assert [p.score for p in registry.lookup(None, "\n".join(found) + "\none").passages] == [3.0, 2.0, 1.0]


def test_a_reranker_overrides_scores_and_handing_on_without_scores_loses_none() -> None:
    registry, found = PassageRegistry(), texts(4)
    root, outer, call = chain(registry)
    registry.record("base", outer)
    registry.put("base", rows(found, [0.1, 0.2, 0.3, 0.4]), query="q", source="faiss")
    registry.put(outer, rows([found[2], found[0]], [9.0, 5.0]), query="q", source="reranker")
    registry.put(root, rows([found[2], found[0]]))
    got = registry.lookup(call, f"{found[2]}\n{found[0]}")
    assert [p.score for p in got.passages] == [9.0, 5.0]
    assert got.higher_is_better is True


def test_scores_of_different_sources_or_directions_are_withheld() -> None:
    registry, found = PassageRegistry(), texts(4)
    _, outer, call = chain(registry)
    for name, part, scores in (("bm25", found[:2], [9.0, 3.0]), ("faiss", found[2:], [0.2, 0.9])):
        registry.record(name, outer)
        registry.put(name, rows(part, scores), query="q", source=name)
    registry.put(outer, rows(found), query="q", source="ensemble")
    got = registry.lookup(call, "\n".join(found))
    assert [p.score for p in got.passages] == [None] * 4
    assert got.higher_is_better is None
    assert "different retrievers" in got.note
    one_side = registry.lookup(call, "\n".join(found[:2]))
    assert [p.score for p in one_side.passages] == [9.0, 3.0]


def test_white_space_truncation_and_reordering_are_survived() -> None:
    registry, found = PassageRegistry(), texts(3, words=60)
    spaced = [text.replace(" ", "\n  ", 7) for text in found]
    _, retriever, call = chain(registry)
    registry.put(retriever, rows(spaced, [0.3, 0.2, 0.1]), query="q")
    prompt = f"> {found[2]}\n\n{found[0][: len(found[0]) // 2]}\n\nq"
    for run in (call, None):
        assert [p.score for p in registry.lookup(run, prompt).passages] == [0.1, 0.3]


def test_a_text_inside_another_counts_once_and_duplicates_count_as_often_as_they_stand_there() -> None:
    registry = PassageRegistry()
    parent = texts(1)[0]
    child = " ".join(parent.split()[5:25])
    _, retriever, call = chain(registry)
    registry.put(retriever, rows([child, parent], [0.5, 0.4]), query="q")
    assert [p.text for p in registry.lookup(call, f"Context: {parent}").passages] == [parent]
    _, retriever, call = chain(registry, "d")
    registry.put(retriever, rows([child, child], [0.5, 0.4]), query="q")
    assert [p.score for p in registry.lookup(call, f"{child}\n\n{child}\n\n{child}").passages] == [0.5, 0.4]
    assert [p.score for p in registry.lookup(call, child).passages] == [0.5]


@pytest.mark.parametrize("bad", ["0.7", "high", float("nan"), float("inf"), None, object()])
def test_scores_of_any_type_stop_nothing(bad: object) -> None:
    registry, found = PassageRegistry(), texts(2)
    _, retriever, call = chain(registry)
    registry.put(retriever, rows(found, [bad, bad]), query="q")
    expected = 0.7 if bad == "0.7" else None
    assert [p.score for p in registry.lookup(call, "\n".join(found)).passages] == [expected, expected]


def test_short_texts_count_by_lineage_as_whole_words_and_never_by_chance() -> None:
    registry = PassageRegistry()
    _, retriever, call = chain(registry)
    registry.put(retriever, rows(["Paris", "a b c d e f"]), query="q")
    assert [p.text for p in registry.lookup(call, "Capital: Paris.").passages] == ["Paris"]
    assert registry.lookup(call, "Comparison").how == "none"
    assert registry.lookup(None, "Capital: Paris. a b c d e f").how == "none"


def test_texts_without_spaces_are_found_without_lineage() -> None:
    registry = PassageRegistry()
    text = "水車小屋は一八四二年に川のほとりに建てられた。"
    registry.put("a", rows([text], [0.5]), query="いつ")
    assert [p.score for p in registry.lookup(None, f"文脈：{text}いつ").passages] == [0.5]


def test_texts_without_spaces_that_are_retrieved_again_are_found_again() -> None:
    registry = PassageRegistry()
    found = [f"第{number}号水車小屋は一八四二年に川のほとりに建てられた。" for number in range(600)]
    for text in found:
        registry.put("a", rows([text], [0.5]), query="いつ")
    assert registry.lookup(None, found[-1]).how == "registry"
    assert registry.lookup(None, found[0]).how == "none"
    registry.put("b", rows(found[:2], [0.5, 0.4]), query="いつ")
    assert registry.lookup(None, found[0]).how == "registry"


def test_memory_stays_within_its_limits_and_recent_entries_survive() -> None:
    registry = PassageRegistry(max_runs=50, max_retrievals=30, max_texts=40, max_bytes=8_000)
    for i in range(400):
        _, retriever, call = chain(registry, str(i))
        found = texts(3, seed=i)
        registry.put(retriever, rows(found, [0.3, 0.2, 0.1]), query=f"q{i}")
        assert len(registry.lookup(call, "\n".join(found)).passages) == 3
        size = registry.size
        assert size["runs"] <= 50 and size["retrievals"] <= 30 and size["texts"] <= 40 and size["bytes"] <= 8_000
    assert registry.lookup(None, texts(3, seed=0)[0]).how == "none"
    assert registry.lookup(None, texts(3, seed=399)[0]).how == "registry"
    registry.clear()
    assert registry.size == {"runs": 0, "retrievals": 0, "texts": 0, "bytes": 0}


def test_threads_never_mix() -> None:
    registry, found = PassageRegistry(), texts(8)
    wrong: list[str] = []

    def work(worker: int) -> None:
        for turn in range(60):
            name = f"{worker}-{turn}"
            _, retriever, call = chain(registry, name)
            scores = [worker + turn / 1000 + j for j in range(8)]
            registry.put(retriever, rows(found, list(scores)), query=name)
            if [p.score for p in registry.lookup(call, "\n".join(found)).passages] != scores:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_handed_on_in_another_order_for_another_question() -> None:
    registry, found = PassageRegistry(), texts(4)
    root, retriever, call = chain(registry)
    registry.put(retriever, rows(found, [0.1, 0.2, 0.3, 0.4]), query="condensed question")
    shuffled = [found[i] for i in (3, 0, 2, 1)]
    handed = [(text, 0.1 * (found.index(text) + 1), None) for text in shuffled]
    handed = [(text, round(score, 1), id_) for text, score, id_ in handed]
    registry.put(root, handed, query="What did the user ask?", handed_on=True)
    for run in (call, None):
        captured = registry.lookup(run, "\n".join(shuffled) + "\nWhat did the user ask?")
        assert [p.score for p in captured.passages] == [0.4, 0.1, 0.3, 0.2]
        assert captured.higher_is_better is False and not captured.note


def test_what_a_run_was_recorded_with_goes_for_what_it_returns() -> None:
    registry, found = PassageRegistry(), texts(4)
    registry.record("root")
    for name, part in (("bm25", found[:2]), ("faiss", found[2:])):
        registry.record(name, "root", gate=True, query="asked of both", source=name)
        registry.put(name, rows(part, [0.9, 0.8]))
    registry.record("call", "root")
    assert "different retrievers" in registry.lookup("call", "\n".join(found)).note
    assert [p.score for p in registry.lookup(None, f"{found[0]}\nasked of both").passages] == [0.9]


@pytest.mark.parametrize(
    ("scores", "way"),
    [
        ([0.9, 0.7, 0.5, 0.2], True),
        ([0.1, 0.4, 0.5, 0.9], False),
        ([0.9, 0.7, 0.8, 0.2], None),  # a shuffled list of four looks so one time in two
        ([0.91, 0.9, 0.8, 0.7, 0.72, 0.6, 0.5, 0.4, 0.3, 0.2], True),
        ([0.1, 0.3, 0.5, 0.6, 0.4, 0.2], None),  # distances, put in the order best first, best last
        ([0.5, 0.9, 0.4, 0.7, 0.3, 0.8], None),
    ],
)
def test_only_scores_in_some_order_tell_which_way_up_they_are(scores: list[float], way: bool | None) -> None:
    registry, found = PassageRegistry(), texts(len(scores))
    _, retriever, call = chain(registry)
    registry.put(retriever, rows(found, list(scores)), query="q")
    got = registry.lookup(call, "\n".join(found))
    assert got.higher_is_better is way and [p.score for p in got.passages] == scores
    kept = [p.score for p in got.comparable().passages]
    assert kept == ([None] * len(scores) if way is None else scores)


def test_equal_scores_need_no_orientation() -> None:
    registry, found = PassageRegistry(), texts(3)
    _, retriever, call = chain(registry)
    registry.put(retriever, rows(found, [0.5] * 3), query="q")
    got = registry.lookup(call, "\n".join(found))
    assert got.higher_is_better is None and got.comparable() == got


def test_one_passage_for_each_of_several_questions_is_not_compared() -> None:
    registry, found = PassageRegistry(), texts(3)
    registry.record("root")
    registry.record("call", "root")
    for i, score in enumerate([0.2, 0.5, 0.9]):
        registry.record(f"retriever {i}", "root", gate=True, query=f"part {i}", source="store")
        registry.put(f"retriever {i}", rows([found[i]], [score]))
    got = registry.lookup("call", "\n".join(found))
    assert [p.score for p in got.passages] == [None] * 3 and got.higher_is_better is None
    assert "several searches" in got.note and got.query == "part 0 part 1 part 2"


def test_scores_in_no_order_are_not_compared() -> None:
    registry, found = PassageRegistry(), texts(3)
    _, retriever, call = chain(registry)
    registry.put(retriever, rows(found, [0.2, 0.9, 0.5]), query="q")
    got = registry.lookup(call, "\n".join(found))
    assert [p.score for p in got.passages] == [0.2, 0.9, 0.5] and got.higher_is_better is None
    assert [p.score for p in got.comparable().passages] == [None] * 3
    assert "which way up" in got.comparable().note


def test_many_retrievals_of_one_run_keep_their_scores_and_questions() -> None:
    registry, found = PassageRegistry(), texts(30)
    registry.record("root")
    for i in range(200):
        registry.record(f"retriever {i}", "root", gate=True, query=f"question {i}.", source="store")
        own = [found[(i + k) % 30] for k in range(4)]
        registry.put(f"retriever {i}", rows(own, [i + 0.9, i + 0.8, i + 0.7, i + 0.6]))
    for i in range(200):
        registry.record(f"call {i}", "root")
        own = [found[(i + k) % 30] for k in range(4)]
        got = registry.lookup(f"call {i}", "\n".join(own) + f"\nquestion {i}.")
        assert [p.score for p in got.passages] == [i + 0.9, i + 0.8, i + 0.7, i + 0.6]
        assert (got.query, got.note, got.how) == (f"question {i}.", "", "lineage")


def test_very_many_texts_of_one_run_are_found_by_their_words() -> None:
    registry = PassageRegistry()
    registry.record("root")
    for i in range(60):
        registry.record(f"retriever {i}", "root", gate=True, query=f"question {i}.", source="store")
        registry.put(
            f"retriever {i}", rows([f"Text {i} {k} of what the archive holds of it." for k in range(20)], [1.0] * 20)
        )
    registry.record("call", "root")
    own = [f"Text 7 {k} of what  the archive\nholds of it." for k in range(20)]
    got = registry.lookup("call", "\n".join(own) + "\nquestion 7.")
    assert len(got.passages) == 20 and got.query == "question 7." and got.retrieved == 1200


def test_doubt_about_scores_is_none_about_the_question() -> None:
    registry, found = PassageRegistry(), texts(4)
    registry.record("root")
    for name, own in (("a", found[:2]), ("b", found[2:])):
        registry.record(name, "root", gate=True, query="when?", source=name)
        registry.put(name, rows(own, [0.9, 0.8]))
    registry.record("call", "root")
    got = registry.lookup("call", "\n".join(found))
    assert "different retrievers" in got.note and got.query == "when?"
    assert [p.score for p in got.passages] == [None] * 4


@pytest.mark.parametrize("cut", [24, 30, 500])
def test_passages_that_were_cut_keep_scores_origin_and_question(cut: int) -> None:
    registry = PassageRegistry()
    found = [f"Passage {i} about the mill{' and more of it' * (i % 3)}." for i in range(6)]
    root, retriever, call = chain(registry)
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    registry.put(retriever, rows(found, scores), query="when?")
    registry.record("cutter", root, source="cutter")
    registry.put("cutter", rows([text[:cut] for text in found], scores))
    got = registry.lookup(call, "\n".join(text[:cut] for text in found))
    assert [p.score for p in got.passages] == scores
    assert (got.query, got.note) == ("when?", "")


def test_parts_without_scores_keep_their_question() -> None:
    registry, found = PassageRegistry(), texts(3)
    root, retriever, call = chain(registry)
    registry.put(retriever, rows(found, [None] * 3), query="when?")
    registry.record("splitter", root, source="splitter")
    parts = [part for text in found for part in (text[: len(text) // 2], text[len(text) // 2 :])]
    registry.put("splitter", rows(parts, [None] * 6))
    assert registry.lookup(call, "\n".join(parts)).query == "when?"
    registry.put("splitter", rows(["Something else altogether, of which nothing was retrieved."], [None]))
    assert registry.lookup(call, "Something else altogether, of which nothing was retrieved.").query is None


def test_what_a_run_was_given_counts_as_the_question_where_it_stands_in_the_prompt() -> None:
    registry, found = PassageRegistry(), texts(3)
    registry.record("root", asked="Where is the mill?")
    registry.record("node", "root", asked="When was it built?")
    registry.put("node", rows(found, [None] * 3))
    registry.record("call", "root")
    context = "\n".join(found)
    assert registry.lookup("call", f"{context}\nWhen was it built?").query == "When was it built?"
    assert registry.lookup("call", f"{context}\nWho built it?").query is None


def test_an_orientation_that_the_order_contradicts_is_not_believed() -> None:
    registry, found = PassageRegistry(), texts(3)
    for name, scores, way in (("a", [0.9, 0.8, 0.7], None), ("b", [0.1, 0.2, 0.3], False), ("c", [0.5] * 3, False)):
        _, retriever, call = chain(registry, name)
        registry.put(retriever, rows(found, list(scores)), query=name, higher_is_better=False)
        assert registry.lookup(call, "\n".join(found)).higher_is_better is way


def test_words_quoted_from_a_passage_are_no_passage() -> None:
    registry, found = PassageRegistry(), texts(2, words=60)
    _, retriever, call = chain(registry)
    registry.put(retriever, rows(found, [0.9, 0.8]), query="earlier")
    quotes = [" ".join(text.split()[10:22]) for text in found]
    prompt = f"earlier\nIt is known that {quotes[0]}, and also that {quotes[1]}.\nAnd then?"
    assert registry.lookup("a later turn", prompt).how == "none"
    assert len(registry.lookup(call, prompt).passages) == 2


def test_retrievals_evicted_during_a_look_up_are_passed_over() -> None:
    text = StoredText("A text that stood in the prompt a moment ago.")
    for prompt in (text.text, f"{text.text} q"):
        got = from_registry(prompt, {text: [0]}, [Retrieval("q", {})], 0)
        assert got.passages == ()


class _Vanishing(Retrieval):
    """Its hits are there once; then another thread has evicted it."""

    @property
    def hits(self) -> dict[StoredText, Hit]:  # type: ignore[override]
        found, self._held = self._held, {}
        return found

    @hits.setter
    def hits(self, hits: dict[StoredText, Hit]) -> None:
        self._held = hits


def test_a_retrieval_evicted_between_two_looks_at_it_stops_nothing() -> None:
    text = StoredText("A text that stood in the prompt a moment ago.")
    hit = Hit(Origin("store", "q", True))
    hit.scores, hit.ids = [0.5], [None]
    recent = [Retrieval("q", {text: hit}), _Vanishing("other", {text: hit})]
    assert [passage.score for passage in from_registry(f"{text.text} q", {text: [0]}, recent, 0).passages] == [0.5]


def test_scores_that_coincide_with_those_of_another_retriever_keep_their_own_orientation() -> None:
    registry, found = PassageRegistry(), texts(5)
    registry.record("root")
    registry.record("faiss", "root", query="q", source="faiss")
    registry.put("faiss", rows(found[:3], [0.0, 0.5, 1.0]), higher_is_better=False)
    registry.record("reranker", "root", source="reranker")
    registry.put("reranker", rows([found[1], found[2], found[0]], [1.0, 0.5, 0.0]), higher_is_better=True)
    got = registry.lookup("root", "\n".join([found[1], found[2], found[0]]))
    assert [p.score for p in got.passages] == [None] * 3 and "different retrievers" in got.note  # one agrees with both
    registry.put("reranker", rows(found[3:], [1.0, 0.5]))
    assert registry.lookup("root", "\n".join(found[3:])).higher_is_better is True


def test_searches_of_which_only_the_inputs_are_known_are_not_compared() -> None:
    registry, found = PassageRegistry(), texts(4)
    registry.record("root")
    for name, own, asked, scores in (
        ("a", found[:2], "what is alpha", [0.9, 0.8]),
        ("b", found[2:], "what is beta", [0.3, 0.2]),
    ):
        registry.record(name, "root", source="search", asked=asked)
        registry.put(name, rows(own, scores))
    got = registry.lookup("root", "\n".join(found) + "\nwhat is beta")
    assert [p.score for p in got.passages] == [None] * 4 and "several searches" in got.note


def test_what_an_ensemble_hands_on_keeps_the_origins_of_its_retrievers() -> None:
    """Also where these are no children of its run, as LangChain has it for retrievers that were given a name."""
    registry, found = PassageRegistry(), texts(4)
    registry.record("root")
    registry.record("ensemble", "root", query="q", source="ensemble")
    for name, own, scores in (("a", found[:2], [0.9, 0.8]), ("b", found[2:], [7.0, 5.0])):
        registry.record(name, "root", query="q", source=name)
        registry.put(name, rows(own, scores), higher_is_better=True)
    mixed = [found[0], found[2], found[1], found[3]]
    registry.put("ensemble", rows(mixed, [0.9, 7.0, 0.8, 5.0]), higher_is_better=True)
    got = registry.lookup("root", "\n".join(mixed))
    assert [p.score for p in got.passages] == [None] * 4 and "different retrievers" in got.note
