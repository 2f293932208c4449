"""Directions after RoPE, turned to where the passages stand: a prompt that is moved is answered as it was."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, REFUSE_SDPA, tiny_model, tiny_profile
from tiny_tokenizer import tiny_tokenizer
from torch import Tensor

from focus_rag.attention import turning
from focus_rag.attention.steering import FocusHandle, focus
from focus_rag.attention.turning import Turning
from focus_rag.errors import AttachError, InvalidInputError, UnsupportedModelError
from focus_rag.fitting.recorded_heads import Recording
from focus_rag.fitting.teacher_forcing import TeacherForced
from focus_rag.generator import FocusGenerator
from focus_rag.passages import Passage
from focus_rag.profile import FocusProfile

AT, MOVED = 5, 40
ROTARY = [*FAMILIES, "gpt_oss"]
"""Families whose queries can be read before and after RoPE; llama4's cannot."""


def model_of(family: str) -> Any:
    return tiny_model(family, attention="eager" if family in REFUSE_SDPA else "sdpa")


def profile_of(model: Any, **changes: Any) -> FocusProfile:
    return tiny_profile(model, site="post_rope").replace(passages_at=AT, **changes)


def logits(model: Any, profile: FocusProfile, ids: Tensor, moved: Any = 0, **options: Any) -> Tensor:
    """Focused at 0.7 with every row's positions moved up, `(batch, tokens, vocabulary)`."""
    positions = torch.arange(ids.shape[1])[None] + torch.as_tensor(moved).reshape(-1, 1)
    with torch.inference_mode(), focus(model, profile, 0.7, **options):
        return model(input_ids=ids, position_ids=positions.expand(ids.shape), use_cache=False).logits


def tokens(rows: int = 1) -> Tensor:
    return torch.randint(3, 90, (rows, 24), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", ROTARY)
def test_a_moved_prompt_is_focused_as_it_was(family: str) -> None:
    """Without the turn it is not: the published shift acts on absolute positions."""
    model = model_of(family)
    profile, ids = profile_of(model), tokens()
    as_fitted = logits(model, profile, ids, passages_at=AT)
    turned = logits(model, profile, ids, MOVED, passages_at=AT + MOVED)
    torch.testing.assert_close(turned, as_fitted, atol=2e-4, rtol=1e-4)
    assert (logits(model, profile, ids, MOVED) - as_fitted).abs().max() > 0.05


def test_passages_that_stand_where_they_did_leave_the_published_shift_bit_for_bit() -> None:
    model = tiny_model()
    profile, ids = profile_of(model), tokens()
    assert torch.equal(logits(model, profile, ids, passages_at=AT), logits(model, profile, ids))


@pytest.mark.parametrize("site", ["normed", "projection"])
def test_before_rope_and_where_it_is_not_known_nothing_is_turned(site: Any) -> None:
    model, ids = tiny_model(), tokens()
    for profile in (tiny_profile(model, site=site).replace(passages_at=AT), tiny_profile(model, site="post_rope")):
        assert torch.equal(logits(model, profile, ids, passages_at=AT + 9), logits(model, profile, ids))


def test_each_row_is_turned_by_its_own_move() -> None:
    model = tiny_model()
    profile, ids, moves = profile_of(model), tokens(3), [0, 12, MOVED]
    together = logits(model, profile, ids, moves, passages_at=[AT + move for move in moves])
    for row, move in enumerate(moves):
        alone = logits(model, profile, ids[row : row + 1], move, passages_at=AT + move)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "smollm3"])
def test_all_layers_at_once_are_turned_as_one_by_one(family: str) -> None:
    """Layers that rotate at another pace, or not at all, among them."""
    model = model_of(family)
    layers = list(range(model.config.num_hidden_layers))[::-1]
    turning, moves = Turning.of(model), torch.tensor([4, 0, -9])
    vectors = torch.randn(len(layers), 3, 2, model.config.head_dim if hasattr(model.config, "head_dim") else 8)
    together = turning.all_turned(layers, vectors, moves[:, None])
    for layer, own, found in zip(layers, vectors, together, strict=True):
        torch.testing.assert_close(found, turning.turned(layer, own, moves[:, None]))


def test_backwards_and_forth_is_where_it_was_and_lengths_stay() -> None:
    model = tiny_model()
    turning, vectors = Turning.of(model), torch.randn(4, 8)
    there = turning.turned(1, vectors, torch.tensor(-7))
    torch.testing.assert_close(there.norm(dim=-1), vectors.norm(dim=-1))
    torch.testing.assert_close(turning.turned(1, there, torch.tensor(7)), vectors, atol=1e-5, rtol=1e-5)
    assert Turning.of(model) is turning


