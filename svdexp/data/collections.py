"""Any data set that `datasets.load_dataset` takes: of the hub, a local folder, or one file of rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdexp.runtime.errors import UserError, require

# Builders of datasets for a single file, by its ending.
BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


@dataclass(frozen=True)
class Collection:
    """Rows of text in a data set.

    Attributes:
        path: a hub id, a folder, or a file.
        subset: the data set's configuration, if it has several.
        split: as the data set calls it; slices such as train[:1%] too.
        column: where a row's text is.
    """

    path: str
    subset: str | None
    split: str
    column: str

    @property
    def name(self) -> str:
        """What the record calls it."""
        return f"{self.path} {self.subset}" if self.subset else self.path

    @property
    def local(self) -> Path | None:
        """The folder or file; None for the hub."""
        path = Path(self.path).expanduser()
        return path if path.exists() else None

    def is_also(self, other: "Collection | None") -> bool:
        """Whether `other` has the same rows, by whatever path."""
        if other is None or (self.subset, self.split) != (other.subset, other.split):
            return False
        here, there = self.local, other.local
        return self.path == other.path if here is None or there is None else here.samefile(there)

    @property
    def is_one_file(self) -> bool:
        """Whether it is all rows of a file, which has no splits."""
        return self.local is not None and self.local.is_file() and "[" not in self.split

    @property
    def files(self) -> list[Path]:
        """All files of a local one, none of the hub's; hidden ones, as of git or of a download, hold no rows."""
        if self.local is None or self.local.is_file():
            return [self.local] if self.local else []
        inside = sorted(path.relative_to(self.local) for path in self.local.rglob("*") if path.is_file())
        return [self.local / path for path in inside if not any(part.startswith(".") for part in path.parts)]

    def check(self, knob: str) -> None:
        """Raise UserError now for a path that can only be local and is not there, or a file of an unknown kind."""
        meant = self.path.startswith((".", "/", "~")) or self.path.count("/") > 1
        require(self.local is not None or not meant, f"{knob}.dataset={self.path} is no file and no folder")
        if self.local is not None and self.local.is_file():
            known = self.local.suffix in BUILDERS
            require(known, f"{knob}.dataset={self.path} ends in none of {', '.join(BUILDERS)}")

    def rows(self, knob: str) -> list[str]:
        """The text of every row, in order.

        Raises:
            UserError: the data set cannot be loaded, or has no such column, or one of something else than text.
        """
        return self._texts(self._load(knob), knob)

    def captioned(self, knob: str, count: int | None) -> list[tuple[Any, str]]:
        """The image, as PIL has it, and the text of each of the first `count` rows; None is all.

        Raises:
            UserError: as `rows`, or there is no column of images, or several, or an image cannot be read.
        """
        found = self._load(knob)
        return list(zip(self._images(found, knob, count), self._texts(found, knob)[:count], strict=True))

    def _texts(self, found: Any, knob: str) -> list[str]:
        column, columns = f"{knob}.column={self.column}", list(found.column_names)
        require(self.column in columns, f"{column} is no column of {self.name}, which has {', '.join(columns)}")
        rows = list(found[self.column])
        require(all(isinstance(row, str) for row in rows), f"{column} of {self.name} holds other things than text")
        return rows

    def _images(self, found: Any, knob: str, count: int | None) -> list[Any]:
        from datasets import Image

        columns = [name for name, kind in found.features.items() if isinstance(kind, Image)]
        require(len(columns) == 1, f"{knob}.dataset={self.path} has {len(columns)} columns of images, not one")
        shown = found.select_columns(columns).select(range(min(len(found), count or len(found))))
        images = []
        for index in range(len(shown)):
            try:
                images.append(in_colours(shown[index][columns[0]]))
            except Exception as error:  # PIL and datasets have many types; None is no image
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise UserError(f"{knob}.dataset={self.path}: image {index} cannot be read: {reason}") from error
        return images

    def _load(self, knob: str) -> Any:
        from datasets import load_dataset

        path, options = self.path, {}
        if self.local is not None:
            path = str(self.local)
            if self.local.is_file():
                # one file is one split, whatever it is called
                options = {"data_files": {self.split.partition("[")[0]: str(self.local)}}
                path = BUILDERS[self.local.suffix]
        try:
            return load_dataset(path, self.subset, split=self.split, **options)
        except Exception as error:  # datasets raises a dozen types for an unreachable or unknown data set
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{knob}.dataset={self.path} cannot be loaded: {reason}") from error


def in_colours(image: Any) -> Any:
    """A PIL image in RGB; of greys of 16 bits the upper eight, where PIL would take all above 255 for white."""
    return (image.convert("I").point(lambda grey: grey / 256) if "16" in image.mode else image).convert("RGB")
