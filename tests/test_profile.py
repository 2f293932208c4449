"""Profiles: exact round trips, mismatches by name, published files, garbage, the Hub."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251 - to write the hostile file that must never be executed
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from focus_rag.alpha import FixedAlpha
from focus_rag.errors import InvalidInputError, ProfileError, ProfileMismatchError
from focus_rag.fingerprint import Fingerprint
from focus_rag.profile import MANIFEST, TENSORS, FocusProfile, HeadEntry
from tests.published_folder import HEAD_FEATURES, RANKING, published_folder
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

PUBLISHED = Path(os.environ.get("FOCUS_RAG_PUBLISHED", Path(__file__).parents[2] / "shared" / "published_directions"))
MODELS = {
    "meta-llama/Llama-3.2-3B-Instruct": (28, 24, 128),
    "Qwen/Qwen2.5-7B-Instruct": (28, 28, 128),
    "mistralai/Ministral-8B-Instruct-2410": (36, 32, 128),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def profile(model):
    base = tiny_profile(model, site="post_rope")
    return base.replace(
        fingerprint=Fingerprint.of(model, tiny_tokenizer(), model_id="owner/tiny"),
        policy=FixedAlpha(alpha=0.3),
        key_directions=torch.randn(4, 8),
        provenance={"made": "in a test", "nested": {"n": [1, 2.5, None]}},
        report={"exact_match": 0.5},
    )


def same(one, other):
    keys = (one.key_directions, other.key_directions)
    return (
        one._manifest == other._manifest
        and torch.equal(one.directions, other.directions)
        and (keys == (None, None) or torch.equal(*keys))
    )


def test_round_trip_is_exact(profile, model, tmp_path):
    assert same(FocusProfile.load(profile.save(tmp_path / "p")), profile)
    plain = tiny_profile(model, site="normed")
    plain.save(tmp_path / "p")
    assert same(FocusProfile.load(tmp_path / "p"), plain), "saving again replaces the profile"
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == sorted([MANIFEST, TENSORS])


def test_both_halves_can_be_read_by_whoever_may_read_new_files(profile, tmp_path):
    other = tmp_path / "other"
    other.write_text("")
    profile.save(tmp_path / "p")
    assert {(tmp_path / "p" / name).stat().st_mode for name in (MANIFEST, TENSORS)} == {other.stat().st_mode}


def test_tensors_are_its_own(profile, tmp_path):
    given = torch.ones_like(profile.directions)
    made = FocusProfile(profile.fingerprint, profile.heads, given, site=profile.site, key_directions=given)
    digest = made.digest
    given += 1
    assert made.directions.max() == made.key_directions.max() == 1
    made.save(tmp_path)
    assert FocusProfile.load(tmp_path).digest == digest


def test_a_save_that_fails_keeps_the_old_profile(profile, tmp_path, monkeypatch):
    profile.save(tmp_path)
    with pytest.raises(ProfileError, match="plain JSON"):
        profile.replace(provenance={"what": object()}).save(tmp_path)
    monkeypatch.setattr("focus_rag.profile.save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(ProfileError, match="disk full"):
        profile.replace(directions=profile.directions + 1).save(tmp_path)
    assert same(FocusProfile.load(tmp_path), profile)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([MANIFEST, TENSORS])


def test_a_file_where_a_folder_should_be(profile, tmp_path):
    (tmp_path / "p").write_text("x")
    with pytest.raises(ProfileError, match="is a file"):
        profile.save(tmp_path / "p")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_hidden_layers": 2}, "layers: profile 3, model 2"),
        ({"num_attention_heads": 8, "head_dim": 8}, "query_heads: profile 4, model 8"),
        ({"num_key_value_heads": 4}, "key_heads: profile 2, model 4"),
        ({"head_dim": 16}, "head_dim: profile 8, model 16"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope: profile"),
    ],
)
def test_every_mismatch_is_named(profile, change, named):
    with pytest.raises(ProfileMismatchError, match=named):
        profile.check(tiny_model("llama", **change))


def test_numbers_that_are_written_in_another_way_are_the_same_rope(profile):
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    known = profile.replace(fingerprint=Fingerprint.of(tiny_model("llama", rope_parameters=rope)))
    known.check(tiny_model("llama", rope_parameters={**rope, "rope_theta": 10000}))
    with pytest.raises(ProfileMismatchError, match="rope"):
        known.check(tiny_model("llama", rope_parameters={**rope, "rope_theta": 10001}))


def test_family_and_tokenizer_are_compared(profile, model):
    profile.check(model, tiny_tokenizer())
    with pytest.raises(ProfileMismatchError, match="family: profile llama, model qwen2"):
        profile.check(tiny_model("qwen2"))
    other = tiny_tokenizer()
    other.add_tokens(["word"])
    with pytest.raises(ProfileMismatchError, match="tokenizer"):
        profile.check(model, other)


def test_top_and_replace(profile):
    top = profile.top(2)
    assert top.heads == profile.heads[:2]
    assert torch.equal(top.directions, profile.directions[:2])
    assert torch.equal(top.key_directions, profile.key_directions[:2])
    assert len(profile.heads) == 4
    for k in (0, 5):
        with pytest.raises(InvalidInputError, match="between 1 and 4"):
            profile.top(k)


@pytest.mark.parametrize(
    ("heads", "directions", "message"),
    [
        ([(0, 0), (0, 0)], torch.zeros(2, 8), "twice"),
        ([(3, 0)], torch.zeros(1, 8), r"\(3, 0\).*outside"),
        ([(0, 4)], torch.zeros(1, 8), "outside"),
        ([(0, 0)], torch.zeros(1, 7), r"\(1, 8\); got \(1, 7\)"),
        ([(0, 0)], torch.full((1, 8), float("nan")), "NaN"),
        ([], torch.zeros(0, 8), "not valid"),
    ],
)
def test_what_is_no_profile(model, heads, directions, message):
    entries = [HeadEntry(layer=layer, head=head) for layer, head in heads]
    with pytest.raises(ProfileError, match=message):
        FocusProfile(Fingerprint.of(model), entries, directions, site="normed")


def broken(folder: Path, manifest=None, tensors=None):
    if manifest is not None:
        (folder / MANIFEST).write_bytes(manifest)
    if tensors is not None:
        (folder / TENSORS).write_bytes(tensors)


def edited(folder: Path, **changes) -> bytes:
    return json.dumps({**json.loads((folder / MANIFEST).read_text()), **changes}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: broken(f, manifest=b""),
        lambda f: broken(f, manifest=b"\xff\xfe\x00"),
        lambda f: broken(f, manifest=b"[1, 2]"),
        lambda f: broken(f, manifest=edited(f, schema_version=2)),
        lambda f: broken(f, manifest=edited(f, site="somewhere")),
        lambda f: broken(f, manifest=edited(f, surprise=1)),
        lambda f: broken(f, manifest=edited(f, passages_at=10**30)),
        lambda f: broken(f, manifest=edited(f, policy={"kind": "unheard of"})),
        lambda f: broken(f, tensors=b""),
        lambda f: broken(f, tensors=b"\x80\x04garbage" * 20),
        lambda f: broken(f, tensors=(f / TENSORS).read_bytes()[:-9]),
        lambda f: (f / TENSORS).unlink(),
        lambda f: (f / MANIFEST).unlink(),
    ],
    ids=range(13),
)
def test_damaged_profiles_are_refused(profile, tmp_path, damage):
    profile.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ProfileError):
        FocusProfile.load(tmp_path)


class Bomb:
    """A pickle that would write a file if anything unpickled it."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


