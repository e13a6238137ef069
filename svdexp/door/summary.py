"""What a compression came to, for a notebook, a console, or a log."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from svdexp.cells.choices import GROUPS, spoken
from svdexp.record import Results, compared
from svdexp.record import results as keys
from svdexp.runtime.sizes import size_in_words
from svdexp.tracking.console import FIGURES, beside_dense, figure, is_one_of

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = ("layers", "shape", "ranks", "by block", "kept", "energy lost")
CSS = """
.svdexp-summary { max-width: 60em; font-size: .92em; line-height: 1.45; }
.svdexp-summary h4 { margin: .2em 0 .5em; font-size: 1.08em; font-weight: 600; }
.svdexp-summary table { border-collapse: collapse; margin: .3em 0 .9em; font-variant-numeric: tabular-nums; }
.svdexp-summary th, .svdexp-summary td { padding: .18em .9em .18em 0; border: 0; text-align: right;
  background: none; white-space: nowrap; color: inherit; }
.svdexp-summary th { font-weight: 600; }
.svdexp-summary th:first-child, .svdexp-summary td:first-child { text-align: left; }
.svdexp-summary .facts td { text-align: left; white-space: normal; }
.svdexp-summary .facts td:first-child { opacity: .65; white-space: nowrap; vertical-align: top; }
.svdexp-summary .figures tbody tr, .svdexp-summary .layers tbody tr {
  border-top: 1px solid color-mix(in srgb, currentColor 18%, transparent); background: none; }
.svdexp-summary .bars { text-align: left; }
.svdexp-summary td.bars { font-family: monospace; }
""".strip()


@dataclass(frozen=True)
class Summary:
    """Shows itself: an HTML table in notebooks, one of text wherever it is printed.

    Attributes:
        record: as results.json has it.
        layers: the rows of layers.json.
    """

    record: Results
    layers: Sequence[dict[str, Any]]

    def __rich__(self) -> RenderableType:
        """For rich's consoles."""
        facts = Table.grid(padding=(0, 2))
        for name, value in self._facts():
            facts.add_row(Text(name, "dim"), Text(value))
        tables = [_table(("", *head), rows) for head, rows in self._tables()]
        return Group(Text(self._title(), "bold"), facts, *tables)

    def __str__(self) -> str:
        out = StringIO()
        Console(file=out, width=110, color_system=None, force_jupyter=False).print(self.__rich__())
        return out.getvalue().rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        facts = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in self._facts())
        tables = "".join(
            _html(kind, ("", *head), rows)
            for kind, (head, rows) in zip(("figures", "layers"), self._tables(), strict=True)
            if rows
        )
        return (
            f'<div class="svdexp-summary"><style>{CSS}</style><h4>{escape(self._title())}</h4>'
            f'<table class="facts"><tbody>{facts}</tbody></table>{tables}</div>'
        )

    def _title(self) -> str:
        record = self.record
        return f"{keys.MODEL.of(record)} · {keys.METHOD.of(record)} · {keys.ACHIEVED_RATIO.of(record):.1%} kept"

    def _facts(self) -> list[tuple[str, str]]:
        """What was done, in a few lines."""
        record, text = self.record, keys.CALIBRATION.of(self.record)
        before, after = keys.TARGET_BITS.get_dense(record) or 0, keys.TARGET_BITS.of(record)
        ranked = sum(row["rank"] is not None for row in self.layers)
        rows = [
            ("layers", f"{len(self.layers)}, of which {ranked} are factorised"),
            (
                "size of these",
                f"{size_in_words(before / 8)} → {size_in_words(after / 8)}, {keys.RATIO.of(record):g} asked for",
            ),
        ]
        rows += [(key, said) for key in GROUPS if (said := spoken(record, key))]
        rows += [("training", " + ".join(trained))] if (trained := keys.TRAINING.get(record)) else []
        rows += [("calibration", f"{text['text']}, {text['samples']} × {text['seq_len']} tokens")]
        seconds = {stage: taken for stage, taken in keys.SECONDS.of(record).items() if taken >= 0.05}
        rows += [("seconds", ", ".join(f"{stage} {taken:.1f}" for stage, taken in seconds.items()))]
        for reason, names in (keys.LEFT_DENSE.get(record) or {}).items():
            rows += [("left dense", f"{len(names)} layers, which {reason}")]
        if damped := keys.DAMPED_LAYERS.of(record):
            rows += [("damped", f"{damped} layers, whose moments are not positive definite")]
        return rows

    def _tables(self) -> list[tuple[Sequence[str], list[list[str]]]]:
        """Figures, where some were measured, and layers: columns and rows."""
        record, twins = self.record, compared(self.record)
        rows = [_figure_row(record, key, twins.get(key)) for key in record if is_one_of(key, FIGURES)]
        return [(("dense", "compressed", "change"), rows), (COLUMNS, list(self._projections()))]

    def _projections(self) -> Iterable[list[str]]:
        """One row for the layers of one name, over all blocks."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.layers:
            found.setdefault(row["projection"], []).append(row)
        for name, rows in found.items():
            ranks = [row["rank"] for row in rows if row["rank"] is not None]
            shapes = sorted({(row["m"], row["n"]) for row in rows})
            lost = [row["energy_lost"] for row in rows if row["energy_lost"] is not None]
            kept = sum(row["bits"] for row in rows) / sum(row["bits_dense"] for row in rows)
            yield [
                name,
                str(len(rows)),
                " ".join(f"{m} × {n}" for m, n in shapes),
                " – ".join(map(str, sorted({min(ranks), max(ranks)}))) if ranks else "dense",
                "".join(map(_bar, rows)),
                f"{kept:.1%}",
                f"{sum(lost) / len(lost):.2%}" if lost else "",
            ]


def _bar(row: dict[str, Any]) -> str:
    """A layer's rank as a bar, from none to full; `|` is one without factors."""
    if row["rank"] is None:
        return "|"
    return BARS[min(len(BARS) * row["rank"] // min(row["m"], row["n"]), len(BARS) - 1)]


def _figure_row(record: Results, key: str, dense: str | None) -> list[str]:
    """A figure, beside the dense model's if there is that."""
    return beside_dense(record, key, dense) if dense else [key, "", figure(record, key), ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    if not rows:
        return ""
    table = Table()
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index and name != "by block" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _html(kind: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    names = "".join(_cell(name, name, "th") for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, head, row))}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def _cell(column: str, value: str, tag: str = "td") -> str:
    kind = ' class="bars"' if column == "by block" else ""
    return f"<{tag}{kind}>{escape(value)}</{tag}>"
