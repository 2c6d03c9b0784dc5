"""Each layer as it is read, with a model's own tensors, gives what the model's own attention module gives."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead import Alibi, Attention, AttentionSpec, Links, Model, RandomLinks
from polyhead.catalog.configs import describe, hf_config, layer_specs
from polyhead.spec import AnyOf, LayerSpec, Pattern
from tests.catalog.configs.theirs import CONFIGS, WINDOW, module
from tests.tolerances import assert_close

TOKENS = 16
MODULES = {"self_attn", "attn", "self_attention", "self", "SelfAttention", "EncDecAttention"}
LATENT = {"q_a_layernorm": "q_a_norm", "kv_a_layernorm": "kv_a_norm", "kv_a_proj_with_mqa": "kv_a_proj"}


@dataclasses.dataclass(frozen=True)
class Seen:
    """What an attention module was given and gave.

    Attributes:
        name: Its name.
        stack: The attribute of `Model` that its layer stands in.
        number: Which one there.
        module: The module.
        x: ``[batch, tokens, width]``.
        context: What cross-attention attends to.
        y: ``[batch, tokens, width]``.
        weights: ``[batch, num_heads, tokens, tokens]``, of BigBird alone.
    """

    name: str
    stack: str
    number: int
    module: Any
    x: Tensor
    context: Tensor | None
    y: Tensor
    weights: Any


def read(config: Mapping[str, Any]) -> Model:
    return describe(config, name="tiny", title="tiny", source="this test")


def run(config: Mapping[str, Any], *, train: bool = False) -> list[Seen]:
    """Run a tiny model on random tokens, and return what each of its attention modules saw, in order."""
    model = module(config).double().train(train)
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 1.5 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
            shift = 1.0 if "norm" in name else 0.0
            parameter.copy_(size * torch.randn(parameter.shape, generator=numbers, dtype=torch.float64) + shift)
    seen: list[Seen] = []

    def record(name: str, part: Any, args: Any, kwargs: Any, output: Any) -> None:
        given, stack = [*args, *kwargs.values()], _stack(name)
        y = output[0] - given[1] if config["model_type"] == "bloom" else output[0]  # which adds the residual itself
        number = sum(one.stack == stack for one in seen)
        seen.append(Seen(name, stack, number, part, given[0], kwargs.get("key_value_states"), y, output[1]))

    for name, part in model.named_modules():
        if name.rpartition(".")[2] in MODULES:
            part.register_forward_hook(
                lambda part, args, kwargs, output, name=name: record(name, part, args, kwargs, output),
                with_kwargs=True,
            )
    ids = torch.randint(3, 61, (2, TOKENS), generator=numbers)
    more = {"decoder_input_ids": ids[:, :9]} if config["model_type"] == "t5" else {}
    with torch.no_grad():
        model(input_ids=ids, **more)
    return seen


def _stack(name: str) -> str:
    if name.endswith("EncDecAttention"):
        return "cross_layers"
    return "encoder_layers" if name.startswith("encoder.") else "layers"


def computed(one: Seen, spec: LayerSpec, every: list[Seen]) -> Tensor:
    """Return what a layer of ours gives with a module's tensors and input."""
    tables = [getattr(other.module, "relative_attention_bias", None) for other in every if other.stack == one.stack]
    layer = Attention(spec, dtype=torch.float64)
    layer.load_state_dict(_tensors(dict(one.module.named_parameters()), spec, tables[0]))
    with torch.no_grad():
        y: Tensor = layer(one.x, context=one.context)
    return y


def _tensors(given: dict[str, Tensor], spec: LayerSpec, table: Any) -> dict[str, Tensor]:
    """Return a module's parameters under our names; T5's first layer has the table of all."""
    if "c_attn.weight" in given:  # GPT-2, whose weights are [in, out]
        given = {name: x.T if x.dim() == 2 else x for name, x in given.items()}
        cut = {kind: given[f"c_attn.{kind}"].chunk(3) for kind in ("weight", "bias")}
        ours = {f"{name}_proj.{kind}": x for kind, parts in cut.items() for name, x in zip("qkv", parts, strict=True)}
        return ours | {f"o_proj.{kind}": given[f"c_proj.{kind}"] for kind in cut}
    if "query_key_value.weight" in given:
        return _grouped(given, spec)
    if "q.weight" in given:  # T5
        ours = {f"{name}_proj.weight": given[f"{name}.weight"] for name in "qkvo"}
        return ours if table is None else {**ours, "bias_table": table.weight}
    if "query.weight" in given:  # BigBird, whose module ends before the output's projection
        ours = {f"{name[0]}_proj.{name.partition('.')[2]}": x for name, x in given.items()}
        return ours | {"o_proj.weight": torch.eye(spec.embed_dim), "o_proj.bias": torch.zeros(spec.embed_dim)}
    return _separate(given, spec)


def _grouped(given: dict[str, Tensor], spec: LayerSpec) -> dict[str, Tensor]:
    """Cut Bloom's and Falcon's rows: each group's queries, its key, its value."""
    groups, size = spec.attention.num_kv_heads, spec.attention.group_size
    ours = {}
    for name, tensor in given.items():
        part, _, kind = name.partition(".")
        if part == "dense":
            ours[f"o_proj.{kind}"] = tensor
            continue
        rows = tensor.unflatten(0, (groups, size + 2, spec.attention.qk_head_dim)).split([size, 1, 1], dim=1)
        ours |= {f"{one}_proj.{kind}": x.flatten(0, 2) for one, x in zip("qkv", rows, strict=True)}
    return ours