def test_long_moves_are_those_of_the_models_own_positions() -> None:
    """The angle of one position, many times over, against cosines that the model makes for position 3,000."""
    model = tiny_model(max_position_embeddings=4096)
    vector, rotary = torch.randn(1, 1, 1, 8), model.model.rotary_emb
    cos, sin = rotary(vector, torch.tensor([[3000]]))
    half = torch.cat([-vector[..., 4:], vector[..., :4]], dim=-1)
    turned = Turning.of(model).turned(0, vector[0, 0], torch.tensor([3000]))
    torch.testing.assert_close(turned, (vector * cos + half * sin)[0, 0], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_angles_are_as_exact_whatever_the_weights_are_kept_in(dtype: torch.dtype) -> None:
    model = tiny_model(max_position_embeddings=4096).to(dtype)
    frequencies = model.model.rotary_emb.inv_freq.float()
    angles = Turning.of(model)._layers[0].angles
    torch.testing.assert_close(angles, torch.cat([frequencies, frequencies]), atol=5e-6, rtol=0)


def test_a_models_rotation_is_found_while_another_thread_runs_it() -> None:
    model = tiny_model()
    profile, ids = profile_of(model), tokens()
    expected = logits(model, profile, ids, MOVED, passages_at=AT + MOVED)
    stop = threading.Event()

    def run() -> None:
        with torch.inference_mode():
            while not stop.is_set():
                model(input_ids=torch.randint(3, 90, (1, 40)))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(15):
            turning._KNOWN.clear()
            assert torch.equal(logits(model, profile, ids, MOVED, passages_at=AT + MOVED), expected)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("wrong", [-1, 1.5, True, [], [[1, 2]], "first", [3, -2]])
def test_what_is_no_position_is_refused(wrong: Any) -> None:
    model = tiny_model()
    with pytest.raises(InvalidInputError, match="passages_at"), focus(model, profile_of(model), 0.5, passages_at=wrong):
        pass


def test_positions_for_other_rows_than_there_are_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(AttachError, match="passages_at for 2 requests"):
        logits(model, profile_of(model), tokens(3), passages_at=[AT, AT + 1])


def test_a_model_whose_rotation_is_not_known_says_so_and_is_left_as_it_was() -> None:
    model = tiny_model("llama4_text")
    profile = profile_of(model)
    before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(UnsupportedModelError), focus(model, profile, 0.5, passages_at=AT + 1):
        pass
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == before
    assert logits(model, profile, tokens(), passages_at=AT).isfinite().all(), "as the published code does, it goes"


def test_a_model_that_takes_no_positions_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def takes_none(model: Any, position: int = 0) -> None:
        raise TypeError("forward() got an unexpected keyword argument 'position_ids'")

    monkeypatch.setattr("focus_rag.attention.turning.run_one_token", takes_none)
    with pytest.raises(UnsupportedModelError, match=r"llama.*takes no positions"):
        Turning.of(tiny_model())


def test_set_passages_at_while_attached() -> None:
    model = tiny_model()
    profile, ids = profile_of(model), tokens()
    expected = logits(model, profile, ids, MOVED, passages_at=AT + MOVED)
    handle = FocusHandle(model, profile, 0.7).attach()
    try:
        handle.set_passages_at(AT + MOVED)
        positions = torch.arange(24)[None] + MOVED
        with torch.inference_mode():
            assert torch.equal(model(input_ids=ids, position_ids=positions, use_cache=False).logits, expected)
    finally:
        handle.remove()


def test_a_recording_moves_every_example_to_one_place() -> None:
    """What is recorded of a prompt in which the passages begin later is what the model itself would make of it further
    up: the same logits, and queries and keys as of those positions.
    """
    model = tiny_model()
    example = TeacherForced(tuple(tokens()[0].tolist()), 20, (19, 20), ((8, 12),), ((3, 7), (13, 18)))
    assert example.passages_at == 3
    heads = [(0, 1), (2, 3)]
    plain, moved = Recording(model, heads, "post_rope"), Recording(model, heads, "post_rope", passages_at=3 + MOVED)
    for recording in (plain, moved):
        recording.add(example)
    before, after = plain.examples[0], moved.examples[0]
    assert (after.queries - before.queries).abs().max() > 0.1
    key = plain.key_of
    torch.testing.assert_close(
        after.queries @ after.keys[key].transpose(1, 2),
        before.queries @ before.keys[key].transpose(1, 2),
        atol=1e-3,
        rtol=1e-3,
    )
    turning = Turning.of(model)
    torch.testing.assert_close(after.queries[1], turning.turned(2, before.queries[1], torch.tensor(MOVED)))


def test_a_generator_turns_by_where_the_passages_of_each_request_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(vocab_size=262, max_position_embeddings=1024)
    told: list[Any] = []
    real = focus

    def watched(*given: Any, passages_at: Any = None, **options: Any) -> Any:
        told.append(passages_at)
        return real(*given, passages_at=passages_at, **options)

    monkeypatch.setattr("focus_rag.batch_generation.focus", watched)
    passages = [Passage("The mill is old."), Passage("The barn is new.")]
    question = "How old is the mill?"
    generator = FocusGenerator(model, tiny_tokenizer(), profile_of(model), alpha=0.5)
    generator.answer(question, passages, max_new_tokens=1)
    generator.answer(f"{'Please. ' * 10}{question}", passages, max_new_tokens=1)
    generator.answer(question, max_new_tokens=1)
    (short,), (long,), (none,) = told
    assert long - short == len("Please. ") * 10 and none == AT
    unknown = FocusGenerator(model, tiny_tokenizer(), tiny_profile(model, site="post_rope"), alpha=0.5)
    unknown.answer(question, passages, max_new_tokens=1)
    assert told[-1] is None
