"""Open a data set by the name of its card, or by a table that says where pictures lie and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator

from stainbridge.cards import Archive, DataCard, Facts, Filled, Layout, Mpp
from stainbridge.config import explain
from stainbridge.errors import ConfigError, DataUnavailable, ScaleUnknown, StainbridgeError
from stainbridge.interfaces import Stain
from stainbridge.registry import load_registry

from .columns import read_subsets
from .deepliif import check_reading, deepliif_items
from .fetching import Fetch, archive_of, by_hand_advice, fetch_split
from .folder import folder_items, picture_items
from .item import Dataset, Item, Place, check_unique, scale_unknown
from .monuseg import monuseg_items
from .pannuke import pannuke_items

_LISTERS: Mapping[Layout, Callable[[Place], list[Item]]] = {
    "deepliif": deepliif_items,
    "folder": folder_items,
    "monuseg": monuseg_items,
    "pannuke": pannuke_items,
    "pictures": picture_items,
}


class DatasetTable(Facts):
    """A data set in a suite: the name of a card, or of the user's own with a `layout`.

    Parameters
    ----------
    name : of the card; with `layout`, any name
    layout : how the files lie; only where `name` is no card
    path : folder of the pictures
    truth : folder of the truth, where it is another one
    split, reading, mpp, stain : instead of the card's
    pictures : patterns of file names to take, such as "Lung_*.png"
    positive : ids or names of the classes that are positive
    subsets : a CSV with the columns picture and subset
    licence, commercial : of the user's own pictures
    aliases, contains : names under which models list it in `training`
    """

    name: Filled
    layout: Layout | None = None
    path: Path | None = None
    truth: Path | None = None
    split: str | None = None
    reading: str | None = None
    mpp: Mpp | None = None
    stain: Stain | None = None
    pictures: tuple[str, ...] = ()
    positive: tuple[int | str, ...] = ()
    subsets: Path | None = None
    licence: Filled = "the user's own"
    commercial: bool = True
    aliases: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()

    @field_validator("path", "truth", "subsets")
    @classmethod
    def _at_home(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser()


def open_dataset(
    choice: str | Mapping[str, Any],
    *,
    data_dir: str | Path | None = None,
    split: str | None = None,
    reading: str | None = None,
    offline: bool = False,
    registries: Sequence[str | Path] = (),
    console: Any = None,
) -> Dataset:
    """List the pictures of a data set; they and their truth are read when an item is asked for them.

    Parameters
    ----------
    choice : name of a card, or a table with the keys of `DatasetTable`
    data_dir : where data sets lie (DATA_DIR/datasets/NAME/SPLIT or DATA_DIR/NAME/SPLIT) and are fetched to; None takes
        the cache
    split, reading : instead of the table's and the card's
    offline : never touch the network
    registries : further registry files
    console : a rich console on which a download is drawn

    Raises
    ------
    UnknownDataset
        If no card or split has this name; names the nearest.
    ConfigError
        If the table has an unknown key or a value that is not allowed.
    DataUnavailable
        If the pictures are not there and cannot be fetched.
    DataCorrupt
        If files do not belong together: pictures without truth, truth without picture, two of one name.
    ScaleUnknown
        If a picture has no pixel size and neither card nor table states one.
    """
    table = _table(choice)
    card = _card(table, registries)
    table = table.model_copy(
        update={"split": split or table.split, "reading": reading or table.reading or card.reading}
    )
    archive = archive_of(table.name, card, table.split)
    how = Fetch(None if data_dir is None else Path(data_dir), offline, console)
    place = _place(table, card, archive, _located(table, card, archive, how))
    items = sorted(_LISTERS[card.layout](place), key=lambda item: item.name)
    _check(items, place, card)
    return Dataset(
        table.name,
        card,
        archive.split if archive else table.split,
        place.reading,
        tuple(_with_subsets(items, table.subsets)),
        place.folder,
        _remarks(len(items), card, archive, place),
    )


def _table(choice: str | Mapping[str, Any]) -> DatasetTable:
    values = {"name": choice} if isinstance(choice, str) else dict(choice)
    try:
        return DatasetTable(**values)
    except ValidationError as error:
        raise explain(error, DatasetTable, f"data set {values.get('name', '')!r}") from None


def _card(table: DatasetTable, registries: Sequence[str | Path]) -> DataCard:
    """Return the card with what the table says instead, or one made of the table."""
    said = {key: value for key in ("mpp", "stain", "positive") if (value := getattr(table, key))}
    if table.layout is None:
        card = load_registry(registries).dataset(table.name)
        extended = {key: getattr(card, key) + getattr(table, key) for key in ("aliases", "contains")}
        return card.model_copy(update={**said, **extended})
    if table.name in load_registry(registries).datasets:
        raise ConfigError(
            f"data set {table.name!r}: a card has this name, and says the layout.\n"
            "Leave layout out, or give the table another name."
        )
    for key in ("path", "stain"):
        if getattr(table, key) is None:
            raise ConfigError(f"data set {table.name!r} lacks the key {key!r}, which no card states for it.")
    return DataCard(
        summary=f"{table.name}: pictures of the user",
        layout=table.layout,
        licence=table.licence,
        commercial=table.commercial,
        aliases=table.aliases,
        contains=table.contains,
        **said,
    )


def _located(table: DatasetTable, card: DataCard, archive: Archive | None, how: Fetch) -> Path:
    """Return the folder that the archive was unpacked to, or that the table names; fetches it where it is not there."""
    if table.path is not None:
        if not table.path.is_dir():
            raise DataUnavailable(f"The folder {str(table.path)!r} of the data set {table.name!r} does not exist.")
        return table.path
    found = next((place for place in _candidates(table.name, archive, how) if place.is_dir()), None)
    if found is not None:
        return found
    if archive is not None and how.root is not None and not how.root.is_dir():
        raise DataUnavailable(
            f"The folder of data, {str(how.root)!r}, does not exist.\n{by_hand_advice(table.name, card, archive)}"
        )
    return fetch_split(table.name, card, table.split, how=how)


def _candidates(name: str, archive: Archive | None, how: Fetch) -> list[Path]:
    home = how.home(name)
    if archive is None:
        return [home, home.parents[1] / name]
    places = [home / archive.unpacked, home.parents[1] / name / archive.unpacked]
    # The archive unpacked by hand, which leaves its own folder name.
    roots = [home.parents[1] / name, home.parents[1]]
    return places + [root for root in roots if archive.folder and (root / archive.folder).is_dir()]


def _place(table: DatasetTable, card: DataCard, archive: Archive | None, base: Path) -> Place:
    folder, truth = base, table.truth
    if archive is not None and archive.folder and (base / archive.folder).is_dir():
        folder = base / archive.folder
        inside = base / archive.truth
        truth = inside if truth is None and archive.truth and inside.is_dir() else truth
    if card.layout == "deepliif":
        reading: str | None = check_reading(table.reading or "interior+outline")
    elif table.reading is not None:
        raise ConfigError(f"reading = {table.reading!r}: the truth of {table.name!r} has one reading only.")
    else:
        reading = None
    return Place(folder, truth, table.pictures, card.mpp, reading, card.positive)


def _check(items: Sequence[Item], place: Place, card: DataCard) -> None:
    if not items:
        raise DataUnavailable(f"No picture in {str(place.folder)!r} matches pictures = {list(place.patterns)}.")
    check_unique(items)
    if place.mpp is not None:
        return
    for item in items:
        try:
            item.source()
        except ScaleUnknown:
            raise scale_unknown(item.picture, card.note) from None
        except StainbridgeError:
            continue  # one damaged picture does not stop the others: it fails when its turn comes


def _with_subsets(items: Sequence[Item], csv: Path | None) -> Sequence[Item]:
    if csv is None:
        return items
    subsets = read_subsets(csv, "picture", [item.name for item in items])
    return [replace(item, subset=subsets[item.name]) for item in items]


def _remarks(found: int, card: DataCard, archive: Archive | None, place: Place) -> tuple[str, ...]:
    published = card.pictures.get(archive.split) if archive and not place.patterns else None
    if published is None or published == found:
        return ()
    return (f"{found} pictures where {published} are published",)
