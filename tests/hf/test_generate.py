"""Generated text: the tokens are transformers' own, pieces make the text, and the cache's bytes are what it holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyhead.errors import ShapeError, SpecError, UnsupportedError
from polyhead.hf import Generation, Loaded, Sampling, adopt, generate, load
from polyhead.hf.generate import _Stream, cache_bytes
from tests.hf.conftest import SHAPE, MakeCheckpoint, save
from tests.hf.tiny import tiny

torch = pytest.importorskip("torch", reason="a model runs in torch")
transformers = pytest.importorskip("transformers", reason="transformers runs the models")

PROMPT, PROMPT_TOKENS, NEW = "the cat sat on the mat", 6, 12
WAYS: dict[str, Callable[[Path], Loaded]] = {
    "eager": lambda path: load(path, attention="eager"),
    "polyhead": lambda path: load(path, attention="polyhead"),
    "adopted": lambda path: adopted(load(path)),
}


def adopted(loaded: Loaded) -> Loaded:
    adopt(loaded.model)
    return loaded


def without_an_end(loaded: Loaded) -> Loaded:
    loaded.model.generation_config.eos_token_id = None
    return loaded


def with_settings(loaded: Loaded, **fields: Any) -> Loaded:
    for name, value in fields.items():
        setattr(loaded.model.generation_config, name, value)
    return loaded


@pytest.fixture
def llama(checkpoint: MakeCheckpoint) -> Loaded:
    return without_an_end(load(checkpoint("llama")))


def theirs(loaded: Loaded, **asked: Any) -> list[int]:
    """Return the tokens that transformers' own ``generate`` adds."""
    given = loaded.tokenizer(PROMPT, return_tensors="pt")
    asked = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **asked}
    [numbers] = loaded.model.generate(given["input_ids"], attention_mask=given["attention_mask"], **asked).tolist()
    return list(numbers[PROMPT_TOKENS:])


# --- which tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gpt2"])
def test_the_likeliest_tokens_are_transformers_own(checkpoint: MakeCheckpoint, family: str, way: str) -> None:
    path = checkpoint(family)
    written = generate(without_an_end(WAYS[way](path)), PROMPT, max_new_tokens=NEW)
    assert list(written.token_ids) == theirs(without_an_end(load(path)))
    assert (written.prompt_tokens, written.new_tokens, written.stopped) == (PROMPT_TOKENS, NEW, "max_new_tokens")


def test_a_checkpoints_own_settings_change_nothing(llama: Loaded, capfd: pytest.CaptureFixture[str]) -> None:
    plain = generate(llama, PROMPT, max_new_tokens=NEW)
    with_settings(llama, do_sample=True, temperature=9.0, repetition_penalty=5.0, no_repeat_ngram_size=1, max_length=7)
    before = copy.deepcopy(llama.model.generation_config)
    capfd.readouterr()
    assert generate(llama, PROMPT, max_new_tokens=NEW).token_ids == plain.token_ids
    assert llama.model.generation_config.to_dict() == before.to_dict()
    assert capfd.readouterr() == ("", "")


