"""Layers of T5, BART and BigBird, weight for weight: what each was given in its model, and what it made of it.

These models are not adopted. Their attention is run by ours from the same weights, on what the model's own modules
were given when the model ran.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyhead as ph
from tests.hf.tiny import fill
from tests.tolerances import assert_close

SOURCE, PROMPT, NEW = 13, 7, 10


@pytest.fixture(autouse=True)
def no_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def layer(spec: ph.LayerSpec, tensors: Mapping[str, Tensor]) -> ph.Attention:
    """Return a layer with the tensors of a model."""
    made = ph.Attention(spec)
    assert made.load_state_dict(dict(tensors)) == ([], [])
    return made


@dataclasses.dataclass
class Record:
    """What a module was given and gave, call by call."""

    module: Any
    calls: list[tuple[Tensor, dict[str, Any], Tensor]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.module.register_forward_hook(self.take, with_kwargs=True)

    def take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x, *_ = args or (kwargs["hidden_states"],)
        self.calls.append((x, kwargs, output[0]))


def decode(model: Any) -> None:
    """Let an encoder-decoder read two sources, a prompt, and ten tokens one by one."""
    numbers = torch.Generator().manual_seed(1)
    source, target = (torch.randint(2, 61, (2, n), generator=numbers) for n in (SOURCE, PROMPT + NEW))
    mask = torch.ones_like(source)
    mask[1, -4:] = 0
    out = model(input_ids=source, attention_mask=mask, decoder_input_ids=target[:, :PROMPT], use_cache=True)
    for token in range(PROMPT, PROMPT + NEW):
        out = model(
            encoder_outputs=(out.encoder_last_hidden_state,),
            attention_mask=mask,
            decoder_input_ids=target[:, token : token + 1],
            past_key_values=out.past_key_values,
            use_cache=True,
        )


REAL = torch.arange(SOURCE)[None] < torch.tensor([SOURCE, SOURCE - 4])[:, None]


def assert_decodes_alike(ours: ph.Attention, record: Record, *, cross: bool = False) -> None:
    """Assert that ten decoded tokens, after a prompt, are what a module made of them."""
    cache = ours.new_cache(2)
    assert len(record.calls) == 1 + NEW
    for number, (x, kwargs, expected) in enumerate(record.calls):
        first: dict[str, Any] = {"context": kwargs.get("key_value_states"), "key_mask": REAL}
        output = ours(x, cache=cache, **(first if cross and not number else {}))
        assert_close(output, expected, "float32", what=f"call {number}")


# --- T5

HEADS, WIDTH, EMBED_DIM = 3, 5, 22
T5 = {"d_model": EMBED_DIM, "d_kv": WIDTH, "num_heads": HEADS, "d_ff": 16, "num_layers": 2, "vocab_size": 61}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10}


def t5_layer(module: Any, pattern: Any, *, table: Tensor | None, bidirectional: bool = True) -> ph.Attention:
    bias = ph.RelativeBias.t5(num_buckets=8, max_distance=10, bidirectional=bidirectional)
    attention = ph.AttentionSpec(
        storage=ph.Grouped(num_heads=HEADS, head_dim=WIDTH),
        position=ph.NoPosition() if table is None else bias,
        pattern=pattern,
        weighting=ph.Softmax(scale=1.0),
    )
    source = "self" if pattern == ph.Causal() or table is not None else "cross"
    tensors = {f"{name}_proj.weight": getattr(module, name).weight for name in "qkvo"}
    shared = {} if table is None else {"bias_table": table}
    return layer(ph.LayerSpec(attention=attention, embed_dim=EMBED_DIM, source=source), {**tensors, **shared})


@pytest.fixture(scope="module")
def t5() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(**T5, num_decoder_layers=2, dropout_rate=0.0, attn_implementation="eager")
    model = transformers.T5ForConditionalGeneration(config).eval()
    fill(model)
    return model


def test_t5_every_layer_has_the_first_ones_bias(t5: Any) -> None:
    encoder = [block.layer[0].SelfAttention for block in t5.encoder.block]
    decoder = [block.layer[0].SelfAttention for block in t5.decoder.block]
    cross = [block.layer[1].EncDecAttention for block in t5.decoder.block]
    records = {module: Record(module) for module in (*encoder, *decoder, *cross)}
    decode(t5)
    for module in encoder:
        [(x, _, expected)] = records[module].calls
        ours = t5_layer(module, ph.Full(), table=encoder[0].relative_attention_bias.weight)
        assert_close(ours(x, key_mask=REAL)[REAL], expected[REAL], "float32", what="encoder")
    for module in decoder:
        table = decoder[0].relative_attention_bias.weight
        ours = t5_layer(module, ph.Causal(), table=table, bidirectional=False)
        assert_decodes_alike(ours, records[module])
    for module in cross:
        assert_decodes_alike(t5_layer(module, ph.Full(), table=None), records[module], cross=True)


# --- BART


def test_bart_cross_attention() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=61,
        d_model=21,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        attn_implementation="eager",
    )
    model = transformers.BartForConditionalGeneration(config).eval()
    fill(model)
    modules = [block.encoder_attn for block in model.model.decoder.layers]
    records = [Record(module) for module in modules]
    decode(model)
    spec = ph.LayerSpec(
        attention=ph.AttentionSpec(storage=ph.Grouped(num_heads=3, head_dim=7)),
        embed_dim=21,
        source="cross",
        qkv_bias=True,
        out_bias=True,
    )
    for module, record in zip(modules, records, strict=True):
        tensors = {name.replace("out_proj", "o_proj"): x for name, x in module.named_parameters()}
        assert_decodes_alike(layer(spec, tensors), record, cross=True)


# --- BigBird

BLOCK, BLOCKS, RANDOM = 3, 11, 2


def links(tables: list[Any]) -> ph.Links:
    """Return BigBird's random blocks: one row for each block but the first and the last, which are global."""
    for table in tables:
        for block, linked in enumerate(table, start=1):
            seen = {0, block - 1, block, block + 1, BLOCKS - 1}
            assert len(seen.union(linked)) == len(seen) + RANDOM, "a block that is linked twice counts twice"
    rows = tuple(((), *(tuple(int(key) for key in row) for row in table), ()) for table in tables)
    return ph.Links(table=rows, block=BLOCK)


