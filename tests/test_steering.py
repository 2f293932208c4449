"""focus(): alphas, threads, decoding strategies, compiled graphs, bad input."""

from __future__ import annotations

import contextvars
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ContinuousBatchingConfig, GenerationConfig

from focus_rag.attention.steering import FocusHandle, FocusNotAppliedWarning, alpha_rows, focus
from focus_rag.errors import AttachError, InvalidInputError, ProfileMismatchError, UnsupportedModelError
from tests.tiny_models import tiny_model, tiny_profile

IDS = torch.randint(3, 96, (1, 24), generator=torch.Generator().manual_seed(5))
SITES = ("post_rope", "normed")
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3")


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def tokens(model, ids=IDS, **kwargs):
    with torch.no_grad():
        return model.generate(ids, attention_mask=torch.ones_like(ids), **{**GREEDY, **kwargs})[
            :, ids.shape[1] :
        ].tolist()


@pytest.mark.parametrize("site", SITES)
def test_sixteen_threads_with_their_own_alphas(model, site):
    """Half of the threads focus, each with its own alpha and its own rows; bare ones run beside them, untouched."""
    profile = tiny_profile(model, site=site, size=1.0)
    alphas = [0.0, 0.2, -0.3, 0.5, 0.0, 0.9, -0.7, 0.35, 0.0, 1.3, 0.15, -0.2, 0.0, 0.6, 0.8, -1.0]
    prompts = [torch.roll(IDS, shift, dims=1) for shift in range(len(alphas))]
    start = threading.Barrier(len(alphas))

    def work(index):
        start.wait()
        results = []
        for _ in range(3):
            if alphas[index]:
                with focus(model, profile, alphas[index]):
                    results.append(logits(model, prompts[index]))
            else:
                results.append(logits(model, prompts[index]))
        return results

    expected = []
    for index, alpha in enumerate(alphas):
        with focus(model, profile, alpha):
            expected.append(logits(model, prompts[index]))
    with ThreadPoolExecutor(len(alphas)) as pool:
        results = list(pool.map(work, range(len(alphas))))
    for index, repetitions in enumerate(results):
        for result in repetitions:
            assert torch.equal(result, expected[index]), (index, alphas[index])
    assert len({tuple(one[0, -1].tolist()) for one in expected}) == len(alphas)


@pytest.mark.parametrize("site", SITES)
def test_threads_that_check_a_new_model_at_the_same_time(site):
    """The self-check of one thread does not read the queries of another thread's forward pass."""
    model = tiny_model("gemma3_text")
    profile = tiny_profile(model, site=site)
    start = threading.Barrier(8)

    def work(index):
        start.wait()
        if index % 2:
            return [logits(model) for _ in range(5)][-1]
        with focus(model, profile, 0.5):
            return logits(model)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    bare = logits(model)
    with focus(model, profile, 0.5):
        focused = logits(model)
    assert all(torch.equal(result, bare if index % 2 else focused) for index, result in enumerate(results))


@pytest.mark.parametrize("site", SITES)
def test_another_thread_is_focused_only_if_asked(model, site):
    profile = tiny_profile(model, site=site)
    bare = logits(model)
    with focus(model, profile, 0.5):
        focused = logits(model)
    with ThreadPoolExecutor(1) as pool:
        with focus(model, profile, 0.5, across_threads=True):
            assert torch.equal(pool.submit(logits, model).result(), focused)
        with pytest.warns(FocusNotAppliedWarning, match="across_threads"), focus(model, profile, 0.5):
            assert torch.equal(pool.submit(logits, model).result(), bare)
        with focus(model, profile, 0.5):
            context = contextvars.copy_context()
            assert torch.equal(pool.submit(context.run, logits, model).result(), focused)
        assert torch.equal(pool.submit(context.run, logits, model).result(), bare), (
            "the copied context outlives the focus"
        )


