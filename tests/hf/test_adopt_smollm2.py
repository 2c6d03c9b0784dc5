"""SmolLM2-135M adopted: what it writes, and from which logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyhead.errors import CheckpointError
from polyhead.hf import adopt, locate, release

pytestmark = [pytest.mark.model, pytest.mark.slow]

TEXTS = [
    "The cat sat on the mat because",
    "Once upon a time, in a village at the foot of a mountain, there lived an old woman who",
    "2 + 2 =",
    "The three laws of thermodynamics are",
]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """Return the model with its head, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    try:
        path = locate("smollm2")
    except CheckpointError as error:
        pytest.skip(str(error))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), tokenizer


def written(loaded: tuple[Any, Any], texts: list[str], **asked: Any) -> tuple[list[str], list[str], float]:
    """Return what the model writes by its own attention and by ours, and how far the logits are apart."""
    model, tokenizer = loaded
    given = tokenizer(texts, return_tensors="pt", padding=True)
    asked |= {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    theirs = model.generate(**given, **asked)
    adopt(model)
    try:
        ours = model.generate(**given, **asked)
    finally:
        release(model)
    apart = (torch.stack(ours.logits) - torch.stack(theirs.logits)).abs().max().item()
    return tokenizer.batch_decode(theirs.sequences), tokenizer.batch_decode(ours.sequences), apart


@pytest.mark.parametrize("cache", [None, "static"], ids=["dynamic", "static"])
@pytest.mark.parametrize(
    ("count", "asked"),
    [
        (1, {"min_new_tokens": 200, "max_new_tokens": 200}),
        (4, {"max_new_tokens": 40}),
        (2, {"max_new_tokens": 20, "num_beams": 3}),
    ],
    ids=["two hundred tokens", "four texts padded at the left", "beams"],
)
def test_it_writes_the_same_from_the_same_logits(
    loaded: tuple[Any, Any], count: int, asked: dict[str, Any], cache: str | None
) -> None:
    theirs, ours, apart = written(loaded, TEXTS[:count], cache_implementation=cache, **asked)
    assert ours == theirs
    assert apart <= 1e-3  # logits reach 20, and 30 layers round
