"""What comparisons are made on: the shared example, what the model read, arrays that were sent; the last few stay."""

from __future__ import annotations

import collections
import hashlib
import threading
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from polyhead.catalog import TEXTBOOK, Settings
from polyhead.catalog.controls import settings_from
from polyhead.compare import AttentionComparison
from polyhead.compare.inputs import Inputs, array_inputs, example_inputs
from polyhead.dashboard import requests
from polyhead.dashboard.arrays import read_arrays
from polyhead.dashboard.bounds import spec_of
from polyhead.dashboard.model import MAX_TOKENS, MAX_WEIGHTS, TextModel
from polyhead.errors import ShapeError, UnknownNameError

T = TypeVar("T")

MAX_TEXTS = 16
"""What the model read of how many texts and layers is kept."""

MAX_ARRAYS = 4
"""How many files of arrays are kept."""

MAX_COMPARED = 4
"""How many comparisons are kept with what has run, so that another head, or a control put back, runs nothing."""

MAX_KEPT = 2**21
"""Weights of all mechanisms and heads that a comparison may have to be kept: 16 MiB in float64."""

MAX_WIDTH = 1024
"""Width of a head in arrays: as much is shown as an output."""


class Recent(Generic[T]):
    """The values of the keys that were asked for last; safe to be asked by several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: collections.OrderedDict[Hashable, T] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> T | None:
        """Return a key's value and make it the latest, or None if it is not there any more."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def keep(self, key: Hashable, value: T) -> None:
        """Keep a value, and drop the one that was asked for longest ago where there are too many."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)


class Sources:
    """The inputs of comparisons.

    Args:
        model: What reads texts.
    """

    def __init__(self, model: TextModel) -> None:
        self.model = model
        self._read: Recent[tuple[Inputs, str]] = Recent(MAX_TEXTS)
        self._sent: Recent[Inputs] = Recent(MAX_ARRAYS)
        self._compared: Recent[AttentionComparison] = Recent(MAX_COMPARED)
        self._example = example_inputs()

    def comparison(self, request: requests.Comparison) -> AttentionComparison:
        """Return the comparison that a request is about, with its own combinations added.

        Args:
            request: The request.

        Returns:
            The comparison. Nothing has run yet, but for what was added.

        Raises:
            NotReadyError: If the model is still being loaded.
            PolyheadError: If there is no such source, or it cannot take a combination.
        """
        inputs, title, default, head = self._found(request.source)
        given = {name: getattr(request.settings, name) for name in request.settings.__struct_fields__}
        settings = settings_from({name: value for name, value in given.items() if value is not None}, default)
        if request.specs:
            comparison = AttentionComparison.from_inputs(inputs, title=title, settings=settings, head=head)
            for name, data in request.specs.items():
                comparison.add(name, spec_of(data))
            return comparison
        return self._of_all_heads(inputs, title, settings).at_head(head)

    def _of_all_heads(self, inputs: Inputs, title: str, settings: Settings) -> AttentionComparison:
        """Return a comparison on inputs that have been found, the one that ran before if it is small enough to keep."""
        key = (id(inputs), settings)  # a kept comparison keeps its inputs, so nothing else has their id
        if (kept := self._compared.get(key)) is not None:
            return kept
        comparison = AttentionComparison.from_inputs(inputs, title=title, settings=settings)
        heads, tokens, _ = inputs.query.shape
        if heads * tokens**2 * len(comparison.names) <= MAX_KEPT:
            self._compared.keep(key, comparison)
        return comparison

    def keep_arrays(self, data: bytes) -> dict[str, Any]:
        """Keep arrays for comparisons to come.

        Args:
            data: The bytes of an .npz or a .safetensors file.

        Returns:
            The ``id`` by which they can be asked for, and their sizes.

        Raises:
            ShapeError: If they are no arrays that a comparison takes, or too many.
        """
        inputs = array_inputs(**read_arrays(data))
        _check_size(inputs)
        name = hashlib.sha256(data).hexdigest()
        self._sent.keep(name, inputs)
        heads, tokens, width = inputs.query.shape
        return {"id": name, "tokens": tokens, "num_heads": heads, "width": width}

    def _found(self, source: requests.Source) -> tuple[Inputs, str, Settings, int]:
        """Return inputs, what they are, the settings where nothing is said, and the head that is shown."""
        if isinstance(source, requests.TextSource):
            inputs, title = self._text(source)
            return inputs, title, Settings(), source.head
        if isinstance(source, requests.ArraysSource):
            sent = self._sent.get(source.id)
            if sent is None:
                raise UnknownNameError(f"no arrays are kept as {source.id[:12]}…; send them again")
            return sent, "own arrays", Settings(), source.head
        return self._example, "shared example", TEXTBOOK, 0

    def _text(self, source: requests.TextSource) -> tuple[Inputs, str]:
        key = (source.text, source.second_text, source.layer, source.bare)
        if (kept := self._read.get(key)) is not None:
            return kept
        found = self.model.read(source.text, layer=source.layer, second_text=source.second_text, bare=source.bare)
        self._read.keep(key, found)
        return found


def _check_size(inputs: Inputs) -> None:
    heads, tokens, width = inputs.query.shape
    most = min(MAX_TOKENS, int((MAX_WEIGHTS / heads) ** 0.5))
    if tokens > most:
        raise ShapeError(f"there are {tokens} tokens and {heads} heads, and the dashboard shows at most {most} of them")
    if max(width, inputs.value.shape[2]) > MAX_WIDTH:
        raise ShapeError(f"heads are {max(width, inputs.value.shape[2])} wide; the dashboard takes at most {MAX_WIDTH}")
