"""What each mechanism costs on this machine, beside its peers: `polyhead bench`.

::

    from polyhead import bench

    record = bench.run(["window", "alibi-causal"], threads=2)
    print(record.to_markdown())
"""

from polyhead.bench.case import Case, Target
from polyhead.bench.cases import CASES, case
from polyhead.bench.ceilings import Ceilings, measure_ceilings
from polyhead.bench.harness import Interrupted, run
from polyhead.bench.records import Record, Row

__all__ = [
    "CASES",
    "Case",
    "Ceilings",
    "Interrupted",
    "Record",
    "Row",
    "Target",
    "case",
    "measure_ceilings",
    "run",
]
