"""What the page shows at first: a state, whose parts are the bodies that are sent."""

from __future__ import annotations

from typing import Any

from polyhead.spec import AttentionSpec, Causal, Grouped, Rotary
from polyhead.spec.composed import parts_of


def defaults() -> dict[str, Any]:
    """Return the state in which the page begins where nobody says otherwise."""
    return {
        "screen": "compare",
        "token": None,
        "matrix": {"source": {"kind": "example"}, "settings": {}, "specs": {}},
        "compose": {
            "spec": parts_of(
                AttentionSpec(
                    storage=Grouped(num_heads=32, num_kv_heads=8, head_dim=128),
                    position=Rotary(theta=500_000.0),
                    pattern=Causal(),
                )
            ),
            "q_len": 1,
            "kv_len": 4096,
            "dtype": "bfloat16",
            "device": "cpu",
            "needs_grad": False,
        },
        "plan": {"model": "llama-3.1-8b", "context": 131_072, "batch": 1, "device": "rtx-4090", "devices": 1},
        "mechanism": "scaled-dot-product",
    }
