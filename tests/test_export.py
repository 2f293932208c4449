"""Baked checkpoints: what is read back answers as the steered model does, and what cannot be baked is refused with
nothing left behind.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

from focus_rag import FocusGenerator, FocusProfile, Passage, focus
from focus_rag.cli import main
from focus_rag.embedded import demo_folder, embedded_model_folder
from focus_rag.errors import InvalidInputError, ProfileError, ProfileMismatchError, UnsupportedModelError
from focus_rag.examples import Example
from focus_rag.export import EXPORT_FILE, export_model
from focus_rag.fitting.fit import fit_profile
from focus_rag.score_split import ScoreSplit
from tests.fit_command import fit_command
from tests.tiny_models import COMMON, FAMILIES, REFUSE_SDPA, tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

VOCABULARY = 300
ALPHA = 0.5
IDS = torch.randint(3, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(3))
NEVER_BIASED = ("phi3", "mixtral", "ministral")
BAKED_FAMILIES = [family for family in [*FAMILIES, "gpt_oss", "gemma3"] if family not in NEVER_BIASED]
REFUSED_MODELS = {
    **{family: {} for family in NEVER_BIASED},
    "mistral": {"sliding_window": 8},
    "starcoder2": {"use_bias": False},
}
GEMMA3 = {
    "text_config": {**COMMON, **FAMILIES["gemma3_text"], "vocab_size": VOCABULARY},
    "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
    "mm_tokens_per_image": 4, "image_token_index": 290, "boi_token_index": 291, "eoi_token_index": 292,
}  # fmt: skip
"""A language model within a multimodal one: its settings are in a part of the configuration."""


def model_of(family="llama", **overrides):
    """A tiny model of the tokenizer's size whose biases, where it has any, are not zero."""
    settings = {**GEMMA3, **overrides} if family == "gemma3" else {"vocab_size": VOCABULARY, **overrides}
    model = tiny_model(family, attention="eager" if family in REFUSE_SDPA else "sdpa", **settings)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.bias"):
                parameter.normal_(0.0, 0.3)
    return model


def profile_of(model, site="projection", **options):
    return tiny_profile(model, site=site, **options)


def read_back(folder, like):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=like.config._attn_implementation).eval()


@torch.no_grad()
def logits_of(model):
    return model(input_ids=IDS, use_cache=False).logits[0].float()


def written_by(model):
    return model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False)[0].tolist()


def size(difference):
    return difference.abs().max().item()


def same(logits, expected):
    """Equal up to 1e-5 of the largest logit, as in `test_families`."""
    return size(logits - expected) <= 1e-5 * max(1.0, size(expected))


@pytest.mark.parametrize("family", BAKED_FAMILIES)
def test_what_is_read_back_is_the_steered_model(family, tmp_path):
    model = model_of(family)
    profile = profile_of(model)
    bare = logits_of(model)
    with focus(model, profile, ALPHA):
        focused, text = logits_of(model), written_by(model)
    report = export_model(model, tiny_tokenizer(), profile, tmp_path / "baked", alpha=ALPHA)
    loaded = read_back(report.folder, model)
    assert same(logits_of(loaded), focused)
    assert written_by(loaded) == text
    assert size(focused - bare) > 1e-2
    assert report.error < 1e-4 < 1e-2 < report.moved
    assert (
        report.architecture
        == type(loaded).__name__
        == ("LlamaForCausalLM" if family == "mistral" else type(model).__name__)
    )


@pytest.mark.parametrize("family", REFUSED_MODELS)
def test_models_without_a_query_bias_are_refused_with_the_families_that_have_one(family, tmp_path):
    model = model_of(family, **REFUSED_MODELS[family])
    with pytest.raises(UnsupportedModelError, match=f"'{family}'") as refusal:
        export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=ALPHA)
    named = str(refusal.value).split("Families that can: ")[1].rstrip(".").split(", ")
    assert named == sorted(BAKED_FAMILIES), "exactly those are tested above"
    assert list(tmp_path.iterdir()) == []


