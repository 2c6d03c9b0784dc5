"""Time how one layer of DeepSeek-V2 decodes from its latent cache: ``python benchmarks/decode_mla.py``.

The layer has the published sizes and random weights. It is taken out of a model of transformers that
`polyhead.hf.adopt` has changed, so what is timed is what an adopted model runs: projections, rotation, cache, the
kernel that `auto` picks, and the projection out. Beside it stands the same layer with the kernel `dense`, which makes
keys and values of all cached rows first, as transformers does. The rows that are cached are random too, since no time
depends on them. Lengths take turns, a token each, and the token is cropped again, so a noisy moment hits all alike.

With ``--json`` it prints a record in place of the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import polyhead as ph
import polyhead.hf
from polyhead.cache import Cache

RESULTS = Path(__file__).resolve().parent / "results"
MODEL = "deepseek-v2"
LENGTHS = (1000, 2000, 4000)
WARMUP_TURNS, TURNS = 3, 31
EXPANDING_TURNS = 5
SCHEMA = 1
COLUMNS = {"cached": 8, "a token": 9, "median": 9, "least": 8, "expanding": 11, "weights": 10, "cache": 8, "both": 8}
COLUMNS |= {"time": 8, "bytes": 8, "products": 10}
REST = {"num_hidden_layers": 1, "first_k_dense_replace": 1, "intermediate_size": 8, "vocab_size": 8}
"""What makes a model of one layer whose attention is all that weighs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What was found at one length.

    Attributes:
        cached: Number of tokens in the cache.
        numbers_per_token: What the cache keeps of each.
        median_ms: Time of one token, the median of all turns.
        min_ms: The least.
        expanding_ms: Its time if all cached rows are expanded first, the median of some turns.
        weight_bytes: Size of the layer's weights, each of which a token reads once.
        cache_bytes: Size of what is cached, of which a token reads all.
        multiplications: What a token takes of them: one for each weight, and for each cached token and head the
            score's and the output's.
    """

    cached: int
    numbers_per_token: int
    median_ms: float
    min_ms: float
    expanding_ms: float
    weight_bytes: int
    cache_bytes: int
    multiplications: int

    @property
    def bytes_read(self) -> int:
        """Bytes that a token reads, weights and cache."""
        return self.weight_bytes + self.cache_bytes


def adopted_layer(**changes: Any) -> ph.Attention:
    """Return the attention of an adopted DeepSeek-V2.

    Args:
        **changes: Fields of its config.json to have another value.
    """
    fields = json.loads(json.dumps({**ph.model(MODEL).config, **REST, **changes}))  # it changes what it is given
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields)).eval()
    layer: ph.Attention = polyhead.hf.adopt(model).model.layers[0].self_attn.attention
    return layer.requires_grad_(False)


def filled_cache(layer: ph.Attention, length: int) -> Cache:
    """Return a layer's cache of one sequence with random rows, and room for one token more."""
    cache = layer.new_cache(batch=1, max_seq_len=length + 1)
    heads, width = layer.spec.attention.input_shapes()["key"] or (0, 0)
    cache.append(torch.randn(1, heads, length, width))
    return cache


def seconds(layer: ph.Attention, x: torch.Tensor, cache: Cache, kernel: str) -> float:
    """Return how long a token takes, and take it back."""
    length = cache.length
    start = time.perf_counter()
    layer(x, cache=cache, kernel=kernel)
    taken = time.perf_counter() - start
    cache.crop(length)
    return taken


@torch.inference_mode()
def measure(layer: ph.Attention, lengths: Sequence[int], turns: int) -> list[Row]:
    """Decode one token at each length in turn, and return what each took."""
    caches = {length: filled_cache(layer, length) for length in lengths}
    x = torch.randn(1, 1, layer.spec.embed_dim)

    def taken(kernel: str, turns: int) -> list[list[float]]:
        rounds = [[seconds(layer, x, cache, kernel) for cache in caches.values()] for _ in range(WARMUP_TURNS + turns)]
        return [list(times) for times in zip(*rounds[WARMUP_TURNS:], strict=True)]

    absorbed, expanding = taken("auto", turns), taken("dense", min(turns, EXPANDING_TURNS))  # the second is slow
    return [row(layer, *found) for found in zip(caches.values(), absorbed, expanding, strict=True)]


