"""Tables as LaTeX writes them, with booktabs; pdflatex takes whatever words a run brought."""

from svdexp.report.tables import Table

PREAMBLE = "% \\usepackage{booktabs}, and graphicx for what is wider than the page"
# What LaTeX reads as commands, and the signs that the report's own words have.
SIGNS = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "{''}"},
    **{"'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "-": "{-}"},
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    **{"±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "Δ": r"$\Delta$", "→": r"$\to$", "…": r"\ldots{}"},
    **{"‖": r"$\|$", "–": "--", "—": "---", " ": "~"},
}


def latex(table: Table) -> str:
    """The table as an environment `table` to be put into a document."""
    heading, *rows = table.rows
    body = [_row(heading, 0, table), r"\midrule", *(_row(row, number, table) for number, row in enumerate(rows, 1))]
    lines = [
        *(PREAMBLE, r"\begin{table}[htbp]", r"\centering", rf"\caption{{{words(table.title)}}}"),
        rf"\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{\begin{{tabular}}{{{_columns(table)}}}",
        *(r"\toprule", *body, r"\bottomrule", r"\end{tabular}}"),
        *([rf"\par\smallskip{{\footnotesize {words(table.words)}}}"] if table.words else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def words(text: str) -> str:
    """Words that mean themselves; a sign that plain pdflatex lacks is given by its number."""
    return "".join(map(_sign, " ".join(text.split())))


def _sign(sign: str) -> str:
    if sign in SIGNS:
        return SIGNS[sign]
    return sign if " " <= sign <= "~" else rf"\texttt{{U+{ord(sign):04X}}}"


def _row(row: list[str], number: int, table: Table) -> str:
    cells = [
        rf"\textbf{{{words(cell)}}}" if (number, column) in table.strong else words(cell)
        for column, cell in enumerate(row)
    ]
    return " & ".join(cells) + r" \\"


def _columns(table: Table) -> str:
    """Numbers to the right, words to the left."""
    columns = zip(*table.rows[1:], strict=True) if len(table.rows) > 1 else ([] for _ in table.rows[0])
    return "".join("r" if _numbers(list(column)) else "l" for column in columns)


def _numbers(column: list[str]) -> bool:
    return any(column) and all(not cell or cell.lstrip("-+")[:1].isdigit() for cell in column)
