"""What was published about the quality of each option: a figure beside its reference's, and where it stands.

A planner can count bytes and operations. What a mechanism costs in quality it can only quote, so every figure here is
one that somebody measured and printed; what nobody has is said to be not measured.
"""

from __future__ import annotations

import dataclasses

CHOICES = ("storage", "position", "pattern", "weighting")

Option = tuple[str, str]
"""A choice and a kind of what it can be, such as ``("storage", "gqa")``."""

REFERENCE: frozenset[Option] = frozenset(
    {
        ("storage", "mha"),
        ("position", "rope"),
        ("pattern", "causal"),
        ("pattern", "full"),
        ("weighting", "softmax"),
    }
)
"""What the others are measured against: multi-head attention with RoPE over all pairs, by softmax."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """A published comparison.

    Attributes:
        option: What was measured.
        domain: On what: ``"language"``, ``"masked language"``, ``"translation"``, ``"retrieval"`` or ``"speech"``.
        what: What the figures are.
        reference: The figure without it. None: the source prints none to set beside.
        found: The figure with it.
        higher_is_better: Whether more is better.
        source: Paper and table.
        converted: Whether trained weights were converted, and not trained further. Else it was trained with it.
        no_change: Whether the source shows a curve in which nothing changes, and prints no figure.
    """

    option: Option
    domain: str
    what: str
    reference: float | None = None
    found: float | None = None
    higher_is_better: bool = True
    source: str
    converted: bool = False
    no_change: bool = False

    @property
    def loss(self) -> float | None:
        """What is lost, as a part of the reference's figure; 0 where something is gained. None: not told."""
        if self.no_change:
            return 0.0
        if self.reference is None or self.found is None:
            return None
        lost = self.reference - self.found if self.higher_is_better else self.found - self.reference
        return max(0.0, lost / self.reference)

    def __str__(self) -> str:
        if self.reference is not None and self.found is not None:
            return f"{self.what}, {self.reference:g} to {self.found:g} ({self.source})"
        return f"{self.what}{'' if self.found is None else f': {self.found:g}'} ({self.source})"


_GQA = "Ainslie et al. 2023, arXiv 2305.13245, table 1"
_MLA = "DeepSeek-AI 2024, arXiv 2405.04434"
_ALIBI = "Press et al. 2022, arXiv 2108.12409, table 5"
_DIFFERENTIAL = "Ye et al. 2024, arXiv 2410.05258"
_SINKS = "Xiao et al. 2024, arXiv 2309.17453, table 1"