class TestPublished:
    @pytest.mark.skipif(
        not PUBLISHED.is_dir(), reason=f"no published directions at {PUBLISHED}; set FOCUS_RAG_PUBLISHED"
    )
    @pytest.mark.parametrize("name", MODELS)
    def test_import(self, name, tmp_path):
        layers, heads, head_dim = MODELS[name]
        profile = FocusProfile.from_published(PUBLISHED, model=name)
        fingerprint = profile.fingerprint
        assert (fingerprint.layers, fingerprint.query_heads, fingerprint.head_dim) == (layers, heads, head_dim)
        assert profile.site == "post_rope"
        assert profile.directions.shape == profile.key_directions.shape == (20, head_dim)
        folder = name.replace("/", "_")
        ranking = json.loads(
            (PUBLISHED / "contextual_heads_scores_full_seq" / folder / "relevant_heads.json").read_text()
        )
        assert [[entry.layer, entry.head] for entry in profile.heads] == ranking[:20]
        for place in (0, 7, 19):
            layer, head = ranking[place]
            file = PUBLISHED / "head_features" / folder / "direction_relevant" / f"head_q_directions_{layer}.pth"
            raw = torch.load(file, map_location="cpu", weights_only=True)
            assert torch.equal(profile.directions[place], raw[head].float())
        assert same(FocusProfile.load(profile.save(tmp_path)), profile)
        assert len(FocusProfile.from_published(PUBLISHED, model=name, top_k=3).heads) == 3

    @pytest.fixture
    def folder(self, tmp_path):
        return published_folder(tmp_path)

    def test_a_small_one(self, folder):
        profile = FocusProfile.from_published(folder, model="a/b", top_k=2)
        assert [(entry.layer, entry.head) for entry in profile.heads] == [(1, 0), (0, 1)]

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            (RANKING, b"{"),
            (RANKING, b"[[1]]"),
            (RANKING, b"[[1e400, 1]]"),
            (RANKING, b"[[0.9, 1]]"),
            (RANKING, b'["01"]'),
            (RANKING, b"[[9, 0], [0, 1]]"),
            (RANKING, b"7"),
            (f"{HEAD_FEATURES}/head_q_directions_1.pth", b"garbage"),
            (f"{HEAD_FEATURES}/head_k_directions_0.pth", b""),
        ],
    )
    def test_garbage(self, folder, file, content):
        (folder / file).write_bytes(content)
        with pytest.raises(ProfileError, match=Path(file).name):
            FocusProfile.from_published(folder, model="a/b", top_k=2)

    @pytest.mark.parametrize("thing", [{"a": 1}, torch.randn(3, 4), torch.randn(4)], ids=["dict", "shape", "vector"])
    def test_tensors_that_do_not_fit(self, folder, thing):
        torch.save(thing, folder / f"{HEAD_FEATURES}/head_q_directions_1.pth")
        with pytest.raises(ProfileError):
            FocusProfile.from_published(folder, model="a/b", top_k=2)

    def test_a_missing_layer_an_unknown_model_too_many_heads(self, folder):
        with pytest.raises(ProfileError, match="between 1 and 2"):
            FocusProfile.from_published(folder, model="a/b", top_k=3)
        with pytest.raises(ProfileError, match="found: a_b"):
            FocusProfile.from_published(folder, model="c/d")
        with pytest.raises(ProfileError, match="found: none"):
            FocusProfile.from_published(folder / "nowhere", model="c/d")
        (folder / f"{HEAD_FEATURES}/head_q_directions_0.pth").unlink()
        with pytest.raises(ProfileError, match=r"layers 0, 1, 2, ...; found layers \[1\]"):
            FocusProfile.from_published(folder, model="a/b", top_k=2)

    def test_a_pickle_is_never_executed(self, folder, tmp_path):
        target = tmp_path / "executed"
        file = folder / f"{HEAD_FEATURES}/head_q_directions_0.pth"
        for write in (lambda: torch.save(Bomb(target), file), lambda: file.write_bytes(pickle.dumps(Bomb(target)))):
            write()
            with pytest.raises(ProfileError, match="safely"):
                FocusProfile.from_published(folder, model="a/b", top_k=2)
            assert not target.exists()


