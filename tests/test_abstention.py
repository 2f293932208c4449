import pytest

from focus_rag.abstention import abstains


@pytest.mark.parametrize(
    "answer", ["not stated", "Not stated.", "", "The passages do not contain this.", "I don't know"]
)
def test_abstentions(answer):
    assert abstains(answer)


@pytest.mark.parametrize("answer", ["Anna", "stated in 1841", "It is known as the Mill"])
def test_answers_are_no_abstentions(answer):
    assert not abstains(answer)
