"""Speed as ratios measured in one run, so that they hold on any machine: `python -m svdexp.bench`."""
