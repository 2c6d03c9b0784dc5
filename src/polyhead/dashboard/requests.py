"""What may be asked: the bodies of requests, with the bounds that keep any of them small."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

SCHEMAS = "#/components/schemas/"
"""Where the description for other programs keeps its schemas."""

MAX_CHARACTERS = 8192
"""Characters of a text that a model reads."""

MAX_SPECS = 8
"""Combinations of one's own in a comparison."""

MAX_LENGTH = 2**20
"""Queries or keys of a spec that is composed or explained."""

MAX_CONTEXT = 2**20
"""Tokens of a sequence that is planned for."""

Text = Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]
Word = Annotated[str, Meta(max_length=32)]
Whole = Annotated[int, Meta(ge=0, le=4096)]
Real = Annotated[float, Meta(ge=-1e4, le=1e4)]
Length = Annotated[int, Meta(ge=0, le=MAX_LENGTH)]
Context = Annotated[int, Meta(ge=1, le=MAX_CONTEXT)]
Count = Annotated[int, Meta(ge=1, le=65536)]
Data = dict[str, Any]
Storage = Annotated[Data, Meta(extra_json_schema={"$ref": f"{SCHEMAS}Storage"})]
Position = Annotated[Data, Meta(extra_json_schema={"$ref": f"{SCHEMAS}Position"})]
Pattern = Annotated[Data, Meta(extra_json_schema={"$ref": f"{SCHEMAS}Pattern"})]
Weighting = Annotated[Data, Meta(extra_json_schema={"$ref": f"{SCHEMAS}Weighting"})]
Spec = Annotated[Data, Meta(extra_json_schema={"$ref": f"{SCHEMAS}Spec"})]
Names = Annotated[list[Name], Meta(max_length=64)]
Token = Annotated[int, Meta(ge=-4096, le=4096)] | Annotated[str, Meta(max_length=256)]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]


