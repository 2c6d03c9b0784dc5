"""Which of transformers' decoders run with ``attn_implementation="polyhead"``, for docs/families.md.

``python scripts/families.py`` builds each small, with random weights, once with transformers' own eager attention and
once with ours, and compares their logits and what they write. With names of model types it prints these alone.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS

from polyhead.errors import UnsupportedError
from polyhead.hf import check, register
from polyhead.hf.register import NAME

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"

SAME, REFUSED, ITSELF, NOT_BUILT, DIFFERENT = "same", "refused", "by itself", "not built", "DIFFERENT"
MEANS = {
    SAME: "its logits and its text are those of transformers' own attention",
    REFUSED: "it asks for something that no spec says, and polyhead says so when the model runs",
    ITSELF: "its modules call no attention function that one can choose; `polyhead.hf.check` or transformers says so",
    NOT_BUILT: "it could not be built small, or did not run by itself, so nothing is known here",
    DIFFERENT: "a fault",
}

INTRO = """\
`polyhead.hf.register()` lets transformers' models call polyhead for their attention, and this page says which of its
decoders do. Each model type that transformers knows as a decoder is built small, with random weights, once with
`attn_implementation="eager"` and once with `"polyhead"`. Compared are the logits of two texts, the same with padding at
the left of one, and the tokens that greedy search then writes, with a cache. [Run your model on
polyhead](run-your-model.md) says how it is used, and which types `polyhead.hf.adopt` takes, some of those among them
that attend by themselves."""

TOKENS, NEW = 24, 8
TOLERANCE = 1e-4  # of the largest logit; what is measured is float32's rounding, about a tenth of it at most
MOST_PARAMETERS = 20_000_000

SIZES: Mapping[int, str] = {
    0: "pad_token_id num_kv_shared_layers",
    1: "bos_token_id decoder_start_token_id n_shared_experts n_group topk_group first_k_dense_replace moe_layer_freq "
    "attn_layer_offset",
    2: "eos_token_id num_key_value_heads num_kv_heads linear_num_key_heads num_experts_per_tok moe_topk top_k depth "
    "attn_layer_period",
    4: "num_hidden_layers num_layers n_layer n_layers decoder_layers encoder_layers "
    "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "linear_num_value_heads num_experts num_local_experts n_routed_experts qk_rope_head_dim patch_size",
    5: "sliding_window attention_chunk_size",
    8: "head_dim rotary_dim qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim mamba_n_heads "
    "mamba_num_heads hidden_size_per_layer_input",
    16: "q_lora_rank kv_lora_rank moe_intermediate_size shared_expert_intermediate_size image_size",
    32: "hidden_size n_embd d_model embedding_size embed_dim",
    48: "intermediate_size d_ff n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size",
    64: "vocab_size vocab_size_per_layer_input max_position_embeddings n_positions n_ctx max_seq_len",
}
"""What a small model's config has, of the fields that its type knows."""
SMALL: Mapping[str, Any] = {
    **{name: size for size, names in SIZES.items() for name in names.split()},
    "is_decoder": True,
    "attn_logit_softcapping": 1.5,
    "query_pre_attn_scalar": 5,
    "attn_layer_indices": [1],
    "default_language": "en_XX",
}
LATENT: Mapping[str, Any] = {"num_key_value_heads": 4, "head_dim": 4, "qk_head_dim": 12}
"""What it has instead if it has a latent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one family.

    Attributes:
        family: Its model type.
        result: One of the words in `MEANS`.
        reason: Why, where it is not the same.
    """

    family: str
    result: str
    reason: str = ""


class NotBuilt(Exception):  # noqa: N818 - no fault of anything here
    """A family cannot be built small, or does not run by itself."""


def examine(family: str) -> Outcome:
    """Run one family with transformers' attention and with ours.

    Args:
        family: A model type that transformers knows as a decoder.

    Returns:
        What came of it.
    """
    register()
    try:
        with quiet():
            result, reason = compare(family)
    except NotBuilt as error:
        result, reason = NOT_BUILT, str(error)
    return Outcome(family=family, result=result, reason=shortened(reason))


def compare(family: str) -> tuple[str, str]:
    """Return a family's result and the reason."""
    config = small_config(family)
    theirs = build(config, "eager")
    try:
        expected = run(theirs)
    except Exception as error:  # whatever a model of transformers raises
        raise NotBuilt(f"its own attention fails on it: {named(error)}") from error
    try:
        ours = build(config, NAME)
        ours.load_state_dict(theirs.state_dict())
        check(ours)
    except NotBuilt as error:
        return ITSELF, f"transformers makes no module for another attention: {error}"
    except UnsupportedError as error:
        return ITSELF, str(error)
    try:
        with counted() as calls:
            found = run(ours)
    except UnsupportedError as error:
        return REFUSED, str(error)
    if not calls:
        return DIFFERENT, "the attention function was never called"
    if fault := difference(found, expected):
        # where a layer mixes tokens and knows no padding, what a query gets that sees no key reaches other queries
        if theirs._supports_sdpa and not difference(found, run(build(config, "sdpa"))):
            return SAME, f"as with transformers' SDPA; with its eager attention {fault}"
        return DIFFERENT, fault
    return SAME, ""