EVIDENCE: tuple[Evidence, ...] = (
    Evidence(
        option=("storage", "gqa"),
        domain="language",
        what="T5-XXL with 8 groups, average over its tasks",
        reference=47.2,
        found=47.1,
        source=_GQA,
    ),
    Evidence(
        option=("storage", "gqa"),
        domain="language",
        what="a dense model of 7B with 8 groups, MMLU",
        reference=45.2,
        found=41.2,
        source=f"{_MLA}, table 8",
    ),
    Evidence(
        option=("storage", "mqa"),
        domain="language",
        what="T5-XXL, average over its tasks",
        reference=47.2,
        found=46.6,
        source=_GQA,
    ),
    Evidence(
        option=("storage", "mqa"),
        domain="language",
        what="a dense model of 7B, MMLU",
        reference=45.2,
        found=37.9,
        source=f"{_MLA}, table 8",
    ),
    Evidence(
        option=("storage", "mla"),
        domain="language",
        what="a mixture of experts of 16B, MMLU",
        reference=48.7,
        found=50.0,
        source=f"{_MLA}, table 9",
    ),
    Evidence(
        option=("storage", "mla"),
        domain="language",
        what="the same, C-Eval",
        reference=51.6,
        found=50.9,
        source=f"{_MLA}, table 9",
    ),
    Evidence(
        option=("storage", "mla"),
        domain="language",
        what="Llama-3-8B converted to 512 + 64 and not trained further, perplexity",
        reference=6.1371,
        found=25.8047,
        higher_is_better=False,
        source="TransMLA's model zoo",
        converted=True,
    ),
    Evidence(
        option=("position", "alibi"),
        domain="language",
        what="WikiText-103 at 3,072 tokens, perplexity against RoPE's",
        reference=18.57,
        found=17.60,
        higher_is_better=False,
        source=_ALIBI,
    ),
    Evidence(
        option=("position", "t5"),
        domain="language",
        what="WikiText-103 at 3,072 tokens, perplexity against RoPE's",
        reference=18.57,
        found=18.01,
        higher_is_better=False,
        source=_ALIBI,
    ),
    Evidence(
        option=("position", "shaw"),
        domain="translation",
        what="WMT14 English to German, BLEU against sinusoids",
        reference=26.5,
        found=26.8,
        source="Shaw et al. 2018, arXiv 1803.02155, table 1",
    ),
    Evidence(
        option=("position", "none"),
        domain="language",
        what="1.3B on the Pile, perplexity against sinusoids",
        reference=12.93,
        found=13.10,
        higher_is_better=False,
        source="Haviv et al. 2022, arXiv 2203.16634, table 1",
    ),
    Evidence(
        option=("pattern", "mostly-window"),
        domain="language",
        what="up to seven layers in eight with a window of 1,024: no change of perplexity to be seen",
        source="Gemma 3 report, arXiv 2503.19786, figures 3 and 4",
        no_change=True,
    ),
    Evidence(
        option=("pattern", "window-first"),
        domain="language",
        what="Llama-2-13B as it is, whose perplexity in a window alone is 5,158",
        found=5.40,
        source=_SINKS,
        converted=True,
    ),
    Evidence(
        option=("pattern", "window"),
        domain="masked language",
        what="Longformer, bits for each character, against RoBERTa's on 512 tokens",
        reference=1.846,
        found=1.705,
        higher_is_better=False,
        source="Zaheer et al. 2020, arXiv 2007.14062, table 10",
    ),
    Evidence(
        option=("pattern", "bigbird"),
        domain="masked language",
        what="bits for each character, against RoBERTa's on 512 tokens",
        reference=1.846,
        found=1.678,
        higher_is_better=False,
        source="Zaheer et al. 2020, arXiv 2007.14062, table 10",
    ),
    Evidence(
        option=("weighting", "linear"),
        domain="speech",
        what="phonemes wrong on WSJ",
        reference=5.12,
        found=8.08,
        higher_is_better=False,
        source="Katharopoulos et al. 2020, arXiv 2006.16236, table 3",
    ),
    Evidence(
        option=("weighting", "differential"),
        domain="language",
        what="3B after 350B tokens, average of zero-shot tasks",
        reference=55.4,
        found=56.2,
        source=f"{_DIFFERENTIAL}, table 8",
    ),
    Evidence(
        option=("weighting", "softmax"),
        domain="retrieval",
        what="two of six needles in 4K tokens, accuracy against differential weighting's",
        reference=0.85,
        found=0.55,
        source=f"{_DIFFERENTIAL}, table 2",
    ),
    Evidence(
        option=("weighting", "differential"),
        domain="retrieval",
        what="two of six needles in 4K tokens, accuracy against softmax",
        reference=0.55,
        found=0.85,
        source=f"{_DIFFERENTIAL}, table 2",
    ),
)
"""Of each option and domain the source that introduced it comes first, and that is the one that counts."""

CONVERSIONS: dict[Option, str] = {
    ("storage", "gqa"): "key/value heads averaged, then 5 % of the training again (arXiv 2305.13245, section 2.1)",
    ("storage", "mqa"): "key/value heads averaged, then 5 % of the training again (arXiv 2305.13245, section 2.1)",
    ("storage", "mla"): "keys and values factored (TransMLA, arXiv 2502.07864)",
}
"""How trained weights become those of another option, where somebody published how."""

AS_IT_IS: frozenset[Option] = frozenset({("pattern", "window-first")})
"""What trained weights take without any training."""

EXTENSION = "a scaling of RoPE and some training (YaRN takes 400 steps, arXiv 2309.00071, section 4)"


def found_for(option: Option, domains: tuple[str, ...], *, converted: bool = False) -> tuple[Evidence, ...]:
    """Return what was published about an option.

    Args:
        option: The option.
        domains: What counts as evidence, the nearest first.
        converted: Whether trained weights are converted to it, where that was measured; else it is trained with it.

    Returns:
        The evidence, that which counts first.
    """
    of_it = [one for one in EVIDENCE if one.option == option and one.converted == converted]
    if converted and not of_it:  # a recipe that trains further was measured after that
        return found_for(option, domains)
    for domain in domains:
        if in_domain := tuple(one for one in of_it if one.domain == domain):
            return in_domain
    return ()
