"""transformers' models under attn_implementation="polyhead": the same numbers and texts, and what is told loudly."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.errors import CheckpointError, UnsupportedError
from polyhead.hf import Loaded, adopt, check, locate, register
from tests.hf.tiny import MODELS, SHAPE, fill, tiny
from tests.tolerances import assert_close

transformers = pytest.importorskip("transformers", reason="the models are transformers'")

PROMPT, NEW = 9, 8


@pytest.fixture(autouse=True)
def registered() -> None:
    """Let each test begin with the name registered."""
    register()


def prompts() -> dict[str, Tensor]:
    """Return three prompts of unlike lengths, padded at the left."""
    numbers = torch.randint(61, (3, PROMPT), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(numbers)
    mask[1, :4] = mask[2, :1] = 0
    return {"input_ids": numbers, "attention_mask": mask}


def pair(name: str, **fields: Any) -> tuple[Any, Any]:
    """Return a tiny model twice: with eager attention, and with ours."""
    theirs, ours = tiny(name, **fields), tiny(name, **fields)
    ours.set_attn_implementation("polyhead")
    check(ours)
    return theirs, ours


def generated(model: Any, **asked: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(**{**prompts(), "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **asked})


# --- what register() does


def test_importing_the_bridge_imports_and_registers_nothing() -> None:
    code = "import sys, polyhead.hf; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_registering_again_changes_no_output() -> None:
    _, model = pair("llama")
    first = model(**prompts()).logits
    register()
    assert torch.equal(model(**prompts()).logits, first)


# --- what generate() finds

ASKED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampled": {"do_sample": True, "num_return_sequences": 2, "top_k": 5},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "static beams": {"cache_implementation": "static", "num_beams": 2},
    "chunks": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2", "deepseek-v2"])
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_generation_finds_the_same_tokens(name: str, asked: dict[str, Any]) -> None:
    theirs, ours = pair(name)
    assert torch.equal(generated(ours, **asked), generated(theirs, **asked))


def test_assisted_decoding_takes_tokens_back() -> None:
    theirs, ours = pair("mistral")
    asked = {key: value[:1] for key, value in prompts().items()}
    plain = generated(theirs, **asked)
    assert torch.equal(generated(ours, **asked, prompt_lookup_num_tokens=2), plain)


# --- numbers

NAMES = [name for name, (model_type, _) in MODELS.items() if model_type not in ("bloom", "falcon")]


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_a_padded_batch_are_the_same(name: str) -> None:
    theirs, ours = pair(name)
    real = prompts()["attention_mask"].bool()
    assert_close(ours(**prompts()).logits[real], theirs(**prompts()).logits[real], torch.float32)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_gradients_are_the_same(name: str, checkpointing: bool) -> None:
    numbers, padding = prompts()["input_ids"], prompts()["attention_mask"].flip(1)  # so that every query sees a key
    gradients = []
    for model in pair(name):
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        labels = numbers.masked_fill(padding == 0, -100)
        model(numbers, attention_mask=padding, labels=labels).loss.backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert_close(gradients[1][key], gradient, torch.float32, what=key)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_packed_sequences_do_not_see_one_another(name: str) -> None:
    theirs, ours = pair(name)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 1, 0, 1, 2, 3, 4, 5, 6]])
    packed = {"input_ids": prompts()["input_ids"][:2], "position_ids": positions, "use_cache": False}
    found = ours(**packed).logits
    assert_close(found, theirs(**packed).logits, torch.float32)
    alone = ours(packed["input_ids"][:1, 5:]).logits
    assert_close(found[:1, 5:], alone, torch.float32)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])  # gpt2's layers do not hand the wish on
def test_weights_are_returned_where_they_are_asked_for(name: str) -> None:
    given = prompts()["input_ids"]
    theirs, ours = (model(given, output_attentions=True).attentions for model in pair(name))
    assert len(ours) == len(theirs) == SHAPE["num_hidden_layers"]
    for found, expected in zip(ours, theirs, strict=True):
        assert_close(found, expected, torch.float32)


ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("AutoModel", "bert", {"num_attention_heads": 4}),
    "bart": ("AutoModel", "bart", {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1}),
    "modernbert": ("AutoModel", "modernbert", {"num_attention_heads": 4, "local_attention": 4}),
    "bidirectional gemma3": (
        "AutoModel",
        "gemma3_text",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "sliding_window": 4,
            "use_bidirectional_attention": True,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_are_the_same(name: str) -> None:
    kind, model_type, fields = ENCODERS[name]
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    config = transformers.AutoConfig.for_model(model_type, **SHAPE | heads | fields | {"pad_token_id": 0})
    given, states = prompts() | {"attention_mask": prompts()["attention_mask"].flip(1)}, []
    for implementation in ("eager", "polyhead"):
        model = getattr(transformers, kind).from_config(config, attn_implementation=implementation).eval()
        fill(model)
        more = {"decoder_input_ids": given["input_ids"][:, :4]} if model_type == "bart" else {}
        hidden = model(**given, **more).last_hidden_state
        states.append(hidden if more else hidden[given["attention_mask"].bool()])
    check(model)
    assert_close(states[1], states[0], torch.float32)


def test_an_encoder_without_a_mask_sees_all() -> None:
    config = transformers.AutoConfig.for_model(
        "vit", **SHAPE | {"num_attention_heads": 4, "image_size": 8, "patch_size": 2}
    )
    images, states = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), []
    for implementation in ("eager", "polyhead"):
        model = transformers.AutoModel.from_config(config, attn_implementation=implementation).eval()
        fill(model)
        states.append(model(images).last_hidden_state)
    assert_close(states[1], states[0], torch.float32)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_model_goes_on_after_each_attention() -> None:
    theirs, ours = pair("mistral")
    real = prompts()["attention_mask"].bool()
    torch._dynamo.reset()
    try:
        found = torch.compile(ours, backend="eager")(**prompts()).logits[real]
    finally:
        torch._dynamo.reset()
    assert_close(found, theirs(**prompts()).logits[real], torch.float32)


# --- what is told


def test_a_mask_for_each_pair_is_refused() -> None:
    _, model = pair("llama")
    with pytest.raises(UnsupportedError, match="LlamaAttention passes an attention_mask"):
        model(prompts()["input_ids"], attention_mask=torch.zeros(3, 1, PROMPT, PROMPT))


def test_a_bias_for_each_pair_is_refused() -> None:
    fields = {"vocab_size": 61, "d_model": 24, "d_kv": 4, "num_heads": 3, "d_ff": 8, "num_layers": 1}
    model = transformers.AutoModel.from_config(
        transformers.AutoConfig.for_model("t5", **fields), attn_implementation="polyhead"
    )
    numbers = prompts()["input_ids"]
    with pytest.raises(UnsupportedError, match="T5Attention passes position_bias"):
        model(input_ids=numbers, decoder_input_ids=numbers)


def bypassing(model_type: str, **fields: Any) -> Any:
    config = transformers.AutoConfig.for_model(model_type, **fields)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="polyhead").eval()


BLOOM = {"vocab_size": 61, "hidden_size": 24, "n_layer": 1, "n_head": 3}
XLNET = {"vocab_size": 61, "d_model": 24, "n_layer": 1, "n_head": 3, "d_inner": 8}


def test_a_model_that_attends_by_itself_stumbles_over_the_mask() -> None:
    with pytest.raises(UnsupportedError, match="the model computes with its attention mask"):
        bypassing("bloom", **BLOOM)(**prompts())


@pytest.mark.parametrize(
    ("model_type", "fields", "named"),
    [("bloom", BLOOM, "BloomModel .* none of BloomAttention"), ("xlnet", XLNET, "none of XLNetRelativeAttention")],
)
def test_a_model_that_attends_by_itself_is_found_out(model_type: str, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        check(bypassing(model_type, **fields))


def test_a_part_that_attends_by_itself_is_found_out() -> None:
    fields = {"vocab_size": 61, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
    config = transformers.AutoConfig.for_model("bigbird_pegasus", **fields)
    model = transformers.AutoModel.from_config(config, attn_implementation="polyhead")
    with pytest.raises(UnsupportedError, match="BigBirdPegasusEncoder computes by itself"):
        check(model)


def test_a_model_without_attention_is_found_out() -> None:
    with pytest.raises(UnsupportedError, match="nothing in it looks up"):
        check(bypassing("mamba", vocab_size=61, hidden_size=8, num_hidden_layers=1, state_size=2))


def test_a_model_with_another_attention_is_found_out() -> None:
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM names the attention 'eager'"):
        check(tiny("llama"))


def test_an_adopted_model_is_no_registered_one() -> None:
    with pytest.raises(UnsupportedError, match="names the attention 'polyhead_adopted'"):
        check(adopt(tiny("llama")))


def test_only_models_of_transformers_are_checked() -> None:
    with pytest.raises(UnsupportedError, match="a Linear is no model of transformers"):
        check(torch.nn.Linear(1, 1))


# --- SmolLM2-135M

TEXTS = [
    "The cat sat on the mat because",
    "Once upon a time, in a village at the foot of a mountain, there lived an old woman who",
    "2 + 2 =",
    "The three laws of thermodynamics are",
]


@pytest.mark.model
def test_smollm2_reads_a_text_as_it_does_by_itself(smollm2: Loaded) -> None:
    given = smollm2.tokenizer(TEXTS[1], return_tensors="pt")
    expected, before = smollm2.model(**given).logits, smollm2.model.config._attn_implementation
    smollm2.model.set_attn_implementation("polyhead")
    try:
        found = smollm2.model(**given).logits
    finally:
        smollm2.model.set_attn_implementation(before)
    assert (found - expected).abs().max() < 1e-3


@pytest.fixture(scope="module")
def smollm2_with_head() -> tuple[Any, Any]:
    """Return the model with its head, and its tokenizer."""
    try:
        path = locate("smollm2")
    except CheckpointError as error:
        pytest.skip(str(error))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), tokenizer


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, "static"], ids=["dynamic", "static"])
@pytest.mark.parametrize(("texts", "new"), [(TEXTS[:1], 200), (TEXTS, 40)], ids=["200 tokens", "a padded batch"])
def test_smollm2_writes_what_it_does_by_itself(
    smollm2_with_head: tuple[Any, Any], texts: list[str], new: int, cache: str | None
) -> None:
    model, tokenizer = smollm2_with_head
    given, written = tokenizer(texts, return_tensors="pt", padding=True), {}
    for implementation in ("eager", "sdpa", "polyhead"):
        model.set_attn_implementation(implementation)
        written[implementation] = model.generate(
            **given,
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=False,
            cache_implementation=cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
    ours = written.pop("polyhead")
    for theirs in written.values():
        assert tokenizer.batch_decode(ours.sequences) == tokenizer.batch_decode(theirs.sequences)
        assert (torch.stack(ours.logits) - torch.stack(theirs.logits)).abs().max() < 1e-3
