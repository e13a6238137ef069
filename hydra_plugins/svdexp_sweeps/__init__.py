"""svdexp's own parts of Hydra's sweeps; Hydra finds them because they are in hydra_plugins, a namespace package."""
