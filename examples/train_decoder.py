"""Train small decoders on the text of Python's help topics, and generate from each with a cache and without.

The five stacks differ in one argument, the spec. A decoder must predict held-out text better than the frequencies
of its bytes do, and generate the same with its caches as without; the exit code is 1 if one does not.
"""

import json
from pydoc_data.topics import topics
from typing import Any

import click
import torch
from torch import Tensor, nn

import polyhead as ph

EMBED_DIM, NUM_LAYERS, CONTEXT, BATCH, PROMPT, GENERATED = 64, 2, 64, 16, 16, 48
HEADER = "stack         parameters  cache          bytes  entropy  loss  equal"
ROW = "{stack:<12}  {parameters:>10}  {cache:<12}  {bytes:>6}  {entropy:7.2f}  {loss:4.2f}  {equal}"


def specs(layer: int) -> dict[str, ph.AttentionSpec]:
    """Return the spec of a layer, counted from 1, in each stack."""
    mha = ph.Grouped(num_heads=4, head_dim=16)
    gqa = ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=16)
    maps = ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8)  # differential attention has two maps for each head
    mla = ph.Latent(num_heads=4, kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
    differential = ph.Differential(layer=layer)
    rope, causal, window = ph.Rotary(), ph.Causal(), ph.SlidingWindow.causal(16)
    return {
        "mha": ph.AttentionSpec(storage=mha, position=rope, pattern=causal),
        "gqa-window": ph.AttentionSpec(storage=gqa, position=rope, pattern=window),
        "mla": ph.AttentionSpec(storage=mla, position=rope, pattern=causal),
        "differential": ph.AttentionSpec(storage=maps, position=rope, pattern=causal, weighting=differential),
        "linear": ph.AttentionSpec(storage=mha, position=rope, pattern=causal, weighting=ph.Linear()),
    }


class Block(nn.Module):
    """A pre-norm decoder block: attention, then a SwiGLU MLP."""

    def __init__(self, spec: ph.AttentionSpec) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(EMBED_DIM), nn.RMSNorm(EMBED_DIM)
        self.attention = ph.Attention(spec, embed_dim=EMBED_DIM)
        self.gate_and_up = nn.Linear(EMBED_DIM, 4 * EMBED_DIM, bias=False)
        self.down = nn.Linear(2 * EMBED_DIM, EMBED_DIM, bias=False)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        """Map ``x [batch, tokens, EMBED_DIM]``; with a cache these are the tokens that come next."""
        x = x + self.attention(self.attention_norm(x), cache=cache)
        gate, up = self.gate_and_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(nn.functional.silu(gate) * up)


class Decoder(nn.Module):
    """Embedding of bytes, blocks, norm, and logits by the embedding's own weights."""

    def __init__(self, stack: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, EMBED_DIM)
        nn.init.normal_(self.embedding.weight, std=EMBED_DIM**-0.5)
        self.blocks = nn.ModuleList(Block(specs(layer)[stack]) for layer in range(1, NUM_LAYERS + 1))
        self.norm = nn.RMSNorm(EMBED_DIM)

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        """Return the logits of what follows each of ``tokens [batch, tokens]``; there is a cache for each block."""
        x = self.embedding(tokens)
        for block, cache in zip(self.blocks, caches or [None] * NUM_LAYERS, strict=True):
            x = block(x, cache)
        return nn.functional.linear(self.norm(x), self.embedding.weight)


def train(model: Decoder, tokens: Tensor, steps: int) -> None:
    """Take steps of Adam on windows drawn from a text."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(1, steps + 1):
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH, 1))
        windows = tokens[starts + torch.arange(CONTEXT + 1)]
        loss = nn.functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            click.echo(f"  step {step}: loss {loss.item():.2f}", err=True)


@torch.no_grad()
def evaluate(model: Decoder, tokens: Tensor) -> dict[str, float]:
    """Return a text's unigram entropy and the model's loss on the same bytes, in nats for each."""
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].unflatten(0, (-1, CONTEXT))
    logits, targets = model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()
    entropy = torch.special.entr(targets.bincount() / len(targets)).sum()
    return {"entropy": entropy.item(), "loss": nn.functional.cross_entropy(logits, targets).item()}


@torch.no_grad()
def generate(model: Decoder, prompt: Tensor, seed: int, caches: list[Any] | None = None) -> tuple[Tensor, Tensor]:
    """Draw what follows ``prompt [1, tokens]``; return all tokens, and the logits that each new one was drawn from."""
    dice = torch.Generator().manual_seed(seed)
    tokens, new, drawn_from = prompt, prompt, []
    for _ in range(GENERATED):
        logits = model(tokens if caches is None else new, caches)[:, -1]  # a cache is given only what is new to it
        new = torch.multinomial(logits.softmax(-1), 1, generator=dice)
        tokens, drawn_from = torch.cat([tokens, new], dim=1), [*drawn_from, logits]
    return tokens, torch.stack(drawn_from, dim=1)


def run(stack: str, steps: int, seed: int) -> dict[str, Any]:
    """Train one stack and generate from it; return its row of the table, and what it wrote."""
    click.echo(stack, err=True)
    torch.manual_seed(seed)
    tokens = torch.tensor(list(" ".join(" ".join(topics.values()).split()).encode()))
    training, held_out = tokens[: -len(tokens) // 20], tokens[-len(tokens) // 20 :]
    model = Decoder(stack)
    train(model, training, steps)
    caches = [block.attention.new_cache(batch=1, max_seq_len=PROMPT + GENERATED) for block in model.blocks]
    cached, logits = generate(model, held_out[None, :PROMPT], seed, caches)
    uncached, _ = generate(model, held_out[None, :PROMPT], seed)
    with torch.no_grad():  # over one text: from the first token that differs, two texts' logits say nothing
        difference = (model(cached[:, :-1])[:, PROMPT - 1 :] - logits).abs().max().item()
    return {
        "stack": stack,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cache": type(caches[0]).__name__,
        "bytes": sum(cache.used_bytes for cache in caches),
        **evaluate(model, held_out),
        "difference": difference,
        "equal": torch.equal(cached, uncached) and difference < 1e-4,  # in float32, summed in another order
        "text": bytes(cached[0].tolist()).decode(errors="replace"),
    }


@click.command()
@click.option("--stack", type=click.Choice(["all", *specs(1)]), default="all", show_default=True, help="Which one.")
@click.option("--steps", type=click.IntRange(min=0), default=200, show_default=True, help="Steps of training.")
@click.option("--seed", default=0, show_default=True, help="Of parameters, batches and what is drawn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the generated text.")
def main(stack: str, steps: int, seed: int, as_json: bool) -> None:
    """Train decoders of five stacks on Python's help topics; check that caches do not change what they generate."""
    rows = [run(name, steps, seed) for name in (specs(1) if stack == "all" else [stack])]
    click.echo(json.dumps(rows, indent=2) if as_json else "\n".join([HEADER, *(ROW.format(**row) for row in rows)]))
    if not all(row["equal"] and row["loss"] < row["entropy"] for row in rows):
        raise click.ClickException("a loss is not below the entropy, or caches change what is generated")


if __name__ == "__main__":
    main()