class Request(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every request: a member that it does not have is an error."""


class ExampleSource(Request, tag_field="kind", tag="example"):
    """The textbook's shared example."""


class TextSource(Request, tag_field="kind", tag="text"):
    """A layer of the model that the dashboard was started with, reading a text.

    Attributes:
        text: What the model reads.
        second_text: What cross-attention (#4) attends to. Missing: it is left out.
        layer: Number of the layer, from 0.
        head: The query head that is shown.
        bare: Whether mechanisms are put into the textbook's form, not the model's own spec.
    """

    text: Text
    second_text: Text | None = None
    layer: Whole = 0
    head: Whole = 0
    bare: bool = False


class ArraysSource(Request, tag_field="kind", tag="arrays"):
    """Arrays that were sent to ``arrays``.

    Attributes:
        id: What that answered.
        head: The head that is shown.
    """

    id: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    head: Whole = 0


class Settings(Request):
    """The mechanisms' parameters; each that is missing is the source's default."""

    num_heads: Whole | None = None
    num_groups: Whole | None = None
    shared_head: Word | None = None
    bias_slope: Real | None = None
    rope_theta: Annotated[float, Meta(gt=1.0, le=1e12)] | None = None
    rope_pairs: Word | None = None
    rope_direction: Word | None = None
    alibi_slope: Real | None = None
    feature_map: Word | None = None
    window: Whole | None = None
    bigbird_radius: Whole | None = None
    bigbird_global: Whole | None = None
    bigbird_random: Annotated[int, Meta(ge=0, le=128)] | None = None
    bigbird_seed: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    tile: Whole | None = None
    lambda_init: Real | None = None
    differential_form: Word | None = None
    latent_rank: Whole | None = None


Source = ExampleSource | TextSource | ArraysSource


class Comparison(Request):
    """What mechanisms are compared on; every request about a comparison has it.

    Attributes:
        source: The input.
        settings: The mechanisms' parameters.
        specs: Combinations of one's own, by name, as the JSON form of a spec.
    """

    source: Source = field(default_factory=ExampleSource)
    settings: Settings = field(default_factory=Settings)
    specs: Annotated[dict[Name, Spec], Meta(max_length=MAX_SPECS)] = {}


class MatrixRequest(Comparison):
    """Whole matrices of weights, and outputs, of the mechanisms on one input.

    Attributes:
        mechanisms: Names of those to answer. Missing: all, and ``specs``.
    """

    mechanisms: Names | None = None


class CompareRequest(MatrixRequest):
    """One token's rows.

    Attributes:
        token: The token's position or its text. Missing: the source's default.
    """

    token: Token | None = None


class StagesRequest(Comparison, kw_only=True):
    """How one token's weights come about under one mechanism.

    Attributes:
        mechanism: The mechanism's name, or one of ``specs``.
        token: As of a comparison.
    """

    mechanism: Name
    token: Token | None = None


class Parts(Request):
    """The four choices, each as the JSON form of a spec has it.

    Attributes:
        storage: What is stored.
        position: How position enters.
        pattern: Which pairs may meet.
        weighting: How scores become weights.
    """

    storage: Storage
    position: Position = field(default_factory=lambda: {"type": "NoPosition"})
    pattern: Pattern = field(default_factory=lambda: {"type": "Band"})
    weighting: Weighting = field(default_factory=lambda: {"type": "Softmax"})


class ComposeRequest(Request):
    """Four choices: whether they are defined together, what runs them, and what they cost.

    Attributes:
        spec: The four choices.
        q_len: Number of queries.
        kv_len: Number of keys.
        dtype: Dtype of the inputs.
        device: Where they are.
        needs_grad: Whether a gradient will be asked for.
    """

    spec: Parts
    q_len: Length = 1
    kv_len: Length = 4096
    dtype: Dtype = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    needs_grad: bool = False


class ExplainRequest(ComposeRequest):
    """Which kernel runs a spec, and why not the others.

    Attributes:
        weights: Whether the weights are asked for too.
        key_mask: Whether some keys are masked.
        segments: Whether sequences are packed.
        dropout: Whether weights are dropped at random.
    """

    weights: bool = False
    key_mask: bool = False
    segments: bool = False
    dropout: bool = False


class PlanRequest(Request):
    """Which attention for a model, a context and a device.

    Attributes:
        model: A model of the catalogue.
        context: Tokens of each sequence. Missing: the model's own longest.
        batch: Number of sequences.
        device: A device of the catalogue. Missing: the machine that the server runs on.
        devices: Number of devices.
        task: What the model does. Missing: what it is for.
        written: Tokens that are written one by one. Missing: the task's.
        precision: The formats, such as ``bf16`` or ``weights=int4,cache=fp8``.
        optimise: What is made least. Missing: the task's.
        from_scratch: Whether the model is still to be trained.
        window: Tokens that a window holds, where one is tried.
    """

    model: Name
    context: Context | None = None
    batch: Count = 1
    device: Name | None = None
    devices: Annotated[int, Meta(ge=1, le=1024)] = 1
    task: Word | None = None
    written: Context | None = None
    precision: Annotated[str, Meta(max_length=128)] | None = None
    optimise: Word | None = None
    from_scratch: bool = False
    window: Context = 4096


class FitsRequest(PlanRequest, kw_only=True):
    """How long a context, or how large a batch, fits.

    Attributes:
        asked: Which of the two.
    """

    asked: Literal["context", "batch"]


class State(Struct, kw_only=True):
    """What the page shows, as far as it is asked; the page adds what concerns itself alone.

    Attributes:
        screen: Which of its screens.
        token: Position of the query token. Missing: the source's default.
        matrix: What is compared.
        compose: The spec that is composed.
        plan: What is planned.
        mechanism: The mechanism that is explained.
    """

    screen: Literal["compare", "matrix", "compose", "plan", "measure", "learn"]
    token: Annotated[int, Meta(ge=0, le=4096)] | None = None
    matrix: Comparison
    compose: ComposeRequest
    plan: PlanRequest
    mechanism: Name


class ExportRequest(Request):
    """The page as one file.

    Attributes:
        state: What the page shows, as it has it itself.
    """

    state: Data