def small_config(family: str) -> Any:
    """Return a config of few parameters."""
    try:
        return CONFIG_MAPPING[family](**small_fields(CONFIG_MAPPING[family]))
    except Exception as error:
        raise NotBuilt(named(error)) from error


def small_fields(kind: type) -> dict[str, Any]:
    """Return what of `SMALL` a config knows, and the same for the configs inside it."""
    usual = kind()
    known = {name: value for name, value in SMALL.items() if knows(usual, name)}
    if "kv_lora_rank" in known:
        known |= {name: value for name, value in LATENT.items() if knows(usual, name)}
    for name in usual.sub_configs:
        if (inner := getattr(usual, name, None)) is not None:
            known[name] = small_fields(type(inner))
    return known


def knows(config: Any, name: str) -> bool:
    """Whether a config has a field of that name that can be given."""
    if isinstance(getattr(type(config), name, None), property):
        return False
    try:
        return hasattr(config, name)
    except RuntimeError:  # a field that each of its layers may have
        return True


def build(config: Any, implementation: str) -> Any:
    """Return a new model with weights under which attention is far from even."""

    def make() -> Any:
        given = copy.deepcopy(config)  # which keeps the implementation
        return transformers.AutoModelForCausalLM.from_config(given, attn_implementation=implementation)

    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in make().parameters())
        if size > MOST_PARAMETERS:
            raise NotBuilt(f"it has {size / 1e6:.0f} million parameters, whatever small sizes its config is given")
        torch.manual_seed(0)
        model = make().eval()
    except NotBuilt:
        raise
    except Exception as error:
        raise NotBuilt(named(error)) from error
    draw(model)
    return model


def draw(model: nn.Module) -> None:
    """Draw the weights of projections and embeddings anew, so that scores are about 1."""
    numbers = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | transformers.Conv1D):
            inputs = module.weight.shape[isinstance(module, nn.Linear)]
            size = 1.0 if isinstance(module, nn.Embedding) else inputs**-0.5
            module.weight.data.copy_(size * torch.randn(module.weight.shape, generator=numbers))


@torch.no_grad()
def run(model: Any) -> dict[str, Tensor]:
    """Return a model's logits without and with padding at the left, and the tokens that it writes after that."""
    numbers = torch.randint(3, SMALL["vocab_size"], (2, TOKENS), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(numbers)
    mask[0, : TOKENS // 6] = 0
    given = {"input_ids": numbers, "attention_mask": mask}
    outputs = {"logits": model(input_ids=numbers).logits, "padded logits": model(**given).logits[mask.bool()]}
    for name, logits in outputs.items():
        if not logits.isfinite().all():
            raise ArithmeticError(f"its {name} are not finite")
    asked = {"min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return outputs | {"text": model.generate(**given, **asked)}


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return what differs, or nothing."""
    for name in ("logits", "padded logits"):
        apart = (found[name] - expected[name]).abs().max() / expected[name].abs().max()
        if not apart <= TOLERANCE:
            return f"its {name} are {apart:.0e} of the largest apart"
    return "" if torch.equal(found["text"], expected["text"]) else "it writes another text"


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count what attention modules call of ours."""
    calls: Counter[str] = Counter()
    function = AttentionInterface._global_mapping[NAME]

    def counting(module: Any, *args: Any, **kwargs: Any) -> Any:
        calls[type(module).__name__] += 1
        return function(module, *args, **kwargs)

    AttentionInterface.register(NAME, counting)
    try:
        yield calls
    finally:
        AttentionInterface.register(NAME, function)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what models say of configs that nobody would choose."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)


def named(error: Exception) -> str:
    """Return an error's type and message."""
    return f"{type(error).__name__}: {error}"


def shortened(reason: str, most: int = 160) -> str:
    """Return a reason in one line of a table: its first sentence or half sentence, if that is not too long."""
    line = " ".join(reason.split()).replace("|", r"\|").partition("; use ")[0]
    return line if len(line) <= most else line[:most].rsplit(" ", 1)[0] + " …"


def page(outcomes: Iterable[Outcome]) -> str:
    """Return docs/families.md."""
    rows = list(outcomes)
    counts = Counter(outcome.result for outcome in rows)
    means = [f"- {counts[result]} **{result}**: {meaning}." for result, meaning in MEANS.items() if counts[result]]
    table = [f"| `{outcome.family}` | {outcome.result} | {outcome.reason} |" for outcome in rows]
    parts = [
        "# Families",
        f"*Made by `python scripts/{Path(__file__).name}` with transformers {transformers.__version__}; do not edit.*",
        INTRO,
        "\n".join(means),
        "\n".join(["| model type | result | why |", "|---|---|---|", *table]),
    ]
    return "\n\n".join(parts) + "\n"


def main(families: list[str]) -> int:
    """Write the page, or print the outcomes of the families named; return the exit code."""
    outcomes = []
    for family in families or DECODERS:
        outcomes.append(examine(family))
        print(*dataclasses.astuple(outcomes[-1]), sep="  ", file=sys.stderr, flush=True)
    if not families:
        PAGE.write_text(page(outcomes), encoding="utf-8")
    return int(any(outcome.result == DIFFERENT for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
