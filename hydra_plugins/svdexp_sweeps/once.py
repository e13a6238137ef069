"""Hydra's loader of configurations, which composes every cell of a sweep once: a launcher gets what the sweeper saw."""

from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

KEPT = 500  # cells; each takes about 0.4 MB


class OnceComposed(ConfigLoaderImpl):
    """Composes as the loader that it stands for, but gives what it was handed for a cell, once."""

    def __init__(self, loader: ConfigLoader) -> None:
        super().__init__(loader.get_search_path())
        self.kept: dict[tuple[str, ...], DictConfig] = {}

    def keep(self, overrides: Sequence[str], composed: DictConfig) -> None:
        """Give `composed` when the cell of these overrides is asked for; where there are too many, not."""
        if len(self.kept) < KEPT:
            self.kept[tuple(overrides)] = composed

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The configuration of a cell."""
        kept = self.kept.pop(tuple(sweep_overrides), None)
        return super().load_sweep_config(master_config, sweep_overrides) if kept is None else kept