class TestHub:
    def test_push_uploads_the_two_files(self, profile, monkeypatch):
        calls = {}

        class Api:
            def __init__(self, token=None):
                calls["token"] = token

            def create_repo(self, repo_id, **kwargs):
                calls["create"] = (repo_id, kwargs)

            def upload_folder(self, *, repo_id, folder_path, allow_patterns):
                calls["uploaded"] = FocusProfile.load(folder_path)
                calls["patterns"] = allow_patterns
                return f"https://hub/{repo_id}"

        monkeypatch.setattr("huggingface_hub.HfApi", Api)
        assert profile.push_to_hub("owner/name", private=True, token="secret") == "https://hub/owner/name"
        assert same(calls["uploaded"], profile)
        assert calls["create"] == ("owner/name", {"private": True, "exist_ok": True})
        assert calls["token"] == "secret"
        assert sorted(calls["patterns"]) == sorted([MANIFEST, TENSORS])

    def test_load_pulls_a_snapshot(self, profile, monkeypatch, tmp_path):
        profile.save(tmp_path)
        asked = []

        def snapshot(repo_id, *, revision, allow_patterns):
            asked.append((repo_id, revision, sorted(allow_patterns)))
            return str(tmp_path)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
        assert same(FocusProfile.load("owner/name", revision="v1"), profile)
        assert asked == [("owner/name", "v1", sorted([MANIFEST, TENSORS]))]

    @pytest.mark.parametrize("source", ["nowhere", "a/b/c", "", "../x", "owner/na me"])
    def test_what_is_neither_a_folder_nor_an_id(self, source, monkeypatch):
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
        with pytest.raises(ProfileError):
            FocusProfile.load(source)

    @pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), ConnectionError("no route")])
    def test_a_hub_that_does_not_answer(self, error, monkeypatch):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        with pytest.raises(ProfileError, match="owner/name"):
            FocusProfile.load("owner/name")

    def test_an_id_the_hub_library_refuses(self):
        with pytest.raises(ProfileError, match="--"):
            FocusProfile.load("owner/--name")
