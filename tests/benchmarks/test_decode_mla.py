"""benchmarks/decode_mla.py: what it says of a layer, at small sizes; no time is asserted."""

from __future__ import annotations

import json

import pytest
import torch

import polyhead as ph
from benchmarks import decode_mla

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16}


def test_an_adopted_deepseek_v2_keeps_its_latent_and_the_one_key_that_turns() -> None:
    """At the published widths of both, with fewer heads, whose number a latent's cache does not know."""
    layer = decode_mla.adopted_layer(**SMALL)
    published = ph.model("deepseek-v2").layers[0].attention.storage
    assert isinstance(published, ph.Latent)
    cache = layer.new_cache(batch=2)
    with torch.inference_mode():
        layer(torch.randn(2, 5, 32), cache=cache)
    assert cache.used_bytes == 2 * 5 * 4 * 576
    assert published.kv_lora_rank + published.qk_rope_head_dim == 576


def test_a_row_says_what_a_token_reads_and_multiplies() -> None:
    layer = decode_mla.adopted_layer(**SMALL)
    short, long = decode_mla.measure(layer, [3, 7], turns=2)
    assert (short.numbers_per_token, long.numbers_per_token) == (576, 576)
    assert (short.cached, long.cached) == (3, 7)
    assert long.cache_bytes == 7 * 576 * 4
    assert long.bytes_read == sum(4 * weight.numel() for weight in layer.parameters()) + long.cache_bytes
    assert long.multiplications - short.multiplications == 4 * 4 * (576 + 512)  # tokens, heads, score and output


@pytest.mark.parametrize("lengths", [["3", "7"], ["5"]])
def test_it_prints_a_table_and_a_record_of_the_same_rows(
    lengths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--turns", "1", "--lengths", *lengths]
    decode_mla.main(asked, **SMALL)
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()[-len(lengths) :]]
    assert [row[:2] for row in rows] == [[length, "576"] for length in lengths]
    assert "kernel absorbed" in printed
    decode_mla.main([*asked, "--json"], **SMALL)
    record = json.loads(capsys.readouterr().out)
    assert [str(row["cached"]) for row in record["rows"]] == lengths
    assert {"machine", "model", "dtype", "layer", "turns"} < record.keys()
    assert torch.__version__ in record["machine"]


def test_the_record_that_is_kept_is_of_the_published_sizes() -> None:
    record = json.loads((decode_mla.RESULTS / "decode_mla.json").read_text(encoding="utf-8"))
    layer = ph.LayerSpec.from_json(json.dumps(record["layer"]))
    assert layer == ph.model(record["model"]).layers[0]
    assert [row["cached"] for row in record["rows"]] == list(decode_mla.LENGTHS)
    assert {row["numbers_per_token"] for row in record["rows"]} == {576}
    assert record["turns"] >= 15