def test_queries_normed_after_rope_are_refused(tmp_path):
    model = model_of("llama4_text")
    with pytest.raises(UnsupportedModelError, match="no projection shows the queries alone"):
        export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=ALPHA)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_precision(dtype, tmp_path):
    model_of().save_pretrained(tmp_path / "bare")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "bare", dtype=dtype).eval()
    profile = profile_of(model)
    report = export_model(model, tiny_tokenizer(), profile, tmp_path / "baked", alpha=ALPHA)
    loaded = read_back(report.folder, model)
    bare = logits_of(model)
    with focus(model, profile, ALPHA):
        focused = logits_of(model)
    assert {one.dtype for one in loaded.parameters()} == {dtype} and report.dtype == str(dtype).removeprefix("torch.")
    assert (logits_of(loaded) - focused).norm() < 0.1 * (focused - bare).norm()


def test_a_shift_below_rounding_is_refused(tmp_path):
    model_of().save_pretrained(tmp_path / "bare")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "bare", dtype=torch.bfloat16).eval()
    with pytest.raises(UnsupportedModelError, match="hardly more than rounding"):
        export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=1e-6)
    assert [one.name for one in tmp_path.iterdir()] == ["bare"]


def test_a_model_cast_after_loading_is_refused(tmp_path):
    model = model_of().to(torch.bfloat16)
    with pytest.raises(InvalidInputError, match=r"cast after it was loaded.*dtype="):
        export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=ALPHA)


def test_a_shift_that_overflows_is_refused(tmp_path):
    model_of().save_pretrained(tmp_path / "bare")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "bare", dtype=torch.float16).eval()
    with pytest.raises(InvalidInputError, match="cannot hold"):
        export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=1e6)


def test_normed_is_baked_where_there_is_no_norm(tmp_path):
    model = model_of()
    profile = profile_of(model, "normed")
    with focus(model, profile, -ALPHA):
        focused = logits_of(model)
    report = export_model(model, tiny_tokenizer(), profile, tmp_path / "baked", alpha=-ALPHA)
    assert same(logits_of(read_back(report.folder, model)), focused)


@pytest.mark.parametrize(
    ("family", "site", "says"), [("qwen3", "normed", "norms its queries"), ("llama", "post_rope", "after RoPE")]
)
def test_directions_that_no_bias_can_be_are_refused(family, site, says, tmp_path):
    model = model_of(family)
    with pytest.raises(ProfileError, match=rf"{says}.*sites=\('projection',\)"):
        export_model(model, tiny_tokenizer(), profile_of(model, site), tmp_path / "baked", alpha=ALPHA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("alpha", [0, 0.0, float("nan"), float("inf"), "auto", None, True, [0.2]])
def test_alphas_that_cannot_be_baked_are_refused(alpha, tmp_path):
    model = model_of()
    with pytest.raises(InvalidInputError, match="alpha"):
        export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=alpha)
    assert list(tmp_path.iterdir()) == []


def test_a_profile_of_another_model_is_refused(tmp_path):
    with pytest.raises(ProfileMismatchError, match="layers"):
        export_model(
            model_of(), tiny_tokenizer(), profile_of(model_of(num_hidden_layers=2)), tmp_path / "baked", alpha=ALPHA
        )


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    model = tiny_model(vocab_size=96)
    profile = profile_of(model)
    with pytest.raises(InvalidInputError, match="tokenizer"):
        export_model(model, tiny_tokenizer(), profile, tmp_path / "baked", alpha=ALPHA)
    fingerprint = profile.fingerprint.model_copy(update={"tokenizer": "0" * 16})
    with pytest.raises(ProfileMismatchError, match="tokenizer"):
        export_model(model, tiny_tokenizer(), profile.replace(fingerprint=fingerprint), tmp_path / "baked", alpha=ALPHA)


