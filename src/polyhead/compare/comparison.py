"""One class that runs all fifteen on the same input and shows that they differ."""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from polyhead.catalog import TEXTBOOK, Settings, mechanism, mechanisms
from polyhead.compare import engine as engines
from polyhead.compare.differences import Difference, difference
from polyhead.compare.inputs import (
    Array,
    Fitted,
    Inputs,
    array_inputs,
    check_size,
    checked_head,
    example_inputs,
    fit,
    fit_mechanism,
)
from polyhead.compare.table import Row, Table, View
from polyhead.errors import ShapeError, SpecError, UnknownNameError, UnsupportedError, unknown_name
from polyhead.spec import AttentionSpec


class AttentionComparison:
    """The fifteen mechanisms on one input.

    Without arguments the input is the textbook's shared example. Each mechanism is put into the input's base
    spec (full, position-free softmax attention; on a real model, the model's own) and differs from it in what it
    changes alone. Everything is computed in float64.

    ::

        AttentionComparison().table(token="cat")["differential"].output

    Args:
        query: ``[len, width]`` or ``[heads, len, width]``. None: the shared example.
        key: ``[len, width]`` or ``[kv_heads, len, width]``.
        value: ``[len, v_width]`` or ``[kv_heads, len, v_width]``.
        tokens: A name for each position. None: their numbers.
        cross_query: A decoder's queries, for #4, which is left out without them.
        num_heads: Heads that a single head's width is split into, for #2, #5 and #6; settings, if given, say it.
        engine: ``"numpy"`` (the oracle) or ``"torch"`` (the kernels).
        head: Which head's rows to show, where there are several.
        settings: The mechanisms' parameters. None: the textbook's for the example, defaults otherwise.

    Raises:
        ShapeError: If the arrays are empty, not finite, too long, or do not fit each other or the heads.
        UnknownNameError: If the engine or the head does not exist.
        MissingExtraError: If the engine's package is not installed.
    """

    def __init__(
        self,
        query: ArrayLike | None = None,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        tokens: Iterable[str] | None = None,
        cross_query: ArrayLike | None = None,
        num_heads: int = 2,
        engine: str = "numpy",
        head: int = 0,
        settings: Settings | None = None,
    ) -> None:
        given = [array is not None for array in (query, key, value)]
        if any(given) and not all(given):
            raise ShapeError("give query, key and value together, or none of them for the shared example")
        if query is None or key is None or value is None:
            if tokens is not None or cross_query is not None:
                raise ShapeError("tokens and cross_query go with query, key and value; the shared example has its own")
            inputs, title, default = example_inputs(), "shared example", TEXTBOOK
        else:
            inputs, title, default = array_inputs(query, key, value, tokens, cross_query), "own arrays", Settings()
        chosen = settings or dataclasses.replace(default, num_heads=num_heads)
        self._set(inputs, title=title, settings=chosen, engine=engine, head=head)

    def _set(self, inputs: Inputs, *, title: str, settings: Settings, engine: str, head: int) -> None:
        engines.check_engine(engine)
        check_size(inputs)
        if settings.num_heads < 1:
            raise ShapeError(f"num_heads={settings.num_heads} is no number of heads; give 1 or more")
        self.inputs = inputs
        self.title = title
        self.settings = settings
        self.engine = engine
        self.head = checked_head(self.inputs, head)
        self._added: list[str] = []
        self._results: dict[str, engines.Result] = {}

    @classmethod
    def from_model(
        cls,
        model: Any,
        text: str,
        *,
        layer: int = 0,
        head: int = 0,
        second_text: str | None = None,
        bare: bool = False,
        engine: str = "numpy",
        settings: Settings | None = None,
    ) -> Self:
        """Compare on the queries, keys and values of a layer of a real language model reading a text.

        The model's own mechanism is run exactly; the others are a what-if on frozen weights: they say what the
        arithmetic does to these heads, and nothing about a model trained so.

        Args:
            model: A checkpoint directory, a GGUF file, the name ``"smollm2"``, or what `polyhead.hf.load` returned.
            text: What the model reads.
            layer: Number of the layer, from 0.
            head: The query head whose rows are shown; all run.
            second_text: A text whose keys and values #4 attends to. None: #4 is left out.
            bare: Whether to put the mechanisms into the textbook's form (full, no position, softmax) instead of
                the model's own spec.
            engine: ``"numpy"`` or ``"torch"``.
            settings: The mechanisms' parameters. None: the defaults.

        Returns:
            The comparison.

        Raises:
            CheckpointError: If the model is missing or broken.
            UnsupportedError: If the model's attention is not one that specs can express.
            MissingExtraError: If torch or transformers is not installed.
        """
        from polyhead.compare.from_model import model_inputs

        engines.check_engine(engine)
        inputs, title = model_inputs(model, text, layer=layer, second_text=second_text, bare=bare)
        return cls.from_inputs(inputs, title=title, settings=settings, engine=engine, head=head)

    @classmethod
    def from_inputs(
        cls,
        inputs: Inputs,
        *,
        title: str,
        settings: Settings | None = None,
        engine: str = "numpy",
        head: int = 0,
    ) -> Self:
        """Compare on inputs that are already at hand, such as a model's that were read once.

        Args:
            inputs: The inputs, from `polyhead.compare.inputs` or `polyhead.compare.from_model`.
            title: What they are.
            settings: The mechanisms' parameters. None: the defaults.
            engine: ``"numpy"`` or ``"torch"``.
            head: Which head's rows to show, where there are several.

        Returns:
            The comparison.

        Raises:
            ShapeError: If the inputs are too long.
            UnknownNameError: If the engine or the head does not exist.
            MissingExtraError: If the engine's package is not installed.
        """
        comparison = cls.__new__(cls)
        comparison._set(inputs, title=title, settings=settings or Settings(), engine=engine, head=head)
        return comparison

    def at_head(self, head: int) -> Self:
        """Return the same comparison, of which another head is shown; what has run is shared.

        Args:
            head: The head.

        Returns:
            The comparison.

        Raises:
            UnknownNameError: If the head does not exist.
        """
        other = copy.copy(self)
        other.head = checked_head(self.inputs, head)
        return other

    @property
    def names(self) -> tuple[str, ...]:
        """What can be asked for: the fifteen in the textbook's order, then what was added."""
        return (*(entry.name for entry in mechanisms()), *self._added)

    @property
    def is_single(self) -> bool:
        """Whether the input is one head, which mechanisms may split, and not several of which one is shown."""
        return len(self.inputs.query) == 1

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens, one per position."""
        return self.inputs.tokens

    def add(self, name: str, spec: AttentionSpec, params: Mapping[str, ArrayLike] | None = None) -> Self:
        """Add a combination of one's own to the comparison.

        Args:
            name: A name that no mechanism has.
            spec: The spec; its heads and widths must be made from the input's by splitting, sharing, halving
                (differential) or compressing (latent).
            params: The learned tensors named by ``spec.parameter_shapes()``.

        Returns:
            The comparison itself.

        Raises:
            SpecError: If the name is taken.
            ShapeError: If the input cannot be given the spec's shapes, or a learned tensor is missing.
        """
        if name in self._added or any(name == entry.name for entry in mechanisms()):
            raise SpecError(f"{name!r} is taken; give your combination another name")
        arrays = {key: np.asarray(array, np.float64) for key, array in (params or {}).items()}
        fitted = fit(spec, self.inputs, self.settings, arrays)
        if missing := [key for key in spec.parameter_shapes() if key not in fitted.params]:
            raise ShapeError(
                f"{name!r} learns {missing[0]!r} of shape {list(spec.parameter_shapes()[missing[0]])}; give params="
            )
        self._results[name] = self._run(fitted)  # run now, so that what cannot run is not added
        self._added.append(name)
        return self

    def position(self, token: str | int | None = None) -> int:
        """Return a token's position.

        Args:
            token: Its position, or its text, with or without the tokenizer's mark of a leading space. None: that of
                the token whose row is shown where none is asked for.

        Returns:
            The position, from 0.

        Raises:
            UnknownNameError: If there is no such token, or several.
        """
        count = len(self.tokens)
        if token is None:
            token = self.inputs.token
        if not isinstance(token, str):
            number = operator.index(token)
            if not -count <= number < count:
                raise UnknownNameError(f"there is no token {number}; positions run from 0 to {count - 1}")
            return number % count
        found = [i for i, t in enumerate(self.tokens) if t == token]
        found = found or [i for i, t in enumerate(self.tokens) if t.lstrip(" Ġ▁") == token]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownNameError(f"{token!r} stands at positions {', '.join(map(str, found))}; give one of them")
        if token.lstrip("-").isdecimal():
            return self.position(int(token))
        raise unknown_name("token", token, self.tokens[:40])

    def known(self, name: str | int) -> str:
        """Return the name that a mechanism, by whatever name or number, or an added combination goes by here."""
        return str(name) if name in self._added else mechanism(name).name

    def run(self, name: str | int, token: str | int | None = None) -> Row:
        """Run one mechanism, or one's own combination, and return a token's row.

        Args:
            name: The mechanism's name, alias or number, or the name of an added combination.
            token: The token. None: the example's "cat", elsewhere the last one.

        Returns:
            The row.

        Raises:
            UnknownNameError: If there is no such mechanism or token.
            PolyheadError: If this input cannot take the mechanism; the message says why.
        """
        return self._row(self.known(name), self.position(token))

    def table(self, token: str | int | None = None, *, names: Iterable[str | int] | None = None) -> Table:
        """Run everything, or what is named, and return one token's rows.

        Args:
            token: The token. None: the example's "cat", elsewhere the last one.
            names: Mechanisms and added combinations to run, as in `run`. None: all of them.

        Returns:
            The table, in the textbook's order. Without ``names``, what this input cannot take is listed in
            ``absent`` with its reason.

        Raises:
            UnknownNameError: If there is no such token, or nothing of a name.
            PolyheadError: If this input cannot take what is named; the message says why.
        """
        position = self.position(token)
        wanted = None if names is None else {self.known(name) for name in names}
        rows: list[Row] = []
        absent: dict[str, str] = {}
        for name in self.names:
            if wanted is not None and name not in wanted:
                continue
            try:
                rows.append(self._row(name, position))
            except (SpecError, ShapeError, UnsupportedError) as error:
                if wanted is not None:
                    raise
                absent[name] = str(error)
        title = self.title if self.is_single else f"{self.title}, head {self.head}"
        return Table(token=self.tokens[position], position=position, rows=tuple(rows), absent=absent, title=title)

    def differences(self, token: str | int | None = None) -> list[Difference]:
        """Return how every pair of mechanisms differs for a token, and where it does not, why it should not."""
        return [difference(first, second) for first, second in combinations(self.table(token), 2)]

    def result(self, name: str | int) -> engines.Result:
        """Return one mechanism's whole result: all heads, all tokens."""
        known = self.known(name)
        if known not in self._results:
            entry = mechanism(known)
            fitted = fit_mechanism(entry, self.inputs, self.settings)
            self._results[known] = self._run(fitted, self.settings.tile if entry.is_tiled else None)
        return self._results[known]

    def view(self, name: str | int) -> View:
        """Return what one mechanism, or one's own combination, does for every token: the head that is shown.

        Args:
            name: As in `run`.

        Returns:
            The view, of which `run` returns a token's part.

        Raises:
            UnknownNameError: If there is nothing of that name.
            PolyheadError: If this input cannot take the mechanism; the message says why.
        """
        known = self.known(name)
        entry = None if known in self._added else mechanism(known)
        result = self.result(known)
        is_own = result.fitted.spec == self.inputs.own and not result.fitted.is_cross
        already = "what the model has" if is_own and entry and entry.changes not in {"nothing", "computation"} else ""
        return View(
            number=entry.number if entry else None,
            name=known,
            title=entry.title if entry else known,
            changes=entry.changes if entry else "combination",
            spec=result.fitted.spec,
            output=self._shown(result.output),
            weights=result.weights.mean(axis=0) if self.is_single else result.weights[self.head],
            key_tokens=result.fitted.key_tokens,
            is_own=is_own,
            note=result.fitted.note or already,
        )

    def flash_error(self) -> float:
        """Return the largest difference between flash attention's outputs and the baseline's over all tokens."""
        return float(np.abs(self.result("flash").output - self.result("scaled-dot-product").output).max())

    def plot(self, token: str | int | None = None, path: str | Path | None = None) -> Any:
        """Draw a token's weights and outputs under every mechanism.

        Args:
            token: The token. None: as in `table`.
            path: Where to write it, ``.png`` or ``.svg``. None: nowhere.

        Returns:
            The matplotlib ``Figure``.

        Raises:
            MissingExtraError: If matplotlib is not installed.
            ShapeError: If there are too many tokens to draw.
            UnsupportedError: If the file's ending is another.
        """
        from polyhead.compare.plot import draw

        return draw(self.table(token), path)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from polyhead.compare.notebook import of_comparison

        return of_comparison(self)

    def _run(self, fitted: Fitted, tile: int | None = None) -> engines.Result:
        return engines.Result(fitted, *engines.run(fitted, self.engine, tile))

    def _row(self, name: str, position: int) -> Row:
        return self.view(name).row(position, self._shown(self.result("scaled-dot-product").output))

    def _shown(self, output: Array) -> Array:
        """Return each token's output: all heads side by side where one was split, else the chosen head's."""
        return output.swapaxes(0, 1).reshape(output.shape[1], -1) if self.is_single else output[self.head]
