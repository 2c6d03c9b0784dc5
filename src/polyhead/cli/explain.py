"""`polyhead explain`: which kernel runs a spec, and why not the others."""

from __future__ import annotations

import json

import click

from polyhead.errors import UnsupportedError

SCHEMA = 1
DTYPES = ("float64", "float32", "bfloat16", "float16")


@click.command("explain")
@click.argument("spec")
@click.option("--q-len", type=click.IntRange(0), default=1, show_default=True, help="Number of queries.")
@click.option("--kv-len", type=click.IntRange(0), default=4096, show_default=True, help="Number of keys.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Dtype of the inputs.")
@click.option("--device", default="cpu", show_default=True, help="Where they are, such as cpu or cuda.")
@click.option("--grad", "needs_grad", is_flag=True, help="A gradient will be asked for.")
@click.option("--given-positions", is_flag=True, help="Positions are given, not implied.")
@click.option("--key-mask", is_flag=True, help="Some keys are masked.")
@click.option("--segments", is_flag=True, help="Sequences are packed.")
@click.option("--dropout", is_flag=True, help="Weights are dropped at random.")
@click.option("--weights", is_flag=True, help="The weights are asked for too.")
@click.option("--kernel", default="auto", show_default=True, help="Ask for one kernel; exit 1 if it refuses.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    spec: str,
    q_len: int,
    kv_len: int,
    dtype: str,
    device: str,
    needs_grad: bool,
    given_positions: bool,
    key_mask: bool,
    segments: bool,
    dropout: bool,
    weights: bool,
    kernel: str,
    as_json: bool,
) -> None:
    """Say which kernel runs a spec at given sizes, and why not the others.

    SPEC is a mechanism's name or number, MODEL:LAYER, or a JSON file.

    \b
    Examples:
      polyhead explain gqa --q-len 1 --kv-len 8192
      polyhead explain smollm2:0 --q-len 512 --kv-len 512 --grad
      polyhead explain alibi --kernel dense
    """
    from polyhead.cli.common import progress, read_spec
    from polyhead.errors import require_extra

    found = read_spec(spec)
    with progress("Importing torch"):
        require_extra("torch", "torch", "polyhead explain")
        require_extra("jaxtyping", "torch", "polyhead explain")
        import torch

        from polyhead.kernels import select
        from polyhead.kernels.common import Case

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise click.BadParameter(f"{device!r} is no device that torch knows", param_hint="--device") from None
    case = Case(
        spec=found,
        q_len=q_len,
        kv_len=kv_len,
        dtype=getattr(torch, dtype),
        device=kind,
        needs_grad=needs_grad,
        aligned=not given_positions,
        key_mask=key_mask,
        segments=segments,
        dropout=dropout,
        weights=weights,
    )
    refused = None
    try:
        select.choose(case, kernel)
    except UnsupportedError as error:
        refused = str(error)
    explanation = select.explain_case(case)
    if as_json:
        data = {"schema": SCHEMA, "kernel": explanation.kernel, "summary": explanation.summary}
        click.echo(json.dumps(data | {"others": explanation.others, "spec": found.to_data()}, indent=2))
    else:
        click.echo(str(explanation))
    if refused is not None:
        click.echo(f"polyhead: {refused}", err=True)
        click.get_current_context().exit(1)
