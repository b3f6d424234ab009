"""One way into all raw data sets: a `DatasetConfig` names format and folder, `read_dataset` gives the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import model_validator

from reid.contracts import Record, Settings
from reid.data import real_vehicles, vehicleid, veri776, veriwild
from reid.data.keypoint_labels import OnDuplicate
from reid.data.layout import Layout, find_root, resembles
from reid.data.real_vehicles import RealVehiclesOptions
from reid.data.survey import Survey, readable_records
from reid.data.table import survey_table

Format = Literal["veri776", "vehicleid", "veriwild", "real-vehicles", "table"]

LAYOUTS: Final[dict[Format, Layout]] = {
    "veri776": veri776.LAYOUT,
    "vehicleid": vehicleid.LAYOUT,
    "veriwild": veriwild.LAYOUT,
    "real-vehicles": real_vehicles.LAYOUT,
}
"""The formats that are folders, in the order in which `detect_format` tries them."""


class DatasetConfig(Settings):
    """A raw data set on disk."""

    format: Format
    """Layout of the release, or `table` for a CSV or Parquet file."""
    root: str
    """The folder (its parent and other usual spellings are found too), or the table."""
    keypoints: str | None = None
    """Keypoint file in VeRi's line format, or for veri776 the folder with both; None: looked for beside the images."""
    on_duplicate: OnDuplicate = "refuse"
    """What to do with an image that the keypoint files annotate twice in different ways."""
    real_vehicles: RealVehiclesOptions = RealVehiclesOptions()
    """Which vehicles of real-vehicles train."""

    def content_options(self) -> dict[str, Any]:
        """The options, as they take effect, that make the set another one than its format alone; empty without any."""
        options: dict[str, Any] = {}
        if self.on_duplicate != "refuse":
            options["on_duplicate"] = self.on_duplicate
        if self.real_vehicles != RealVehiclesOptions():
            options["real_vehicles"] = self.real_vehicles.resolved.model_dump(mode="json")
        return {"format": self.format, **options} if options else {}

    @model_validator(mode="after")
    def _refuse_ignored(self) -> DatasetConfig:
        if self.format not in ("veri776", "real-vehicles"):
            if self.keypoints is not None:
                raise ValueError(
                    f"keypoints: format {self.format} has no keypoint files; drop the option or use a table"
                )
            if self.on_duplicate != "refuse":
                raise ValueError(f"on_duplicate: format {self.format} has no keypoint files; drop the option")
        if self.format != "real-vehicles" and self.real_vehicles != RealVehiclesOptions():
            raise ValueError(f"real_vehicles: only for format real-vehicles, this is {self.format}; drop the option")
        return self


def read_dataset(config: DatasetConfig) -> list[Record]:
    """Every image of a raw data set; warnings about it go to the log.

    Raises:
        ValueError: the data set is not found (shows the expected tree), or it has errors (all of them).
    """
    return readable_records(survey_dataset(config))


def survey_dataset(config: DatasetConfig) -> Survey:
    """The same records together with everything odd about them, errors included; see `read_dataset`."""
    match config.format:
        case "veri776":
            return veri776.survey_veri776(config.root, config.keypoints, config.on_duplicate)
        case "vehicleid":
            return vehicleid.survey_vehicleid(config.root)
        case "veriwild":
            return veriwild.survey_veriwild(config.root)
        case "real-vehicles":
            return real_vehicles.survey_real_vehicles(
                config.root, config.real_vehicles, config.keypoints, config.on_duplicate
            )
        case "table":
            return survey_table(config.root)


def detect_format(path: str | Path) -> Format:
    """The format of whatever lies at `path`, by the same search that the readers use.

    Raises:
        ValueError: nothing known lies there; names every format with its tree.
    """
    given = Path(path).expanduser()
    if given.suffix.lower() in (".csv", ".parquet"):
        return "table"
    fitting: list[Format] = []
    almost: list[ValueError] = []
    for name, layout in LAYOUTS.items():
        try:
            find_root(given, layout)
            fitting.append(name)
        except ValueError as error:
            if resembles(given, layout):
                almost.append(error)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(
            f"{given} holds several data sets ({', '.join(fitting)}); name the format or the folder itself"
        )
    if given.is_dir() and any(child.suffix.lower() in (".csv", ".parquet") for child in given.iterdir()):
        return "table"
    if len(almost) == 1:
        raise almost[0]
    trees = "\n".join(f"{name}:\n{layout.tree}" for name, layout in LAYOUTS.items())
    state = "holds no known data set" if given.exists() else "does not exist"
    raise ValueError(f"{given} {state}. Expected a .csv or .parquet table, or one of\n{trees}")
