"""The help page of a command, of at most a screen or two, made of what conf/ says."""

import textwrap
from collections.abc import Sequence

from svdexp.cells.catalogue import Entry, all_groups, choices, groups, keys
from svdexp.runtime.invocation import command
from svdexp.runtime.version import __version__

WIDTH, INDENT = 110, 20

USAGE = {
    "config": (
        ("compress", "KEY=VALUE …", "one run"),
        ("compress", "-m ratio=0.8,0.6 method=kron,svd", "a sweep, one cell for each combination"),
        ("compress", "dry_run=true …", "how long it will take, and how much memory"),
        ("compress", "--cfg job …", "the composed configuration: every key"),
        ("evaluate", "path=MODEL", "figures of one model as it is"),
        ("export", "path=RUN to=FOLDER", "a checkpoint for others"),
        ("report", "FOLDER… --to FOLDER", "tables and pictures of many runs"),
        ("methods", "", "every method: its parts, and what it is"),
        ("bench", "", "speed of svdexp's own steps, as ratios"),
        ("sync", "FOLDER…", "what runs kept for W&B is sent"),
    ),
    "evaluate": (
        ("evaluate", "path=MODEL KEY=VALUE …", "eval=quick, eval=full or eval=ppl"),
        ("evaluate", "-m path=MODEL,MODEL", "several models"),
        ("evaluate", "path=MODEL --cfg job", "the composed configuration: every key"),
    ),
    "export": (
        ("export", "path=RUN to=FOLDER", "a folder that transformers loads where svdexp is not"),
        ("export", "path=RUN to=FOLDER format=dense", "a dense model of the original architecture"),
        ("export", "path=RUN to=FOLDER format=gptq", "quantised factors as GPTQModel reads them"),
        ("export", "path=RUN to=FOLDER format=vllm", "factor pairs, which vLLM runs"),
    ),
}


def page(config: str = "config") -> str:
    """The help of the command whose configuration is `config`."""
    lines = [f"svdexp {__version__}: SVD-based compression of language models", ""]
    shown = [(f"{command(name)} {words}".rstrip(), says) for name, words, says in USAGE[config]]
    width = max(len(line) for line, _ in shown) + 2
    lines += [f"  {line:{width}}{says}" for line, says in shown]
    if found := groups(config):
        lines += [
            "",
            f"Groups: GROUP=CHOICE. {command()} --list GROUP says what each choice is; a star is the default.",
        ]
        for entry in found:
            lines += row(entry.name, entry.says) + row("", chosen(entry), 1)
    lines += ["", "Keys: KEY=VALUE, with the default."]
    for entry in keys(config):
        lines += row(entry.name if not entry.value else f"{entry.name}={plain(entry.value)}", entry.says, 2)
    return "\n".join([*lines, "", "docs/command.md has more. SVDEXP_DEBUG=1 shows tracebacks."])


def listing(group: str | None = None) -> str:
    """The choices of a group, each with the first sentence of its comment; without one, the groups.

    Raises:
        UserError: there is no such group.
    """
    if group is not None:
        return table(choices(group))
    said = {entry.name: entry for entry in groups()}
    return table([said.get(name, Entry(name, "", "")) for name in all_groups()])


def table(entries: Sequence[Entry]) -> str:
    """Names and what they say."""
    width = max(len(entry.name) for entry in entries) + 2
    return "\n".join(f"{entry.name:{width}}{entry.says}".rstrip() for entry in entries)


def plain(value: str) -> str:
    """A default as a person would type it, if that is short."""
    return value.rpartition(",")[2].rstrip("}") if value.startswith("${oc.env") else value


def chosen(entry: Entry) -> str:
    """The names of a group's choices; the default has a star."""
    return ", ".join(f"{choice.name}{'*' * (choice.name == entry.value)}" for choice in choices(entry.name))


def row(name: str, text: str, lines: int = 1) -> list[str]:
    """A name with its text beside it, cut to so many lines."""
    fitted = textwrap.wrap(text, WIDTH - INDENT, max_lines=lines, placeholder=" …", break_on_hyphens=False)
    beside = [f"{' ' * INDENT}{line}" for line in fitted]
    first = f"  {name}"
    return [f"{first:{INDENT}}{fitted[0]}", *beside[1:]] if len(first) < INDENT else [first, *beside]