def test_an_adapter_is_to_be_merged_first(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = model_of()
    profile = profile_of(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    for one in (adapted, model):  # the wrapper, and the model with the adapter's layers inside
        with pytest.raises(InvalidInputError, match="merge_and_unload"):
            export_model(one, tiny_tokenizer(), profile, tmp_path / "baked", alpha=ALPHA)
    merged = adapted.merge_and_unload()
    with focus(merged, profile, ALPHA):
        focused = logits_of(merged)
    report = export_model(merged, tiny_tokenizer(), profile, tmp_path / "baked", alpha=ALPHA)
    assert same(logits_of(read_back(report.folder, merged)), focused)


def test_models_that_are_no_plain_checkpoint_are_refused(tmp_path):
    def refused(model, says):
        with pytest.raises(InvalidInputError, match=says):
            export_model(model, tiny_tokenizer(), profile, tmp_path / "baked", alpha=ALPHA)

    profile = profile_of(model_of())
    quantised = model_of()
    quantised.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    refused(quantised, "quantised")
    whole_numbers = model_of()
    weight = whole_numbers.lm_head.weight
    whole_numbers.lm_head.weight = torch.nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    refused(whole_numbers, "quantised")
    offloaded = model_of()
    offloaded.lm_head.to("meta")
    refused(offloaded, "spread over cpu, meta")
    refused(torch.nn.Sequential(model_of()), "Sequential")


def test_a_model_that_is_no_causal_lm_is_refused(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(model_of().config).eval()
    with pytest.raises(
        UnsupportedModelError, match=r"LlamaForSequenceClassification in more than those: lm_head.weight, score.weight"
    ):
        export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=ALPHA)
    assert list(tmp_path.iterdir()) == []


def test_only_an_empty_folder_is_written_to(tmp_path):
    model = model_of()
    folder = tmp_path / "baked"
    folder.mkdir()
    (folder / "precious").write_text("kept")
    for place in (folder, folder / "precious"):
        with pytest.raises(InvalidInputError, match="nothing is overwritten"):
            export_model(model, tiny_tokenizer(), profile_of(model), place, alpha=ALPHA)
    assert [one.name for one in tmp_path.rglob("*")] == ["baked", "precious"]
    (folder / "precious").unlink()
    export_model(model, tiny_tokenizer(), profile_of(model), folder, alpha=ALPHA)
    assert (folder / EXPORT_FILE).is_file() and [one.name for one in tmp_path.iterdir()] == ["baked"]


def test_a_place_that_cannot_be_written_to_is_said(tmp_path):
    model = model_of()
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "file" / "baked", alpha=ALPHA)


def test_another_intervention_on_the_model_is_found_out(tmp_path):
    """Its hook is no weight, so the baked model lacks what it does."""
    model = model_of()
    model.model.layers[0].mlp.register_forward_hook(lambda _module, _inputs, output: 1.1 * output)
    with pytest.raises(UnsupportedModelError, match="does not compute what the steered model does"):
        export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=ALPHA)
    assert list(tmp_path.iterdir()) == []


def lost_bias(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, one in tensors.items() if name.endswith("q_proj.bias") and one.any())
    save_file(
        {**tensors, name: torch.zeros_like(tensors[name])}, folder / "model.safetensors", metadata={"format": "pt"}
    )


def lost_weights(folder):
    (folder / "model.safetensors").unlink()


def other_frequencies(folder):
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] *= 2
    (folder / "config.json").write_text(json.dumps(config))


def other_activation(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lost_bias, "q_proj.bias' of LlamaForCausalLM is not read back"),
        (lost_weights, "cannot be loaded again"),
        (other_frequencies, "inv_freq' of LlamaForCausalLM is not read back"),
        (other_activation, "as it is read back does not compute"),
    ],
)
def test_what_is_written_otherwise_than_it_was_is_found_out(damage, says, tmp_path, monkeypatch):
    save = LlamaForCausalLM.save_pretrained

    def save_wrongly(self, folder):
        save(self, folder)
        damage(folder)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save_wrongly)
    model = model_of()
    with pytest.raises(UnsupportedModelError, match=says):
        export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=ALPHA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_the_model_is_left_as_it_was(family, tmp_path):
    model = model_of(family, attention_dropout=0.3).train()
    model.model.layers[1].eval()

    def state():
        modules = [
            (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in model.named_modules()
        ]
        return (
            modules,
            model.config.to_dict(),
            model.generation_config.to_dict(),
            [(name, one.data_ptr()) for name, one in model.named_parameters()],
        )

    before, tensors = state(), {name: one.clone() for name, one in model.state_dict().items()}
    export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=ALPHA)
    assert state() == before
    assert all(torch.equal(one, tensors[name]) for name, one in model.state_dict().items())


def test_a_model_that_is_being_steered_is_baked_as_if_it_were_not(tmp_path):
    model = model_of()
    profile = profile_of(model)
    with focus(model, profile, ALPHA):
        focused = logits_of(model)
    with focus(model, profile, 3.0):
        otherwise = logits_of(model)
        report = export_model(model, tiny_tokenizer(), profile, tmp_path / "baked", alpha=ALPHA)
        assert torch.equal(logits_of(model), otherwise)
    assert same(logits_of(read_back(report.folder, model)), focused)


def test_generation_settings_that_transformers_refuses_to_save_are_kept(tmp_path):
    model = model_of()
    model.generation_config.temperature = 0.6  # and no sampling, as some published models have it
    report = export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=ALPHA)
    assert read_back(report.folder, model).generation_config.temperature == 0.6


