"""What many runs found, side by side: tables and pictures. `python -m svdexp.report FOLDER…`."""