def test_no_warning_where_the_model_ran_or_alpha_is_zero_or_the_body_failed(model):
    profile = tiny_profile(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FocusNotAppliedWarning)
        with focus(model, profile, 0.5):
            logits(model)
        with focus(model, profile, 0.0):
            pass
        with pytest.raises(KeyError), focus(model, profile, 0.5):
            raise KeyError


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("across_threads", [False, True])
def test_another_model_is_untouched(model, site, across_threads):
    """Same class, same sizes, same interface, run while the first one is focused."""
    other = tiny_model("qwen3", seed=8)
    bare = logits(other)
    with focus(model, tiny_profile(model, site=site), 0.5, across_threads=across_threads):
        logits(model)
        assert torch.equal(logits(other), bare)


def test_two_focuses_add_up_and_come_apart(model):
    one, two = tiny_profile(model, site="post_rope"), tiny_profile(model, site="post_rope", seed=4, heads=3)
    with focus(model, one, 0.5), focus(model, two, -0.3):
        both = logits(model)
    with focus(model, two, -0.3), focus(model, one, 0.5):
        assert torch.allclose(logits(model), both, atol=1e-5)
    with focus(model, one, 0.5):
        alone = logits(model)
        with focus(model, two, -0.3):
            assert torch.allclose(logits(model), both, atol=1e-5)
        assert torch.equal(logits(model), alone)


@pytest.mark.parametrize("site", SITES)
def test_alpha_changed_while_attached(model, site):
    profile = tiny_profile(model, site=site)
    with focus(model, profile, 0.5):
        expected = logits(model)
    with focus(model, profile, 0.1) as handle:
        logits(model)
        handle.set_alpha(0.5)
        assert torch.equal(logits(model), expected)
        handle.set_alpha([0.5, 0.0])
        assert handle.alpha.tolist() == [0.5, 0.0]
        assert torch.allclose(logits(model, IDS.repeat(2, 1))[0], expected[0], atol=1e-5)


def test_top_k_steers_the_best_heads_only(model):
    profile = tiny_profile(model, heads=6)
    with focus(model, profile, 0.5, top_k=2):
        two = logits(model)
    with focus(model, profile.top(2), 0.5):
        assert torch.equal(logits(model), two)
    with focus(model, profile, 0.5):
        assert not torch.allclose(logits(model), two, atol=1e-3)


@pytest.mark.parametrize("site", SITES)
def test_half_precision_follows_the_model(site):
    model = tiny_model("llama").to(torch.bfloat16)
    profile = tiny_profile(model, site=site, size=1.0)
    with focus(model, profile, 0.5):
        half = logits(model)
    assert half.dtype == torch.bfloat16
    full = model.float()
    bare = logits(full)
    with focus(full, profile, 0.5):
        exact = logits(full)
    assert (half.float() - exact).norm() < 0.2 * (exact - bare).norm()


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("strategy", ["prompt lookup", "assistant"])
def test_assisted_decoding_says_what_greedy_says(site, strategy):
    model = tiny_model("llama")
    profile = tiny_profile(model, site=site)
    repetitive = IDS[:, :6].repeat(1, 4)
    extra = (
        {"prompt_lookup_num_tokens": 3}
        if strategy == "prompt lookup"
        else {"assistant_model": tiny_model("llama", seed=4)}
    )
    bare = tokens(model, repetitive)
    with focus(model, profile, 0.6):
        greedy = tokens(model, repetitive)
        assert tokens(model, repetitive, **extra) == greedy
    assert greedy != bare


