import pytest

from focus_rag.abstention import abstains


@pytest.mark.parametrize(
    "answer",
    [
        "not stated",
        "Not stated.",
        "",
        "The passages do not contain this.",
        "I don't know",
        "I don\u2019t know.",
        "The passages do not mention when it was built.",
        "The text doesn't contain this information.",
        "The provided passages do not provide this.",
        "It isn't stated in the passages.",
        "No information.",
        "Unknown",
        "The documents do not specify it.",
        "There is no mention of it.",
        "I cannot find the answer.",
        "It cannot be answered from this.",
        "The author is unknown.",
        "This is unanswerable.",
        "It does not say: not given",
    ],
)
def test_abstentions(answer):
    assert abstains(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Anna",
        "stated in 1841",
        "It is known as the Mill",
        "The album is Unknown Pleasures.",
        "He did not sign it.",
        "He was shot by an unknown gunman in 1841.",
        "The text is by Jo Reed.",
        "No, it was not built there.",
    ],
)
def test_answers_are_no_abstentions(answer):
    assert not abstains(answer)
