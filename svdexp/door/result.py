"""What a compression from Python gives."""

import inspect
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.loading import resolve_dtype
from svdexp.door.asking import refuse_moves
from svdexp.door.composing import composed
from svdexp.door.evaluate import Questions, answered, questions
from svdexp.door.figures import Comparison, side_by_side
from svdexp.door.guest import as_guest, require_known
from svdexp.door.summary import Summary
from svdexp.engine.result import Compression
from svdexp.export.origin import copy_texts, origin
from svdexp.export.publish import publish
from svdexp.method import Method
from svdexp.models.matrices import Ranks
from svdexp.record import RESULTS, Results, as_dense
from svdexp.record import results as keys
from svdexp.runs.checks import excerpts, refuse_known_texts
from svdexp.runs.converted import dense_model
from svdexp.runs.history import is_there
from svdexp.runtime.clock import StageClock
from svdexp.runtime.disk import write_atomically
from svdexp.runtime.errors import require
from svdexp.schema import Config, ExportConfig, validate_export
from svdexp.tracking import layer_rows, record


@dataclass(repr=False, eq=False)
class Result:
    """A compressed model, and what is known of it.

    Attributes:
        model: the compressed model; of a model that was given the same object.
        tokenizer: its tokenizer; None where none was given.
        compression: all that the engine says: ranks, spectra, bits.
        method: its parts.
        config: all options, also those that nobody set.
        clock: seconds and memory by stage.
        dense_fingerprint: of the dense weights.
        loaded: whether the dense model can be loaded again.
        figures: what was measured, by the keys of results.json, and the dense model's beside.
    """

    model: PreTrainedModel
    tokenizer: Any
    compression: Compression
    method: Method
    config: Config
    clock: StageClock
    dense_fingerprint: str
    loaded: bool
    figures: Results = field(default_factory=dict)

    @property
    def ranks(self) -> Ranks:
        """The rank of each layer; None is not factorised."""
        return self.compression.ranks

    @property
    def achieved_ratio(self) -> float:
        """The kept fraction of the compressed layers' bits, counted from their tensors."""
        return self.compression.achieved_ratio

    @property
    def layers(self) -> pd.DataFrame:
        """A row for each layer, by its name: where it is, its shape (m, n), its rank, the share of the weighted energy
        that it lost, its bits before and after."""
        table = pd.DataFrame(layer_rows(self.compression)).set_index("name")
        return table.astype({"rank": "Int64", "block": "Int64"})

    def summary(self) -> Summary:
        """What was done and what came of it; a table in notebooks and on consoles."""
        return Summary(self._record(), layer_rows(self.compression))

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    @as_guest
    def evaluate(
        self,
        texts: object = None,
        tasks: str | list[str] | None = None,
        *,
        dense: PreTrainedModel | Mapping[str, float] | bool | None = None,
        **options: Any,
    ) -> Comparison:
        """The figures of the model, with the dense one's beside them where they can be had.

        Args:
            texts, tasks: as `svdexp.evaluate` takes them, and all of its other options by name.
            dense: a dense model, or what `svdexp.evaluate` said of it. None loads the dense model again where it came
                from a folder or a hub, beside the compressed one on its device; False leaves it out.

        Returns:
            A row a figure, by its key in results.json, and the columns `dense`, `compressed`, and `factor`, the second
            over the first.

        Raises:
            UserError: as `svdexp.evaluate`; the dense model cannot be loaded again, or a file calibrated the model.
        """
        require_known("evaluate", options, inspect.signature(questions))
        wanted = {"tokenizer": self.tokenizer, "seed": self.config.seed, "cache": self.config.cache} | options
        refuse_moves(**{key: options.get(key) for key in ("device", "precision", "residency", "revision")})
        asked = questions(self.model, texts, tasks, **wanted)
        known = {knob: text for knob, text in excerpts(self.config, self.method).items() if is_there(text)}
        refuse_known_texts(asked.config.eval, known)
        figures = answered(self.model, asked, "compressed")
        beside = self._dense_figures(asked, dense)
        self.figures |= figures | asked.protocols() | as_dense(beside)
        return side_by_side(figures, beside)

    @as_guest
    def save(self, folder: str | PathLike[str]) -> Path:
        """Write a checkpoint that `svdexp.load` and transformers load, the latter with trust_remote_code=True.

        results.json, ranks.json and layers.json lie in it, and forms.json where there was a choice of forms, with
        what is known by now: `evaluate` adds to it.

        Raises:
            UserError: the folder holds something else than a model, or the dense one, or cannot be written.
        """
        target = Path(folder).expanduser()
        dense = Path(self.config.model.path).expanduser()
        require(
            not (target.exists() and dense.exists() and target.samefile(dense)),
            f"folder={folder} is the dense model's own, which would be lost: name another",
        )
        free = (
            not target.exists() or (target / "config.json").is_file() or (target.is_dir() and not any(target.iterdir()))
        )
        require(free, f"folder={folder} is there already and holds no model: name another")
        checkpoint.save(self.model, self.tokenizer, target, self.ranks, self.compression.elastic)
        noted = {}
        if self.loaded:
            made_from = origin(self.config.model, ask_the_hub=False)
            copy_texts(made_from, target)
            noted = keys.ORIGIN.says(made_from.noted())
        results = self._record() | noted | keys.RUN_DIR.says(str(target))
        write_atomically(target / "ranks.json", json.dumps(self.ranks, indent=1))
        if self.compression.forms:
            write_atomically(target / "forms.json", json.dumps(self.compression.forms, indent=1))
        write_atomically(target / "layers.json", json.dumps(layer_rows(self.compression), indent=1))
        write_atomically(target / RESULTS, json.dumps(results, indent=1))
        return target

    @as_guest
    def export(
        self,
        folder: str | PathLike[str],
        format: str = "hf",
        push_to_hub: str | None = None,
        gguf: str | None = None,
    ) -> Path:
        """Write a folder for others to load, with a model card, as `python -m svdexp.export` does.

        Args:
            folder: one that is not there yet.
            format: hf; dense, which multiplies the factors out; gptq, AutoGPTQ's layout of codes; peft, a dense model
                and an adapter; vllm, pairs of factors; gguf, llama.cpp's files.
            push_to_hub: OWNER/NAME uploads it.
            gguf: of format="gguf", llama.cpp's, the dense model's own GGUF file.

        Raises:
            UserError: the folder is there, the format does not suit the storage, or there is no account.
        """
        target = Path(folder).expanduser()
        require(not target.exists(), f"folder={folder} is there already: name a folder that is not")
        with tempfile.TemporaryDirectory(prefix=".svdexp-", dir=_nearest(target)) as shop:
            own = str(Path(shop, "model"))
            values: dict[str, Any] = {"path": own, "to": str(target), "format": format, "push_to_hub": push_to_hub}
            values["gguf"] = gguf
            values["trust_remote_code"] = self.config.model.trust_remote_code
            asked = validate_export(composed("export", ExportConfig, [], values))
            self.save(own)
            publish(asked)
        return target

    def _record(self) -> Results:
        """As results.json has it."""
        said = record(
            self.config, Path(), {}, self.figures, self.compression, self.clock, self.model, self.dense_fingerprint
        )
        # whatever started this process, a command of another application perhaps, repeats no run
        return {key: value for key, value in said.items() if key != keys.RUN_DIR.name} | keys.COMMAND.says(None)

    def _dense_figures(
        self, asked: Questions, dense: PreTrainedModel | Mapping[str, float] | bool | None
    ) -> Mapping[str, Any]:
        """Of the dense model what can be had; nothing where it is not wanted."""
        if isinstance(dense, PreTrainedModel):
            return answered(dense, asked, "dense")
        if isinstance(dense, Mapping | pd.Series):
            return dict(dense)
        if dense is False or (dense is None and not self.loaded):
            return {}
        require(self.loaded, "dense=True: this model was given, not loaded; give the dense one, dense=MODEL")
        dtype = resolve_dtype(self.config.precision, self.model.device)
        return answered(dense_model(self.config, dtype, self.model.device).model, asked, "dense")


def _nearest(path: Path) -> Path:
    """The nearest folder above `path` that is there."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())
