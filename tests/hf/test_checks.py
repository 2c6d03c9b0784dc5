"""The files of a checkpoint are whole, and their weights the model's: all there, none left over, all finite."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyhead.errors import CheckpointError
from polyhead.hf import load
from polyhead.hf.checks import check_finite
from tests.hf.conftest import SHAPE, MakeCheckpoint, save

torch = pytest.importorskip("torch", reason="a model runs in torch")
transformers = pytest.importorskip("transformers", reason="transformers loads the models")


# --- weights --------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[dict[str, Any]], Any], file: str = "model.safetensors") -> None:
    """Change the tensors of a saved checkpoint."""
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = safetensors.load_file(path / file)
    change(tensors)
    safetensors.save_file(tensors, path / file, metadata={"format": "pt"})


QUERY, NORM = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.q_norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(QUERY), rf"llama lacks {QUERY}, which its config.json asks for"),
        (lambda t: t.pop("lm_head.weight"), r"llama lacks lm_head.weight, which"),
        (
            lambda t: [t.pop(n) for n in list(t) if "layers.1" in n],
            r"llama lacks model.layers.1.input_layernorm.weight and 12 more",
        ),
        (
            lambda t: t.update({QUERY: torch.ones(3, 3)}),
            rf"model.safetensors has {QUERY} as \[3, 3\], and its config.json asks for \[32, 32\]",
        ),
        (lambda t: t.update({NORM: torch.ones(8)}), rf"model.safetensors has {NORM}, which the model in its config"),
        (lambda t: t.update({"score": torch.ones(2, 32)}), r"has score, which the model"),
        (lambda t: t.update(a=torch.ones(1), b=torch.ones(1)), r"model.safetensors has a and 1 more, which the model"),
        (lambda t: t[QUERY].__setitem__((3, 3), torch.nan), rf"{QUERY} values that are not finite in float32; fetch"),
        (lambda t: t["model.norm.weight"].fill_(-torch.inf), r"model.norm.weight values that are not finite"),
    ],
)
def test_weights_that_are_not_the_models(
    checkpoint: MakeCheckpoint, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = checkpoint("llama")
    edit(path, change)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_head_over_a_model_that_has_none(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    with pytest.raises(CheckpointError, match=r"model.safetensors has lm_head.weight, which the model"):
        load(path)


def test_weights_too_large_for_the_dtype(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("llama", dtype="bfloat16")
    edit(path, lambda t: t[QUERY].__setitem__((0, 0), 1e6))
    assert load(path).model.dtype == torch.float32
    with pytest.raises(CheckpointError, match=rf"{QUERY} values that are not finite in float16; .* a wider dtype"):
        load(path, dtype=torch.float16)


def test_weights_of_eight_bits_are_looked_at_too() -> None:
    module = torch.nn.Module()
    values = torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn)
    module.weight = torch.nn.Parameter(values, requires_grad=False)
    with pytest.raises(CheckpointError, match=r"here gives weight values that are not finite in float8_e4m3fn"):
        check_finite(Path("here"), module)


@pytest.mark.parametrize("name", ["score.weight", "model.pooler.dense.weight", "cls.predictions.bias"])
def test_heads_for_other_tasks_are_no_matter(checkpoint: MakeCheckpoint, name: str) -> None:
    path = checkpoint("llama")
    edit(path, lambda t: t.update({name: torch.ones(2)}))
    assert load(path).name == "llama"


def test_old_buffers_are_no_matter(checkpoint: MakeCheckpoint) -> None:
    gpt2, llama = checkpoint("gpt2"), checkpoint("llama")
    edit(gpt2, lambda t: t.update({f"transformer.h.0.attn.{n}": torch.ones(1) for n in ("bias", "masked_bias")}))
    edit(llama, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    edit(llama, lambda t: t.update({"model.embeddings.position_ids": torch.arange(4)}))
    assert (load(gpt2).name, load(llama).name) == ("gpt2", "llama")


@pytest.mark.parametrize("kept", [0, 4, 1000, -100])
def test_truncated_weights(checkpoint: MakeCheckpoint, kept: int) -> None:
    weights = checkpoint("llama") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(
        CheckpointError, match=r"the tensors of .*model.safetensors cannot be read \(SafetensorError: .*; fetch the f"
    ):
        load(weights.parent)


# --- weights in several files ---------------------------------------------------------------------

INDEX = "model.safetensors.index.json"


@pytest.fixture
def parts(checkpoint: MakeCheckpoint) -> Path:
    """Return a checkpoint in several files."""
    path = checkpoint("llama")
    model = transformers.LlamaForCausalLM.from_pretrained(path)
    (path / "model.safetensors").unlink()
    model.save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def second(path: Path) -> Path:
    return sorted(path.glob("*.safetensors"))[1]


def test_several_files_are_one_checkpoint(parts: Path) -> None:
    theirs = transformers.LlamaForCausalLM.from_pretrained(parts).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in load(parts).model.state_dict().items())


def test_a_file_of_several_that_is_missing(parts: Path) -> None:
    second(parts).unlink()
    with pytest.raises(CheckpointError, match=rf"{INDEX} names model-00002-of-.*, which is not there; fetch that file"):
        load(parts)


def test_a_file_of_several_that_is_truncated(parts: Path) -> None:
    second(parts).write_bytes(second(parts).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"the tensors of .*model-00002-of-\d*.safetensors cannot be read \("):
        load(parts)


def test_a_file_of_several_that_lacks_a_tensor(parts: Path) -> None:
    edit(parts, lambda t: t.pop(min(t)), second(parts).name)
    with pytest.raises(CheckpointError, match=rf"model-00002-of-.* lacks model\..*, which {INDEX} says it holds"):
        load(parts)


def test_a_file_of_several_is_named_for_what_it_holds(parts: Path) -> None:
    edit(parts, lambda t: t.update(stray=torch.ones(1)), second(parts).name)
    with pytest.raises(CheckpointError, match=r"model-00002-of-\d*.safetensors has stray, which the model"):
        load(parts)


@pytest.mark.parametrize("index", ["", "{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": null}'])
def test_an_index_that_is_none(parts: Path, index: str) -> None:
    (parts / INDEX).write_text(index)
    with pytest.raises(CheckpointError, match=rf"{INDEX} lists no tensors by file \(.*\); fetch the file again"):
        load(parts)


# --- weights that are put together ----------------------------------------------------------------

EXPERT = "model.layers.0.block_sparse_moe.experts.0.w1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(EXPERT), r"does not hold what model.layers.0.mlp.experts.gate_up_proj is made of: a tensor"),
        (lambda t: t.update({EXPERT: torch.ones(3, 3)}), r"does not hold what model.layers.0.mlp.experts.gate_up_p"),
        (lambda t: t[EXPERT].fill_(torch.nan), r"gives model.layers.0.mlp.experts.gate_up_proj values that are not"),
        (lambda t: [t.pop(n) for n in list(t) if ".experts." in n], r"lacks model.layers.0.mlp.experts.down_proj and"),
    ],
)
def test_experts_that_do_not_make_a_stack(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = transformers.MixtralConfig(**SHAPE, num_local_experts=2)
    path = save(transformers.MixtralForCausalLM(config), tmp_path / "mixtral")
    logger = logging.getLogger("transformers.modeling_utils")
    handlers = list(logger.handlers)
    assert load(path).name == "mixtral"
    edit(path, change)
    capfd.readouterr()
    with pytest.raises(CheckpointError, match=message):
        load(path)
    assert (logger.level, logger.propagate, logger.handlers) == (logging.NOTSET, True, handlers)
    assert capfd.readouterr() == ("", "")