def test_the_folder_says_what_was_baked_and_how_to_check_an_engine(tmp_path):
    model = model_of()
    profile = profile_of(model).replace(split=ScoreSplit(tau=0.1))
    report = export_model(model, tiny_tokenizer(), profile, tmp_path / "baked", alpha=ALPHA)
    record = json.loads((report.folder / EXPORT_FILE).read_text())
    assert (record["alpha"], record["site"], record["dtype"]) == (ALPHA, "projection", "float32")
    assert record["profile"] == profile.digest and [tuple(head) for head in record["heads"]] == profile.head_pairs
    assert "split" in report.warnings[0] and record["warnings"] == list(report.warnings)
    loaded = read_back(report.folder, model)
    assert loaded.config.attention_bias is True
    with torch.no_grad():
        last = loaded(input_ids=torch.tensor([record["probe"]["token_ids"]])).logits[0, -1]
    top = last.topk(20)
    assert [one["token_id"] for one in record["probe"]["next_tokens"]] == top.indices.tolist()
    assert [one["logit"] for one in record["probe"]["next_tokens"]] == pytest.approx(top.values.tolist(), abs=1e-5)
    assert AutoTokenizer.from_pretrained(report.folder).get_vocab() == tiny_tokenizer().get_vocab()


def test_weights_are_shared_until_they_are_written(tmp_path, monkeypatch):
    seen = []
    save = LlamaForCausalLM.save_pretrained
    monkeypatch.setattr(
        LlamaForCausalLM, "save_pretrained", lambda self, folder: (seen.append(self), save(self, folder))
    )
    model = model_of(tie_word_embeddings=True)
    export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=ALPHA)
    (baked,) = seen
    places = {name: one.data_ptr() for name, one in baked.named_parameters()}
    assert all(places[name] == one.data_ptr() for name, one in model.named_parameters())
    assert baked.lm_head.weight is baked.model.embed_tokens.weight


