"""Answers about the fifteen on one input: whole matrices, one token's rows, and how these come about."""

from __future__ import annotations

from typing import Any

from polyhead.compare import AttentionComparison
from polyhead.compare.matrices import matrices
from polyhead.compare.stages import stages as stages_of
from polyhead.dashboard.bounds import computed
from polyhead.dashboard.requests import CompareRequest, Comparison, MatrixRequest, StagesRequest
from polyhead.dashboard.sources import Sources


def matrix(request: MatrixRequest, sources: Sources) -> bytes:
    """Answer with whole matrices; see `polyhead.compare.matrices.matrices` for their form."""
    comparison = comparison_of(request, sources)
    return computed(lambda: matrices(comparison, request.mechanisms))


def compare(request: CompareRequest, sources: Sources) -> dict[str, Any]:
    """Answer with one token's rows; see `polyhead.compare.Table.to_data` for their form."""
    comparison = comparison_of(request, sources)
    return computed(lambda: comparison.table(request.token, names=request.mechanisms)).to_data()


def stages(request: StagesRequest, sources: Sources) -> dict[str, Any]:
    """Answer how one token's weights come about; see `polyhead.compare.stages.stages` for their form."""
    comparison = comparison_of(request, sources)
    return computed(lambda: stages_of(comparison, request.mechanism, request.token))


def comparison_of(request: Comparison, sources: Sources) -> AttentionComparison:
    """Return the comparison that a request is about; raises as `Sources.comparison` does."""
    return computed(lambda: sources.comparison(request))