def test_an_encoder_and_decoder_goes_on_from_its_own_beginning(tmp_path: Path) -> None:
    shape = {"vocab_size": 80, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(**shape, decoder_start_token_id=0)
    torch.manual_seed(0)
    loaded = without_an_end(load(save(transformers.T5ForConditionalGeneration(config), tmp_path / "t5")))
    written = generate(loaded, PROMPT, max_new_tokens=NEW)
    given = loaded.tokenizer(PROMPT, return_tensors="pt")
    [numbers] = loaded.model.generate(**given, max_new_tokens=NEW, do_sample=False).tolist()
    assert list(written.token_ids) == numbers[1:]
    assert written.cache is not None
    held = 2 * 2 * (PROMPT_TOKENS + NEW) * 16 * 4  # keys and values of two layers, for the prompt and what came
    assert (written.cache.used, written.cache.layers) == (held, 4)


def test_it_ends_where_the_model_ends_the_text(llama: Loaded) -> None:
    whole = generate(llama, PROMPT, max_new_tokens=NEW).token_ids
    end = whole[4]
    llama.model.generation_config.eos_token_id = [end, 79]
    written = generate(llama, PROMPT, max_new_tokens=NEW)
    assert written.token_ids == whole[: whole.index(end) + 1]
    assert written.stopped == "end"


def test_it_ends_with_the_models_positions(llama: Loaded) -> None:
    written = generate(llama, " cat" * 60, max_new_tokens=NEW)
    assert (written.new_tokens, written.stopped) == (64 - 60 + 1, "positions")
    assert generate(llama, " cat" * 64, max_new_tokens=NEW).new_tokens == 1


# --- drawing --------------------------------------------------------------------------------------


def test_a_seed_draws_the_same_and_leaves_torchs_own_draws_alone(llama: Loaded) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        generate(llama, PROMPT, max_new_tokens=NEW, sampling=Sampling(seed=seed)).token_ids for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_torchs_own_draws_go_on(llama: Loaded) -> None:
    torch.manual_seed(3)
    first = generate(llama, PROMPT, max_new_tokens=NEW, sampling=Sampling()).token_ids
    assert generate(llama, PROMPT, max_new_tokens=NEW, sampling=Sampling()).token_ids != first
    torch.manual_seed(3)
    assert generate(llama, PROMPT, max_new_tokens=NEW, sampling=Sampling()).token_ids == first


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}], ids=str)
def test_a_narrow_draw_is_the_likeliest(llama: Loaded, narrow: dict[str, Any]) -> None:
    likeliest = generate(llama, PROMPT, max_new_tokens=NEW).token_ids
    assert generate(llama, PROMPT, max_new_tokens=NEW, sampling=Sampling(seed=1, **narrow)).token_ids == likeliest


def test_all_tokens_can_be_drawn_unless_it_is_narrowed(llama: Loaded) -> None:
    """At a high temperature all 80 are as likely; transformers' own default draws from the first 50."""
    llama.model.config.max_position_embeddings = 4096
    hot = generate(llama, PROMPT, max_new_tokens=600, sampling=Sampling(seed=1, temperature=1e4))
    assert len(set(hot.token_ids)) > 75


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 is not allowed; give a finite number above 0"),
        ({"top_p": 1.5}, "top_p=1.5 is not allowed; give a probability above 0 and at most 1"),
        ({"top_p": 0}, "top_p=0 is not allowed"),
        ({"top_k": 0}, "top_k=0 is not allowed; give a whole number of at least 1"),
        ({"seed": -1}, "seed=-1 is not allowed; give a whole number of at least 0"),
    ],
)
def test_a_draw_that_is_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Sampling(**fields)


# --- the text -------------------------------------------------------------------------------------


def test_pieces_make_the_text(llama: Loaded) -> None:
    pieces: list[str] = []
    written = generate(llama, PROMPT, max_new_tokens=40, on_text=pieces.append)
    assert len(pieces) > 10
    assert "".join(pieces) == written.text == llama.tokenizer.decode(written.token_ids, skip_special_tokens=True)


def stream_of(tokenizer: Any, prompt: list[int], numbers: list[int]) -> list[str]:
    pieces: list[str] = []
    stream = _Stream(tokenizer, pieces.append)
    stream.put(torch.tensor([prompt]))
    for number in numbers:
        stream.put(torch.tensor([number]))
    stream.end()
    return pieces


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """Return a tokenizer with a token for each byte."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe)


def test_a_piece_has_whole_characters(bytewise: Any) -> None:
    text = "é ☕, 日本語 👩\n"
    assert stream_of(bytewise, bytewise("x")["input_ids"], bytewise(text)["input_ids"]) == list(text)


def test_a_character_that_never_gets_whole_comes_at_the_end(bytewise: Any) -> None:
    numbers = bytewise("a☕")["input_ids"][:-1]
    assert stream_of(bytewise, bytewise("x")["input_ids"], numbers) == ["a", "\ufffd"]


def test_a_long_text_comes_whole(bytewise: Any) -> None:
    text = "日本 " * 50
    assert "".join(stream_of(bytewise, bytewise("é" * 30)["input_ids"], bytewise(text)["input_ids"])) == text


def test_the_blank_before_the_first_new_word_is_kept() -> None:
    """Decoders of SentencePiece's kind drop the blank that a text begins with; here it begins with the prompt."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"▁is": 0, "▁Paris": 1, "?": 2}, unk_token="?"))
    words.decoder = tokenizers.decoders.Metaspace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    assert tokenizer.decode([1]) == "Paris"
    assert stream_of(tokenizer, [0], [1, 2]) == [" Paris", "?"]


