"""Command line: `python -m svdexp.bench.engines`; compressed models in the programs that people run models with."""