def _separate(given: dict[str, Tensor], spec: LayerSpec) -> dict[str, Tensor]:
    """Rename what has a name for each projection, and undo how DeepSeek and DiffLlama lay out heads."""
    parts = {name: name.split(".") for name in given}
    ours = {".".join([LATENT.get(part, part), *kind]): given[name] for name, (part, *kind) in parts.items()}
    attention, shapes = spec.attention, spec.parameter_shapes()
    if (both := ours.pop("kv_b_proj.weight", None)) is not None:
        cut = both.unflatten(0, (attention.num_heads, -1)).split([shapes["w_uk"][1], shapes["w_uv"][1]], dim=1)
        ours |= dict(zip(("w_uk", "w_uv"), cut, strict=True))
    if attention.num_maps == 2:  # value heads are [2, heads, width] there and [heads, 2, width] here
        values = ours["v_proj.weight"].unflatten(0, (2, attention.num_kv_heads, attention.qk_head_dim))
        ours["v_proj.weight"] = values.transpose(0, 1).flatten(0, 2)
    return ours


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "big_bird"])
def test_layers_compute_what_the_models_own_do(name: str) -> None:
    model, every = read(CONFIGS[name]), run(CONFIGS[name])
    for one in every:
        spec = getattr(model, one.stack)[one.number]
        assert_close(computed(one, spec, every), one.y, torch.float32, what=one.name)
    stacks = {stack: len(getattr(model, stack)) for stack in ("layers", "encoder_layers", "cross_layers")}
    assert stacks == {stack: sum(one.stack == stack for one in every) for stack in stacks}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_makes_of_a_file_is_read_as_the_file(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the peer")
    theirs = transformers.AutoConfig.for_model(**copy.deepcopy(CONFIGS[name]))
    theirs.save_pretrained(tmp_path)
    before, after = read(CONFIGS[name]), hf_config(tmp_path)
    for stack in ("layers", "encoder_layers", "cross_layers"):
        assert getattr(after, stack) == getattr(before, stack)
    assert (after.parameters, after.active_parameters) == (before.parameters, before.active_parameters)
    assert layer_specs(theirs.to_dict()) == list(before.layers)


def changed(spec: LayerSpec, part: str, **fields: Any) -> LayerSpec:
    """Return a layer whose choice ``part`` has other fields."""
    choice = dataclasses.replace(getattr(spec.attention, part), **fields)
    return dataclasses.replace(spec, attention=dataclasses.replace(spec.attention, **{part: choice}))


MISREAD: list[tuple[str, str, str, dict[str, Any]]] = [
    ("gemma2", "layers", "weighting", {"softcap": None}),
    ("gemma2", "layers", "weighting", {"scale": None}),
    ("mixtral, sliding", "layers", "pattern", {"left": WINDOW}),
    ("gpt_oss", "layers", "position", {"theta": 1001.0}),
    ("diffllama", "layers", "weighting", {"layer": 2}),
    ("deepseek_v2", "layers", "weighting", {"scale": None}),
    ("deepseek_v2", "layers", "position", {"pairs": "half"}),
    ("deepseek_v3, halves, all dense", "layers", "position", {"pairs": "interleaved"}),
    ("falcon, alibi", "layers", "position", {"slopes": Alibi().head_slopes(8)}),
    ("t5", "encoder_layers", "position", {"bidirectional": False}),
    ("t5", "layers", "position", {"bidirectional": True}),
    ("t5", "cross_layers", "weighting", {"scale": None}),
    ("big_bird, full", "layers", "pattern", {"right": 0}),
]


@pytest.mark.parametrize(("name", "stack", "part", "fields"), MISREAD)
def test_a_misreading_would_be_found(name: str, stack: str, part: str, fields: dict[str, Any]) -> None:
    every = run(CONFIGS[name])
    one = next(one for one in every if one.stack == stack)
    spec = changed(getattr(read(CONFIGS[name]), stack)[0], part, **fields)
    with pytest.raises(AssertionError, match="differs most"):
        assert_close(computed(one, spec, every), one.y, torch.float32, what=one.name)


def test_big_birds_pattern_is_its_own_but_for_which_blocks_are_drawn() -> None:
    model, block = read(CONFIGS["big_bird"]), CONFIGS["big_bird"]["block_size"]
    every = run(CONFIGS["big_bird"], train=True)  # evaluating, it draws none and takes the first block again
    positions, blocks = torch.arange(TOKENS), TOKENS // block
    for one in every:
        spec = model.layers[one.number]
        fixed, drawn = _parted(spec.attention)
        seen, weighed = fixed.allowed(positions, positions, kv_len=TOKENS), one.weights[0] > 0
        assert bool(weighed[:, seen].all())
        table = (weighed & ~seen).unflatten(1, (blocks, block)).unflatten(3, (blocks, block)).all(dim=4).all(dim=2)
        links = tuple(tuple(tuple(row.nonzero().flatten().tolist()) for row in head) for head in table)
        assert {len(row) for head in links for row in head[1:-1]} == {drawn.per_query}
        attention = dataclasses.replace(spec.attention, pattern=fixed | Links(table=links, block=block))
        as_drawn = dataclasses.replace(spec, attention=attention)
        assert_close(computed(one, as_drawn, every), one.y, torch.float32, what=one.name)


def _parted(spec: AttentionSpec) -> tuple[Pattern, RandomLinks]:
    """Return what is seen whatever is drawn, and what is drawn."""
    assert isinstance(spec.pattern, AnyOf)
    window, ends, drawn = spec.pattern.parts
    assert isinstance(drawn, RandomLinks)
    return window | ends, drawn