# --- figures --------------------------------------------------------------------------------------


def held(written: Generation) -> int:
    """Return how many tokens the cache holds: the last one has not been read."""
    return written.prompt_tokens + written.new_tokens - 1


@pytest.mark.parametrize("way", WAYS)
def test_the_cache_holds_a_key_and_a_value_for_each_token(checkpoint: MakeCheckpoint, way: str) -> None:
    written = generate(without_an_end(WAYS[way](checkpoint("llama"))), PROMPT, max_new_tokens=NEW)
    layers, kv_heads, head_dim = 2, SHAPE["num_key_value_heads"], SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
    assert written.cache is not None
    assert written.cache.used == 2 * layers * kv_heads * head_dim * 4 * held(written)
    assert written.cache.allocated >= written.cache.used
    assert written.cache.layers == layers


@pytest.mark.parametrize(("way", "kept"), [("eager", 2), ("polyhead", 2), ("adopted", 3)])
def test_a_window_of_three_keeps_three_tokens_or_two(checkpoint: MakeCheckpoint, way: str, kept: int) -> None:
    """transformers leaves out the one that the next token no longer sees, and holds its memory all the same."""
    written = generate(without_an_end(WAYS[way](checkpoint("mistral"))), PROMPT, max_new_tokens=NEW)
    row = 2 * 2 * 2 * 8 * 4  # keys and values of two layers, two heads of width 8
    assert written.cache is not None
    assert (written.cache.used, written.cache.allocated) == (kept * row, 3 * row)


