"""In what a run differs from how a published figure was measured, as far as published.yaml knows that."""

from collections.abc import Iterator, Mapping
from typing import Any

from svdexp.cells.choices import eval_choice, own_parts, spoken
from svdexp.record import results as keys
from svdexp.report.collect import Record
from svdexp.report.published import EVALUATED, Figure
from svdexp.schema import Bos, SpecialTokens

PARSED = SpecialTokens.parsed.value
METHOD = tuple(key.name for key in (keys.WEIGHTING, keys.ALLOCATION, keys.UPDATE))


def differences(record: Record, figure: Figure) -> list[str]:
    """One sentence for each, `windows 12, there all`; empty where all that is known agrees."""
    return [*_of_method(record), *_of_calibration(record, figure), *_of_evaluation(record, figure)]


def _of_method(record: Record) -> Iterator[str]:
    """A method whose parts were exchanged is not the one that was published under its name."""
    own = own_parts(keys.METHOD.of(record)) or {}
    for key in METHOD:
        if key in own and key in record and spoken(record, key) != own[key]:
            yield f"{key} {spoken(record, key)}, there {own[key]}"
    here, there = keys.TRAVERSAL.get(record), own.get("traversal")
    if keys.TRAVERSAL.name in record and here != there:
        yield f"traversal {here}, there {there}"
    if (storage := spoken(record, keys.STORAGE.name)) != keys.STORAGE.of(record):
        yield f"storage {storage}, there {keys.STORAGE.of(record)}"
    if trained := keys.TRAINING.get(record):
        yield f"trained by {' and '.join(trained)}, there not"


def _of_calibration(record: Record, figure: Figure) -> Iterator[str]:
    if not figure.calibration:
        return
    here = keys.CALIBRATION.get(record)
    if here is None:
        yield "calibration not recorded"
        return
    for key, there in figure.calibration.items():
        wanted = figure.text if there == EVALUATED else there
        if here.get(key) != wanted:
            yield f"calibration.{key} {here.get(key)}, there {wanted}"


def _of_evaluation(record: Record, figure: Figure) -> Iterator[str]:
    if figure.metric == keys.ACC.name:
        yield "how tasks were asked is not known there"
        return
    if figure.evaluation is None:
        return
    protocol, asked = (keys.PROTOCOL.get(record) or {}).get(figure.text), keys.EVAL.get(record)
    if protocol is None or asked is None:
        yield "protocol not recorded"
        return
    there = eval_choice(figure.evaluation)
    for key, (here, wanted) in _pairs(protocol, asked, there, figure.text).items():
        if here != wanted:
            yield f"{key} {_said(here)}, there {_said(wanted)}"


def _pairs(
    protocol: Mapping[str, Any], asked: Mapping[str, Any], there: Mapping[str, Any], text: str
) -> dict[str, tuple[Any, Any]]:
    """Of every key of the protocol what holds here and there."""

    def of_text(eval_part: Mapping[str, Any], key: str, otherwise: Any = None) -> Any:
        return (eval_part.get(f"{key}_by_text") or {}).get(text, eval_part.get(key, otherwise))

    return {
        "split": (protocol.get("split"), of_text(there, "split", protocol.get("split"))),
        "rows": (of_text(asked, "rows"), of_text(there, "rows")),
        "separator": (of_text(asked, "separator"), of_text(there, "separator", "\n\n")),
        "cut": (protocol.get("cut"), of_text(there, "cut", "contiguous")),
        "windows": (of_text(asked, "windows"), of_text(there, "windows")),
        "seq_len": (protocol.get("seq_len"), there["seq_len"]),
        "stride": (asked.get("stride") or protocol.get("seq_len"), there.get("stride") or there["seq_len"]),
        "bos": (protocol.get("bos"), _bos_there(protocol.get("bos"), asked.get("bos"), there["bos"])),
        # older records do not say, and parsed
        "special_tokens": (protocol.get("special_tokens", PARSED), there.get("special_tokens", SpecialTokens.text)),
    }


def _bos_there(here: str | None, asked: Any, there: str) -> str:
    """What `there`, a choice of eval.bos, came to for a paper's run of this model; `here` is what `asked` came to.

    A preset puts BOS before the text where the tokenizer adds it. That this one adds none is known where a run asked
    for the same and got none.
    """
    if there != Bos.tokenizer_start:
        return there
    adds_none = here == Bos.none and asked in (Bos.tokenizer, Bos.tokenizer_start)
    return Bos.none.value if adds_none else Bos.start.value


def _said(value: Any) -> str:
    return "all" if value is None else repr(value) if isinstance(value, str) and value.strip() == "" else str(value)
