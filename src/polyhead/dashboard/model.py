"""The model that a dashboard reads texts with: its weights come while the page is already there."""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polyhead.errors import MissingExtraError, PolyheadError, ShapeError, UnsupportedError

if TYPE_CHECKING:
    from polyhead.compare.inputs import Inputs
    from polyhead.hf import Loaded

State = Literal["none", "loading", "ready", "failed"]

MAX_TOKENS = 512
"""Tokens of a text on the page: a matrix of as many pixels is what a screen shows."""

MAX_WEIGHTS = 2**22
"""Weights of all heads under one mechanism: 32 MiB in float64."""

_LOG = logging.getLogger("polyhead.dashboard")


class NotReadyError(Exception):
    """A text is to be read, and the model's weights are not there yet."""


class TextModel:
    """A model, or none, and how far it is.

    Args:
        name: What `polyhead.hf.load` takes. None: there is none.
    """

    def __init__(self, name: str | None) -> None:
        self.name = None if name is None else name if not Path(name).exists() else Path(name).resolve().name
        self.state: State = "none" if name is None else "loading"
        self.message = "" if name is not None else "no model was given; start with polyhead serve --model smollm2"
        self._asked = name
        self._began = time.monotonic()
        self._seconds = 0.0
        self._loaded: Loaded | None = None
        self._one_at_a_time = threading.Lock()

    def start(self) -> None:
        """Begin to load the weights, in a thread that does not keep the process alive."""
        if self._asked is not None:
            self.message = "reading the weights"
            threading.Thread(target=self._load, name="polyhead-model", daemon=True).start()

    def load(self) -> None:
        """Load the weights now; raises as `polyhead.hf.load` does."""
        assert self._asked is not None
        self._loaded = _loaded(self._asked)
        self._seconds = time.monotonic() - self._began
        self.message, self.state = "", "ready"

    def _load(self) -> None:
        """Load the weights, and keep what is wrong with them."""
        try:
            self.load()
        except (PolyheadError, OSError) as error:
            self.message, self.state = str(error), "failed"
        except Exception:  # noqa: BLE001 - a thread that ends unseen would leave the page waiting for ever
            _LOG.exception("the model could not be loaded")
            self.message, self.state = "the model could not be loaded; the server's log says why", "failed"
        finally:
            self._seconds = time.monotonic() - self._began

    def to_data(self) -> dict[str, Any]:
        """Return how far the model is, and its sizes where they are known."""
        seconds = time.monotonic() - self._began if self.state == "loading" else self._seconds
        sizes: dict[str, int | None] = {"num_layers": None, "num_heads": None, "max_tokens": None}
        if self._loaded is not None:
            layers, heads = self._sizes(self._loaded)
            sizes = {"num_layers": layers, "num_heads": heads, "max_tokens": self._most_tokens(self._loaded)}
        return {"name": self.name, "state": self.state, "message": self.message, "seconds": round(seconds, 1), **sizes}

    def read(self, text: str, *, layer: int, second_text: str | None, bare: bool) -> tuple[Inputs, str]:
        """Let the model read a text, and return a layer's heads.

        Args:
            text: The text.
            layer: Number of the layer.
            second_text: What cross-attention attends to, or None.
            bare: Whether to leave the model's own position and pattern out.

        Returns:
            The inputs, and a line that says what they are.

        Raises:
            NotReadyError: If the weights are not there yet.
            UnsupportedError: If there is no model, or it could not be loaded.
            ShapeError: If a text has too many tokens.
            UnknownNameError: If there is no such layer.
        """
        from polyhead.compare.from_model import model_inputs

        loaded = self._ready()
        with self._one_at_a_time:  # tokenizers and models change themselves as they work
            for one in (text, second_text):
                if one is not None:
                    self._check_length(loaded, one)
            return model_inputs(loaded, text, layer=layer, second_text=second_text, bare=bare)

    def _ready(self) -> Loaded:
        if self.state == "loading":
            raise NotReadyError(f"{self.name} is still being loaded; ask again")
        if self._loaded is None:
            what = self.message if self.state == "none" else f"{self.name} could not be loaded: {self.message}"
            raise UnsupportedError(what)
        return self._loaded

    def _check_length(self, loaded: Loaded, text: str) -> None:
        count, most = len(loaded.token_ids(text)), self._most_tokens(loaded)
        if count > most:
            raise ShapeError(f"the text has {count} tokens, and the dashboard shows at most {most}; shorten it")

    def _sizes(self, loaded: Loaded) -> tuple[int, int]:
        from polyhead.hf.capture import check_capturable

        layers = check_capturable(loaded.config)
        return len(layers), max(layer.attention.num_heads for layer in layers)

    def _most_tokens(self, loaded: Loaded) -> int:
        _, heads = self._sizes(loaded)
        return min(MAX_TOKENS, math.isqrt(MAX_WEIGHTS // heads), int(loaded.model.config.max_position_embeddings))


def check_model(name: str) -> None:
    """Raise unless a model is there and can be read, as far as its files tell before its weights are loaded.

    Args:
        name: What `polyhead.hf.load` takes.

    Raises:
        CheckpointError: If it is missing or incomplete.
        UnsupportedError: If its attention is none that is captured.
        MissingExtraError: If torch or transformers is not installed.
    """
    from importlib.util import find_spec

    from polyhead.catalog.configs import read_config
    from polyhead.hf.capture import check_capturable
    from polyhead.hf.load import find

    for module in ("torch", "transformers"):
        if find_spec(module) is None:
            raise MissingExtraError(f"--model needs {module}, which is not installed; type: pip install 'polyhead[hf]'")
    path = find(name)
    if path.is_dir():
        check_capturable(read_config(path))


def _loaded(name: str) -> Loaded:
    from polyhead.hf import load
    from polyhead.hf.capture import check_capturable

    return load(name, check=lambda config, _: check_capturable(config))
