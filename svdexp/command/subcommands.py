"""What the console script can be told first: a subcommand is one line here."""

MODULES = {
    "compress": "svdexp",
    "evaluate": "svdexp.evaluate",
    "export": "svdexp.export",
    "report": "svdexp.report",
    "bench": "svdexp.bench",
    "methods": "svdexp.command.methods",
    "sync": "svdexp.tracking.sync",
}
OPTIONS = ("--help", "--version", "--list", "--completion")