class TestContinuousBatching:
    """`generate_batch` runs the model in a thread of its own and packs requests into one row."""

    ASKED = (IDS[0, :9].tolist(), IDS[0, 4:20].tolist())

    def generated(self, model):
        config = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
        small = ContinuousBatchingConfig(num_blocks=4, page_size=32, max_batch_tokens=64)
        results = model.generate_batch(list(self.ASKED), generation_config=config, continuous_batching_config=small)
        return [results[name].generated_tokens for name in sorted(results, key=lambda name: int(name.split("_")[-1]))]

    @pytest.mark.parametrize("site", SITES)
    def test_one_alpha_for_all(self, site):
        model = tiny_model("llama")
        profile = tiny_profile(model, site=site)
        bare = [tokens(model, torch.tensor([ids]), max_new_tokens=5, min_new_tokens=5)[0] for ids in self.ASKED]
        assert self.generated(model) == bare
        with focus(model, profile, 0.6):
            expected = [tokens(model, torch.tensor([ids]), max_new_tokens=5, min_new_tokens=5)[0] for ids in self.ASKED]
        with focus(model, profile, 0.6, across_threads=True):
            assert self.generated(model) == expected
        assert expected != bare


def test_sampling_with_several_return_sequences_per_request(model):
    profile = tiny_profile(model)
    kwargs = {"do_sample": True, "num_return_sequences": 3, "temperature": 0.01}
    with focus(model, profile, [0.6, 0.0]):
        together = tokens(model, IDS.repeat(2, 1), **kwargs)
    with focus(model, profile, 0.6):
        focused = tokens(model)[0]
    assert together == [focused] * 3 + [tokens(model)[0]] * 3


class TestCompiled:
    """What works under torch.compile, and what is refused."""

    def setup_method(self):
        torch._dynamo.reset()

    def test_after_rope_one_set_of_graphs_serves_every_alpha(self):
        from torch._dynamo.testing import CompileCounter

        model = tiny_model("llama", num_hidden_layers=2)
        profile = tiny_profile(model, site="post_rope")
        expected = {}
        for alpha in (0.0, 0.3, -0.6, 0.9):
            with focus(model, profile, alpha):
                expected[alpha] = logits(model)
        counter = CompileCounter()
        compiled = torch.compile(model, backend=counter)
        graphs = []
        for alpha in (0.0, 0.3, -0.6, 0.0, 0.9, 0.3):
            with focus(model, profile, alpha):
                assert torch.allclose(logits(compiled), expected[alpha], atol=1e-5)
            graphs.append(counter.frame_count)
        assert graphs[1] > 0
        assert graphs[3:] == [graphs[3]] * 3, "no new graph for a new alpha"

    @pytest.mark.parametrize("site", ["normed", "projection"])
    def test_before_rope_is_refused_because_compiled_graphs_skip_hooks(self, site):
        model = tiny_model("qwen3")
        profile = tiny_profile(model, site=site)
        compiled = torch.compile(model, backend="eager")
        with pytest.raises(UnsupportedModelError, match="skip_nnmodule_hook_guards"), focus(compiled, profile, 0.5):
            pass
        model.compile(backend="eager")
        with pytest.raises(UnsupportedModelError, match="compiled"), focus(model, profile, 0.5):
            pass

    @pytest.mark.parametrize("part", ["model", "layer", "attention"])
    def test_what_stands_in_the_place_of_a_forward_is_compiled_too(self, part):
        model = tiny_model("llama")
        layer = model.model.layers[1]
        compiled = {"model": model, "layer": layer, "attention": layer.self_attn}[part]
        compiled.forward = torch.compile(compiled.forward, backend="eager")
        with pytest.raises(UnsupportedModelError, match="part of it"), focus(model, tiny_profile(model), 0.5):
            pass

    def test_a_forward_that_is_kept_from_compiling_is_none(self):
        model = tiny_model("llama")
        profile, bare = tiny_profile(model), logits(model)
        model.forward = torch.compiler.disable(model.forward)
        with focus(model, profile, 0.5):
            assert not torch.allclose(logits(model), bare, atol=1e-3)

    @torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)
    def test_before_rope_works_where_graphs_notice_hooks(self):
        model = tiny_model("qwen3", num_hidden_layers=1)
        profile = tiny_profile(model, site="normed")
        plain = tiny_model("qwen3", num_hidden_layers=1)
        compiled = torch.compile(model, backend="eager")
        for alpha in (0.0, 0.5, -0.4, 0.0, 0.5):
            with focus(plain, profile, alpha):
                expected = logits(plain)
            with focus(compiled, profile, alpha):
                assert torch.allclose(logits(compiled), expected, atol=1e-5)

    @pytest.mark.parametrize("other_is_focused", [False, True])
    def test_another_model_compiled_whole_stays_whole(self, other_is_focused):
        model, other = (tiny_model("llama", num_hidden_layers=1, seed=seed) for seed in (0, 5))
        compiled = torch.compile(other, backend="eager", fullgraph=True)
        bare = logits(other)
        with focus(model, tiny_profile(model, site="post_rope"), 0.5):
            logits(model)
            if not other_is_focused:
                assert torch.allclose(logits(compiled), bare, atol=1e-6)
        assert torch.allclose(logits(compiled), bare, atol=1e-6)