def test_bigbird_block_sparse_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training mode, for in evaluation every random block is block 0."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BigBirdConfig(
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=16,
        max_position_embeddings=64,
        attention_type="block_sparse",
        block_size=BLOCK,
        num_random_blocks=RANDOM,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BigBirdModel(config).train()
    fill(model)
    blocks = [block.attention for block in model.encoder.layer]
    records = [Record(block.self) for block in blocks]
    drawn: list[list[Any]] = []
    draw = type(blocks[0].self)._bigbird_block_rand_mask_with_head
    monkeypatch.setattr(
        type(blocks[0].self),
        "_bigbird_block_rand_mask_with_head",
        lambda *args, **kwargs: drawn.append(draw(*args, **kwargs)) or drawn[-1],
    )
    numbers = torch.randint(61, (2, BLOCKS * BLOCK), generator=torch.Generator().manual_seed(1))
    model(numbers, attention_mask=torch.ones_like(numbers))
    assert len(drawn) == len(blocks)
    for block, record, tables in zip(blocks, records, drawn, strict=True):
        pattern = ph.Chunked(size=BLOCK, left=1, right=1) | ph.Global(first=BLOCK, last=BLOCK) | links(tables)
        attention = ph.AttentionSpec(storage=ph.Grouped(num_heads=3, head_dim=8), pattern=pattern)
        tensors = {
            f"{ours}.{kind}": getattr(module, kind)
            for ours, module in {
                "q_proj": block.self.query,
                "k_proj": block.self.key,
                "v_proj": block.self.value,
                "o_proj": block.output.dense,
            }.items()
            for kind in ("weight", "bias")
        }
        ours = layer(ph.LayerSpec(attention=attention, embed_dim=24, qkv_bias=True, out_bias=True), tensors)
        [(x, _, mixed)] = record.calls
        assert_close(ours(x), block.output.dense(mixed), "float32")