def test_the_embedded_reader_answers_from_a_baked_folder(tmp_path):
    reader = FocusGenerator.from_pretrained(embedded_model_folder(), dtype=torch.float32)
    profile = profile_of(reader.model, heads=12)
    folder = export_model(reader.model, reader.tokenizer, profile, tmp_path / "baked", alpha=1.0).folder
    steered = FocusGenerator(reader.model, reader.tokenizer, profile, alpha=1.0)
    baked = FocusGenerator.from_pretrained(folder)
    row = json.loads((demo_folder() / "questions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    passages = [
        Passage((demo_folder() / row["document"]).read_text(encoding="utf-8")),
        Passage("The mill was built in 1882."),
    ]
    texts = [one.answer(row["question"], passages, max_new_tokens=16).text for one in (steered, baked, reader)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_baked_checkpoint_takes_no_profile_which_would_act_on_top(family, tmp_path):
    model = model_of(family)
    profile, tokenizer = profile_of(model), tiny_tokenizer()
    folder = export_model(model, tokenizer, profile, tmp_path / "baked", alpha=ALPHA).folder
    baked = read_back(folder, model)
    refused = pytest.raises(
        ProfileMismatchError, match=f"baked in .alpha 0.5, profile {profile.digest}.*on top of them"
    )
    with refused, focus(baked, profile, 0.1):
        pytest.fail("attached")
    with refused:
        FocusGenerator(baked, tokenizer, profile)
    if family == "gemma3":
        with refused, focus(baked.model.language_model, profile, 0.1):
            pytest.fail("attached")
    with refused:
        fit_profile(
            baked,
            tokenizer,
            [Example(f"Which, {n}?", ("one",), (Passage("one"), Passage("two")), frozenset({0})) for n in range(30)],
            tmp_path / "fit",
        )
    assert not (tmp_path / "fit").exists()
    with refused:
        export_model(baked, tokenizer, profile, tmp_path / "again", alpha=ALPHA)
    assert FocusGenerator(baked, tokenizer).answer("Which?", [Passage("one")], max_new_tokens=2).alpha == 0
    with focus(model, profile, 0.1):  # the original is as it was
        assert not same(logits_of(model), logits_of(baked))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A model with its tokenizer, and profiles of it, on disk."""
    folder = tmp_path_factory.mktemp("export")
    model = model_of()
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for site in ("projection", "post_rope"):
        profile_of(model, site).save(folder / site)
    profile_of(model).replace(split=ScoreSplit(tau=0.1)).save(folder / "split")
    return folder


def test_the_command_writes_a_checkpoint(saved, tmp_path, capsys):
    out = tmp_path / "new" / "baked"
    export = ["export", "--model", str(saved / "model"), "--alpha", "0.5", "--out", str(out)]
    assert main([*export, "--profile", str(saved / "projection")]) == 0
    said = capsys.readouterr()
    assert f"{out}: LlamaForCausalLM (float32) with 4 heads shifted at alpha 0.5" in said.out and said.err == ""
    with focus(model := read_back(saved / "model", model_of()), FocusProfile.load(saved / "projection"), 0.5):
        focused = logits_of(model)
    assert same(logits_of(read_back(out, model)), focused)
    shutil.rmtree(out)
    assert main([*export, "--profile", str(saved / "split"), "--json"]) == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert record["folder"] == str(out) and record["heads"] == 4 and record["error"] < 1e-5 < record["moved"]
    assert "split" in record["warnings"][0] and said.err.startswith("warning: ")
    shutil.rmtree(out)
    assert main([*export, "--profile", str(saved / "projection"), "--dtype", "bfloat16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"--alpha": "0"}, "nothing to bake"),
        ({"--alpha": "auto"}, "finite number, got 'auto'"),
        ({"--alpha": "loud"}, "--alpha"),
        ({"--profile": "{saved}/post_rope"}, "after RoPE"),
        ({"--profile": "{saved}/model"}, "not a profile"),
        ({"--out": "{saved}/model"}, "nothing is overwritten"),
        ({"--model": "{saved}/missing"}, "neither a folder nor a Hub id"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(arguments, says, saved, tmp_path, capsys):
    given = {
        "--model": "{saved}/model",
        "--profile": "{saved}/projection",
        "--alpha": "0.5",
        "--out": str(tmp_path / "baked"),
        **arguments,
    }
    assert main(["export", *(part.format(saved=saved) for pair in given.items() for part in pair)]) == 2
    out = capsys.readouterr()
    (line,) = out.err.strip().splitlines()
    assert line.startswith("focus-rag: ") and says in line and out.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("family", "warned"), [("llama", False), ("phi3", True)])
def test_a_fit_for_export_says_at_once_where_nothing_can_be_baked(family, warned, tmp_path, capsys, monkeypatch):
    def fitted(*_, **__):
        raise InvalidInputError("fitted")

    monkeypatch.setattr("focus_rag.fitting.fit.fit_profile", fitted)
    model_of(family).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [
        {
            "question": f"Which mill, {n}?",
            "answers": ["one"],
            "passages": [{"text": "one", "is_gold": True}, {"text": "two", "is_gold": False}],
        }
        for n in range(24)
    ]
    command = fit_command(tmp_path, rows, "--site")
    assert main([*command, "projection"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert ("not be exported" in said) is warned and "fitted" in said
    assert main([*command, "post_rope"]) == 2
    assert "not be exported" not in " ".join(capsys.readouterr().err.split())


def test_what_is_in_vain_is_said_before_the_model_is_loaded(saved, tmp_path, capsys):
    arguments = [
        "export",
        "--model",
        "nowhere",
        "--profile",
        str(saved / "post_rope"),
        "--alpha",
        "0.2",
        "--out",
        str(tmp_path / "baked"),
    ]
    assert main(arguments) == 2
    assert "after RoPE" in capsys.readouterr().err


def test_what_a_configuration_holds_beside_its_family_does_no_harm(tmp_path):
    model = model_of("mistral", sliding_window=None)
    model.config.attention_bias = False  # a setting of other families that stands in some published files
    model.generation_config = None
    report = export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=ALPHA)
    assert report.architecture == "LlamaForCausalLM" and read_back(tmp_path / "baked", model).config.attention_bias


def test_settings_that_transformers_does_not_write_are_told(tmp_path, monkeypatch):
    model = model_of()
    monkeypatch.setattr(
        LlamaForCausalLM,
        "save_pretrained",
        lambda *_, **__: (_ for _ in ()).throw(ValueError("top_p without sampling")),
    )
    with pytest.raises(InvalidInputError, match="refuses to write the checkpoint: top_p without sampling"):
        export_model(model, tiny_tokenizer(), profile_of(model), tmp_path / "baked", alpha=ALPHA)
    assert list(tmp_path.iterdir()) == []
