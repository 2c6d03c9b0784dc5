"""What a spec means, in words."""

from __future__ import annotations

import pytest

import polyhead as ph
from polyhead.spec import Pattern, retention
from polyhead.spec.words import cached, kept, learned, meanings

MHA = ph.Grouped(num_heads=4, head_dim=8)


def told(choice: str, part: object) -> str:
    return meanings(ph.AttentionSpec(**{"storage": MHA, choice: part}))[choice]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        (ph.Grouped(num_heads=1, head_dim=8), "one head, with a key and a value for each token"),
        (MHA, "4 heads, each with keys and values of its own"),
        (ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8), "4 heads share the keys and values of 2 groups"),
        (ph.Grouped(num_heads=4, num_kv_heads=1, head_dim=8), "4 heads share one key and one value"),
        (
            ph.Latent(num_heads=4, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=0, v_head_dim=8),
            "a latent of 16 numbers for each token, unfolded for 4 heads",
        ),
    ],
)
def test_storage(storage: object, words: str) -> None:
    assert told("storage", storage) == words


def test_a_latent_with_a_rope_key() -> None:
    spec = ph.model("deepseek-v2").layers[0].attention
    assert meanings(spec)["storage"] == (
        "a latent of 512 numbers and a RoPE key of 64 for each token, unfolded for 128 heads"
    )
    assert meanings(spec)["position"].endswith("base 10,000, stretched by YarnScaling")


@pytest.mark.parametrize(
    ("position", "words"),
    [
        (ph.NoPosition(), "nothing tells positions apart but the pattern"),
        (ph.Rotary(theta=5e5), "queries and keys turn by an angle that grows with position, base 500,000"),
        (ph.Alibi(), "a slope times the distance is taken from each score; each head has its own slope"),
        (
            ph.RelativeBias.t5(),
            "a learned number for each of 32 kinds of distance, for each head, is added to the score",
        ),
        (
            ph.RelativeBias.clipped(max_distance=3),
            "a learned number for each of 7 kinds of distance, for each head, is added to the score",
        ),
        (
            ph.RelativeBias.shaw(max_distance=3),
            "a learned vector for each distance up to 3 is added to keys and to values",
        ),
    ],
)
def test_position(position: object, words: str) -> None:
    assert told("position", position) == words


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (ph.Full(), "a query sees every key"),
        (ph.Causal(), "a query sees itself and all before it"),
        (ph.SlidingWindow.causal(1), "a query sees itself"),
        (ph.SlidingWindow.causal(4096), "a query sees itself and 4,095 tokens before it"),
        (ph.SlidingWindow.symmetric(1), "a query sees itself, 1 token before it and 1 token after it"),
        (
            ph.Chunked(size=8, left=1, right=0),
            "a query sees its own chunk and 1 chunk before it, of 8 tokens",
        ),
        (ph.Global(first=1), "the first token sees all and is seen by all"),
        (ph.Global(first=4, last=1), "the first 4 tokens and the last token see all and are seen by all"),
        (ph.RandomLinks(per_query=2, seed=0), "a query sees 2 keys drawn at random"),
        (ph.RandomLinks(per_query=1, seed=0, block=8), "a query sees 1 block of 8 keys drawn at random"),
        (ph.Links(table=(((0,),),)), "a query sees the keys that a table lists for it"),
        (
            ph.Causal() & ph.BigBird(num_random=0),
            (
                "what all of these let it see: a query sees itself and all before it; (what any of these lets it see: "
                "the first token sees all and is seen by all; a query sees itself, 1 token before it and 1 token after "
                "it)"
            ),
        ),
    ],
)
def test_pattern(pattern: Pattern, words: str) -> None:
    assert told("pattern", pattern) == words


@pytest.mark.parametrize(
    ("weighting", "words"),
    [
        (ph.Softmax(), "the softmax of the scores that a query may see"),
        (
            ph.Softmax(scale=1.0, softcap=50.0, sink=True),
            (
                "the softmax of the scores that a query may see; scores times 1; scores bounded to ±50; "
                "a learned sink that takes weight and gives no value"
            ),
        ),
        (ph.Linear(), "products of features φ = elu+1 in place of a softmax, so that sums replace the cache"),
        (
            ph.Differential(form="clipped", lambda_init=0.5),
            (
                "the difference of two softmax maps, λ_init = 0.5, with negative weights set to 0 and each row "
                "rescaled to 1"
            ),
        ),
        (
            ph.Differential(),
            "the difference of two softmax maps, λ_init = 0.2, normed head by head with a learned weight",
        ),
        (
            ph.Differential(form="diffllama"),
            "the difference of two softmax maps, λ_init = 0.2, normed head by head",
        ),
    ],
)
def test_weighting(weighting: object, words: str) -> None:
    assert told("weighting", weighting) == words


def test_what_is_kept_and_learned() -> None:
    causal = ph.AttentionSpec(storage=MHA, pattern=ph.Causal())
    assert cached(causal) == kept(retention(causal)) == "growing, 64 numbers a token"
    window = ph.AttentionSpec(storage=MHA, pattern=ph.SlidingWindow.causal(16))
    assert cached(window) == "rolling, 64 numbers a token, of at most 16 tokens"
    sums = ph.AttentionSpec(storage=MHA, pattern=ph.Causal(), weighting=ph.Linear())
    assert cached(sums) == "state, 288 numbers whatever the length"
    full = ph.AttentionSpec(storage=MHA)
    assert cached(full).startswith("none: pattern=Full() lets a query see later keys")
    assert cached(full, "cross") == "context, 64 numbers a token"
    assert learned({}) == "nothing"
    assert learned({"sinks": (4,), "bias_table": (5, 4)}) == "sinks [4], bias_table [5, 4]"


def test_every_models_layer_has_words() -> None:
    for model in ph.models():
        for layer in {*model.layers, *model.encoder_layers, *model.cross_layers}:
            assert all(meanings(layer.attention).values())
