"""Read a whole data set once, to know before a benchmark what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from stainbridge.errors import StainbridgeError

from .item import Dataset


@dataclass(frozen=True)
class Checked:
    """What was found.

    Parameters
    ----------
    pictures, nuclei, positive : counts; `positive` is None where there are no classes
    faults : one sentence for each picture that cannot be used
    """

    dataset: Dataset
    pictures: int
    nuclei: int
    positive: int | None
    faults: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return what to print."""
        card, named = self.dataset.card, "/".join(part for part in (self.dataset.name, self.dataset.split) if part)
        first = f"{named} in {self.dataset.folder}: {self.pictures} pictures of {card.stain}"
        if self.dataset.has_truth:
            first += f", {self.nuclei} nuclei" + (
                "" if self.positive is None else f", {self.positive} of them positive"
            )
        reading = [f"truth is read as {self.dataset.reading}"] if self.dataset.reading else []
        licence = f"licence: {card.licence}{'' if card.commercial else ' (no commercial use)'}"
        return [first, *reading, licence, *self.dataset.remarks, *self.faults]


def check_dataset(dataset: Dataset) -> Checked:
    """Read every picture, and its truth where there is one."""
    nuclei, positive, classified, faults = 0, 0, False, []
    for item in dataset.items:
        try:
            if item.truth is None:
                source = item.source()
                source.read(0, 0, 1, 1)
                continue
            sample = item.sample()
            sample.source.read(0, 0, 1, 1)
        except StainbridgeError as error:
            faults.append(f"{item.name}: {error}")
            continue
        nuclei += int(sample.truth.array.max(initial=0))
        if sample.positive is not None:
            classified, positive = True, positive + int(sample.positive.sum())
    return Checked(dataset, len(dataset), nuclei, positive if classified else None, tuple(faults))
