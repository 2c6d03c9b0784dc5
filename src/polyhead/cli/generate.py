"""`polyhead generate`: a prompt in, text out, as it comes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from polyhead.errors import UnsupportedError

if TYPE_CHECKING:
    from polyhead.hf import Generation, Loaded, Sampling

SCHEMA = 1
OURS = "polyhead"
DRAWING = ("temperature", "top_p", "top_k", "seed")
WHY = {
    "end": "the model ended the text",
    "max_new_tokens": "--max-new-tokens reached",
    "positions": "the model has no positions beyond",
}


@click.command("generate")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--adopt", is_flag=True, help="Let polyhead's own layers and caches take the place of the model's.")
@click.option(
    "--attention", help=f"The attention that the model's own layers call: sdpa, eager, ...  [default: {OURS}]"
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=100, show_default=True, help="How many tokens may come."
)
@click.option("--sample", is_flag=True, help="Draw tokens at random; without, the likeliest is taken.")
@click.option(
    "--temperature", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Divides the logits."
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw from the likeliest tokens that together reach this probability.",
)
@click.option("--top-k", type=click.IntRange(1), help="Draw from this many of the likeliest.")
@click.option("--seed", type=click.IntRange(0), help="Draw the same again.  [default: another each time]")
@click.option("--chat", is_flag=True, help="The prompt is what a user says, in the model's chat template.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Dtype of weights and cache.",
)
@click.option("--device", default="cpu", show_default=True, help="Where it runs, such as cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON at the end: the text, its tokens and the figures.")
def command(model: str, prompt: str | None, adopt: bool, attention: str | None, as_json: bool, **options: Any) -> None:
    """Let a model go on with a text: PROMPT, or else what stdin brings.

    MODEL is a checkpoint directory, a GGUF file, or smollm2. Its own layers run with polyhead's attention, or with
    --adopt polyhead's layers in their place. The text goes to stdout as it comes; speed and the cache's size go to
    stderr at the end.

    \b
    Examples:
      polyhead generate smollm2 "The capital of France is" --max-new-tokens 30
      polyhead generate smollm2 "The capital of France is" --adopt
      polyhead generate smollm2 "Tell me a joke." --chat --sample --temperature 0.7 --seed 1
      echo "Once upon a time" | polyhead generate my-model --attention sdpa
      polyhead generate smollm2 "The cat" --json
    """
    if adopt and attention is not None:
        raise click.UsageError("--adopt replaces the layers that would call --attention; give one of them")
    _check_drawing(options["sample"])
    text = _prompt(prompt)
    attention = None if adopt else attention or OURS
    loaded = _load(model, attention, options["dtype"], options["device"])
    sampling = _sampling(options)
    asked = {"max_new_tokens": options["max_new_tokens"], "chat": options["chat"], "sampling": sampling}
    if not as_json:
        _report(_stream(loaded, text, asked), sampling)
        return
    from polyhead.cli.common import progress
    from polyhead.hf import generate

    with progress(f"Generating with {model}"):
        written = generate(loaded, text, **asked)
    head = {"schema": SCHEMA, "model": loaded.name, "adopted": adopt, "attention": attention}
    click.echo(json.dumps(head | _data(text, written, sampling), indent=2))


def _check_drawing(sample: bool) -> None:
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    given = [name for name in DRAWING if context.get_parameter_source(name) is not default]
    if given and not sample:
        raise click.UsageError(f"--{given[0].replace('_', '-')} says how tokens are drawn; add --sample")


def _prompt(given: str | None) -> str:
    """Return the prompt: the argument, or what is piped in, without the newline at its end."""
    if given is None:
        if sys.stdin.isatty():
            raise click.UsageError("there is no prompt; give one after MODEL, in quotes, or pipe one in")
        try:
            given = sys.stdin.read()
        except UnicodeDecodeError:
            raise click.UsageError("what was piped in is no text in UTF-8") from None
        given = given.removesuffix("\n")
    if not given:
        raise click.UsageError("the prompt is empty; give at least one word")
    return given


def _sampling(options: Mapping[str, Any]) -> Sampling | None:
    import secrets

    from polyhead.hf import Sampling

    if not options["sample"]:
        return None
    drawing = {name: options[name] for name in DRAWING}
    if drawing["seed"] is None:  # torch begins each process at the same one
        drawing["seed"] = secrets.randbelow(2**32)
    return Sampling(**drawing)


def _load(model: str, attention: str | None, dtype: str, device: str) -> Loaded:
    """Load a model that generates; without an attention, adopt it."""
    from polyhead.cli.common import progress
    from polyhead.errors import require_extra

    with progress(f"Loading {model}"):
        torch = require_extra("torch", "hf", "polyhead generate")
        require_extra("transformers", "hf", "polyhead generate")
        from polyhead.hf import adopt, load

        loaded = load(model, dtype=getattr(torch, dtype), device=device, attention=attention, check=_check(attention))
        if attention is None:
            adopt(loaded.model)
    return loaded


def _check(attention: str | None) -> Callable[[Mapping[str, Any], Any], None]:
    """Return what refuses a model before its weights are read, and says what to type instead."""

    def check(config: Mapping[str, Any], empty: Any) -> None:
        from polyhead.hf.families import FAMILIES
        from polyhead.hf.generate import check_generates
        from polyhead.hf.load import check_attention

        check_generates(empty)
        if attention is None:
            return
        try:
            check_attention(empty, attention)
        except UnsupportedError as error:
            reason, _, _ = str(error).rpartition("; ")  # what follows is for those who write Python
            remedy = "--adopt" if config["model_type"] in FAMILIES else "--attention eager"
            raise UnsupportedError(f"{reason}; type {remedy}") from error

    return check


def _stream(loaded: Loaded, prompt: str, asked: Mapping[str, Any]) -> Generation:
    """Generate, and print each piece of text as it comes."""
    from polyhead.hf import generate

    last = ""

    def show(piece: str) -> None:
        nonlocal last
        last = piece
        click.echo(piece, nl=False)

    try:
        written = generate(loaded, prompt, **asked, on_text=show)
    finally:
        if last and not last.endswith("\n"):
            click.echo()
    return written


def _report(written: Generation, sampling: Sampling | None) -> None:
    """Say on stderr how it went."""
    from rich.text import Text

    from polyhead.cli.common import console

    speed = written.tokens_per_second
    figures = [
        f"{written.new_tokens} new tokens ({WHY[written.stopped]})",
        *([] if speed is None else [f"{speed:.1f} tokens/s"]),
        f"prefill of {written.prompt_tokens} tokens in {written.prefill_seconds:.2f} s",
        *([] if sampling is None else [f"seed {sampling.seed}"]),
    ]
    lines = [", ".join(figures)]
    if (cache := written.cache) is not None:
        lines.append(f"cache of {cache.layers} layers: {_size(cache.used)} used, {_size(cache.allocated)} allocated")
    for line in lines:
        console(stderr=True).print(Text(line, style="dim"), soft_wrap=True)


def _size(count: int) -> str:
    unit = next((unit for unit in (2**30, 2**20, 2**10) if count >= unit), 1)
    name = {2**30: "GiB", 2**20: "MiB", 2**10: "KiB"}.get(unit)
    return f"{count} bytes" if name is None else f"{count / unit:.2f} {name} ({count:,} bytes)"


def _data(prompt: str, written: Generation, sampling: Sampling | None) -> dict[str, Any]:
    import dataclasses

    cache = written.cache
    return {
        "prompt": prompt,
        "text": written.text,
        "sampling": None if sampling is None else dataclasses.asdict(sampling),
        "stopped": written.stopped,
        "prompt_tokens": written.prompt_tokens,
        "new_tokens": written.new_tokens,
        "token_ids": written.token_ids,
        "prefill_seconds": written.prefill_seconds,
        "decode_seconds": written.decode_seconds,
        "tokens_per_second": written.tokens_per_second,
        "cache": cache and {"used_bytes": cache.used, "allocated_bytes": cache.allocated, "layers": cache.layers},
    }