def row(layer: ph.Attention, cache: Cache, times: Sequence[float], expanding: Sequence[float]) -> Row:
    """Return what was found at one length."""
    storage, weights = layer.spec.attention.storage, list(layer.parameters())
    assert isinstance(storage, ph.Latent)
    per_token = storage.num_heads * (2 * storage.kv_lora_rank + storage.qk_rope_head_dim)
    return Row(
        cached=cache.length,
        numbers_per_token=cache.used_bytes // (cache.length * cache.dtype.itemsize),
        median_ms=1e3 * statistics.median(times),
        min_ms=1e3 * min(times),
        expanding_ms=1e3 * statistics.median(expanding),
        weight_bytes=sum(weight.nbytes for weight in weights),
        cache_bytes=cache.used_bytes,
        multiplications=sum(weight.numel() for weight in weights) + cache.length * per_token,
    )


def machine() -> str:
    """Return what it ran on, in a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return (
        f"{name}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}, Python {platform.python_version()}"
    )


def table(layer: ph.Attention, rows: Sequence[Row], turns: int) -> str:
    """Return what was found, to read."""
    spec, first = layer.spec.attention, rows[0]
    kernel = ph.explain(spec, q_len=1, kv_len=first.cached + 1).kernel
    against = f"against {first.cached:,}"
    lines = [
        machine(),
        f"one attention layer of {MODEL}, {layer.o_proj.weight.dtype}, kernel {kernel}, {turns} turns of a token each",
        repr(spec.storage),
        "",
        f"{'':>8}{'numbers':>9}{'ms a token':>28}{'MB read a token':>26}{against:>26}",
        "".join(f"{name:>{width}}" for name, width in COLUMNS.items()),
    ]
    for one in rows:
        sizes = "".join(f"{size / 1e6:8.1f}" for size in (one.weight_bytes, one.cache_bytes, one.bytes_read))
        time_ratio, bytes_ratio = one.median_ms / first.median_ms, one.bytes_read / first.bytes_read
        lines.append(
            f"{one.cached:>8,}{one.numbers_per_token:>9}{one.median_ms:>9.2f}{one.min_ms:>8.2f}{one.expanding_ms:>11.1f}"
            f"  {sizes}{time_ratio:>8.2f}{bytes_ratio:>8.2f}{one.multiplications / first.multiplications:>10.2f}"
        )
    return "\n".join(lines)


def record(layer: ph.Attention, rows: Sequence[Row], turns: int) -> str:
    """Return what was found, as JSON."""
    found = [{**dataclasses.asdict(one), "bytes_read": one.bytes_read} for one in rows]
    data = {"schema": SCHEMA, "benchmark": "decode_mla", "machine": machine(), "model": MODEL, "turns": turns}
    data |= {"dtype": str(layer.o_proj.weight.dtype), "layer": json.loads(layer.spec.to_json()), "rows": found}
    return json.dumps(data, indent=2)


def main(arguments: Sequence[str] | None = None, **changes: Any) -> None:
    """Time it, and print the table or the record; ``changes`` are those of `adopted_layer`."""
    parser = argparse.ArgumentParser(description="Time a layer of DeepSeek-V2 decoding from its latent cache.")
    parser.add_argument("--json", action="store_true", help="print a record")
    parser.add_argument("--turns", type=int, default=TURNS, help="how many tokens are timed at each length")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="cached tokens")
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    layer = adopted_layer(**changes)
    rows = measure(layer, asked.lengths, asked.turns)
    sys.stdout.write((record if asked.json else table)(layer, rows, asked.turns) + "\n")


if __name__ == "__main__":
    main()