class TestBadInput:
    @pytest.mark.parametrize(
        "alpha", ["much", None, float("nan"), float("inf"), [0.1, float("nan")], [], [[0.1, 0.2]], {"a": 1}, torch.zeros(2, 2), object()]
    )  # fmt: skip
    def test_alpha(self, model, alpha):
        with pytest.raises(InvalidInputError, match="alpha"), focus(model, tiny_profile(model), alpha):
            pass

    @given(st.one_of(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(-(10**6), 10**6)))
    def test_any_finite_number_is_an_alpha(self, alpha):
        assert alpha_rows(alpha).tolist() == [pytest.approx(alpha, rel=1e-6)]

    @given(st.recursive(st.one_of(st.none(), st.text(), st.floats(), st.booleans()), st.lists, max_leaves=5))
    @settings(max_examples=60)
    def test_anything_else_is_refused_or_finite_and_flat(self, alpha):
        try:
            rows = alpha_rows(alpha)
        except InvalidInputError:
            return
        assert rows.dim() == 1
        assert len(rows) > 0
        assert torch.isfinite(rows).all()

    @pytest.mark.parametrize("site", SITES)
    def test_rows_that_cannot_be_assigned(self, model, site):
        with (
            pytest.raises(AttachError, match="3 rows met alpha for 2 requests"),
            focus(model, tiny_profile(model, site=site), [0.1, 0.2]),
        ):
            logits(model, IDS.repeat(3, 1))

    def test_a_profile_of_another_model(self, model):
        other = tiny_profile(tiny_model("qwen3", num_hidden_layers=2))
        with pytest.raises(ProfileMismatchError, match="layers: profile 2, model 3"), focus(model, other, 0.5):
            pass

    def test_top_k_out_of_range(self, model):
        for k in (0, 5, -1, 1.5):
            with (
                pytest.raises(InvalidInputError, match="between 1 and 4"),
                focus(model, tiny_profile(model), 0.5, top_k=k),
            ):
                pass

    def test_attaching_twice(self, model):
        handle = FocusHandle(model, tiny_profile(model), 0.5).attach()
        try:
            with pytest.raises(AttachError, match="attached already"):
                handle.attach()
        finally:
            handle.remove()
        handle.attach().remove()


@pytest.mark.parametrize("site", SITES)
def test_directions_that_are_trained_get_a_gradient_in_every_pass(model, site):
    profile = tiny_profile(model, site=site)
    ones = torch.ones_like(profile.directions).requires_grad_()
    with focus(model, profile, 1.0) as handle:
        handle.set_directions(ones)
        with torch.no_grad():
            model(IDS, use_cache=False)
        for _ in range(2):
            (gradient,) = torch.autograd.grad(model(IDS, use_cache=False).logits.square().sum(), ones)
            assert gradient.abs().max() > 0