def test_half_the_bytes_in_half_the_precision(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("llama")
    sizes = [
        generate(without_an_end(load(path, dtype=dtype)), PROMPT, max_new_tokens=NEW).cache
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert sizes[0] is not None
    assert sizes[1] is not None
    assert sizes[0].used == 2 * sizes[1].used


def test_a_single_token_has_no_speed(llama: Loaded) -> None:
    one, two = (generate(llama, PROMPT, max_new_tokens=count) for count in (1, 2))
    assert (one.new_tokens, one.decode_seconds, one.tokens_per_second) == (1, 0.0, None)
    assert two.tokens_per_second == 1 / two.decode_seconds
    assert one.prefill_seconds > 0


def test_a_latent_cache_holds_latents() -> None:
    model = tiny("deepseek-v3")
    past = model(torch.arange(7)[None]).past_key_values
    assert cache_bytes(past).used == 2 * 7 * (10 + 4) * 4


def test_a_static_cache_is_used_as_far_as_it_is_filled() -> None:
    model = tiny("llama")
    past = transformers.StaticCache(config=model.config, max_cache_len=20)
    model(torch.arange(7)[None], past_key_values=past)
    row = 2 * 2 * 3 * 4 * 4  # keys and values of two layers, three heads of width 4
    counted = cache_bytes(past)
    assert (counted.used, counted.allocated, counted.layers) == (7 * row, 20 * row, 2)


def test_an_empty_cache_holds_nothing() -> None:
    counted = cache_bytes(transformers.DynamicCache(config=tiny("llama").config))
    assert (counted.used, counted.allocated, counted.layers) == (0, 0, 0)


def test_a_recurrent_state_is_all_used(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=80, hidden_size=16, num_hidden_layers=2)
    loaded = without_an_end(load(save(transformers.MambaForCausalLM(config), tmp_path / "mamba")))
    short, long = (generate(loaded, PROMPT, max_new_tokens=count).cache for count in (2, NEW))
    state = 2 * (2 * 16) * (config.state_size + config.conv_kernel) * 4
    assert short is not None
    assert short == long
    assert short.used == short.allocated == state


def test_a_quantised_cache_is_not_counted() -> None:
    past = transformers.DynamicCache()
    past.layers.append(type("QuantizedLayer", (), {})())
    with pytest.raises(UnsupportedError, match="the bytes of a QuantizedLayer are not counted; use transformers' Dyn"):
        cache_bytes(past)


# --- chat -----------------------------------------------------------------------------------------


def test_a_chat_is_the_prompt_inside_the_template(llama: Loaded) -> None:
    llama.tokenizer.chat_template = (
        "{% for turn in messages %}the {{ turn.content }}{% endfor %}{% if add_generation_prompt %} sat{% endif %}"
    )
    written = generate(llama, "cat", chat=True, max_new_tokens=NEW)
    assert written.prompt_tokens == 3
    assert written.token_ids == generate(llama, "the cat sat", max_new_tokens=NEW).token_ids


def test_a_tokenizer_without_a_template(llama: Loaded) -> None:
    with pytest.raises(UnsupportedError, match="tokenizer of llama has no chat template; give the text as it is"):
        generate(llama, "cat", chat=True)


# --- what is refused ------------------------------------------------------------------------------


def test_an_empty_prompt(llama: Loaded) -> None:
    with pytest.raises(ShapeError, match="text='' has no token"):
        generate(llama, "")


def test_a_prompt_longer_than_the_positions(llama: Loaded) -> None:
    with pytest.raises(ShapeError, match="the prompt has 65 tokens and the model positions for 64; shorten it"):
        generate(llama, " cat" * 65)


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_no_number_of_tokens(llama: Loaded, count: Any) -> None:
    with pytest.raises(SpecError, match=f"max_new_tokens={count} is not allowed; give a whole number of at least 1"):
        generate(llama, PROMPT, max_new_tokens=count)


BERT = {"vocab_size": 80, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("BertModel", BERT, "the architecture BertModel writes no text: it has no head that predicts the next token"),
        ("BertForMaskedLM", BERT, "the architecture BertForMaskedLM writes no text"),
        ("BertLMHeadModel", BERT, r"the architecture BertLMHeadModel is an encoder here \(is_decoder is false"),
        ("LlamaModel", SHAPE, "the architecture LlamaModel writes no text"),
    ],
)
def test_a_model_that_writes_no_text(tmp_path: Path, kind: str, config: dict[str, Any], message: str) -> None:
    model_class = getattr(transformers, kind)
    path = save(model_class(model_class.config_class(**config)), tmp_path / "model")
    with pytest.raises(UnsupportedError, match=message):
        generate(load(path), PROMPT)


def test_a_decoder_of_an_encoders_kind_writes(tmp_path: Path) -> None:
    config = transformers.BertConfig(**BERT, is_decoder=True)
    loaded = without_an_end(load(save(transformers.BertLMHeadModel(config), tmp_path / "bert")))
    assert generate(loaded, PROMPT, max_new_tokens=3).new_tokens == 3


def test_a_model_that_reads_no_text() -> None:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.WhisperConfig(vocab_size=80, d_model=16, pad_token_id=0, **layers)
    loaded = Loaded(
        path=Path(),
        name="whisper",
        config={},
        model=transformers.WhisperForConditionalGeneration(config),
        tokenizer=None,
    )
    with pytest.raises(UnsupportedError, match=r"WhisperFor.* does not begin with a text: it reads input_features"):
        generate(loaded, PROMPT)


def test_an_interrupted_text_leaves_the_model_as_it_was(llama: Loaded) -> None:
    settings = llama.model.generation_config

    def interrupt(piece: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(llama, PROMPT, on_text=interrupt)
    assert llama.model.generation_config is settings
    assert generate(llama, PROMPT, max_new_tokens=2).new_tokens == 2


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.usefixtures("smollm2")
def test_smollm2_writes_the_same_in_all_ways() -> None:
    path, prompt = "smollm2", "Once upon a time, in a village at the foot of a mountain,"
    loaded = [load(path, attention="sdpa"), load(path, attention="polyhead"), adopted(load(path))]
    sdpa, ours, layers = (generate(without_an_end(model), prompt, max_new_tokens=50) for model in loaded)
    assert sdpa.new_tokens == 50
    assert sdpa.token_ids == ours.token_ids == layers.token_ids
    assert sdpa.cache is not None
    assert layers.cache is not None
    assert sdpa.cache.used == layers.cache.used == 2 * 30 * 3 * 64 * 4 * held(sdpa)
