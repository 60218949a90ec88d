"""List files (`path label`), files of class names, and folders whose names are odd."""

from __future__ import annotations

import random
from pathlib import Path

from lbitcls.datasets.base import read_class_names
from lbitcls.datasets.folder import ImageFolder, read_list
from lbitcls.datasets.imagenet import ImageNet
from lbitcls.datasets.listing import images_of
from lbitcls.starter.survey import survey_folder
from lbitcls.utils.errors import ConfigError
from stress.damage import damaged
from stress.images import encoded
from stress.names import odd_name, writable
from stress.verdicts import Kind

_LABELS = ("0", "1", "2", "-1", "1.0", "٣", "９", "", "x", "1" * 30, "0x1", "1e3", "+1", "1_0", "\0", "²")
_ENDS = ("\n", "\r\n", "\r", "\n\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028")
_ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32", "utf-7")


def _encoded(text: str, draw: random.Random) -> bytes:
    return text.encode(draw.choice(_ENCODINGS), "replace")


class Lists(Kind):
    """A list file or a file of class names per case, with odd names, odd labels, odd ends, or damaged."""

    name = "list and names files"
    count = 19_000
    most_mib = 64

    def prepare(self, folder: Path) -> None:
        self.wholes = [
            b"a.jpg 0\nb b.jpg 1\nc.jpg 2\n",
            "é/雛菊.png 1\n\nx.jpg 0\n".encode(),
            b"\xef\xbb\xbfcat\ndog\n",
        ]

    def draw(self, number: int, folder: Path) -> str:
        draw = random.Random(f"list {number}")
        if draw.random() < 0.4:
            said, content = damaged(draw.choice(self.wholes), draw, self.wholes)
        else:
            lines = [f"{odd_name(draw)} {draw.choice(_LABELS)}" for _ in range(draw.randint(0, 6))]
            said, content = ascii(lines)[:300], _encoded("".join(line + draw.choice(_ENDS) for line in lines), draw)
        (folder / "list.txt").write_bytes(content)
        return said

    def read(self, number: int, folder: Path) -> object:
        names = read_class_names(str(folder / "list.txt"))
        return read_list(folder / "list.txt", folder, len(names or ()) if number % 2 else 3)


class Folders(Kind):
    """A folder of class folders and images with odd names per case, through data sets and the survey of `init`."""

    name = "folders of odd names"
    count = 1_000
    most_mib = 64

    def prepare(self, folder: Path) -> None:
        self.image, self.broken = encoded("PNG", "L"), encoded("PNG", "L")[:40]

    def draw(self, number: int, folder: Path) -> str:
        draw = random.Random(f"folder {number}")
        names = [name for name in (odd_name(draw) for _ in range(8)) if writable(name) and len(name) < 60]
        for name in names[:3] or ["a"]:
            inside = folder / "photos" / name
            inside.mkdir(parents=True, exist_ok=True)
            for other in [*names[3:], "x"]:
                suffix = draw.choice((".png", ".PNG", ".jpg", ""))
                content = self.image if draw.random() < 0.8 else self.broken
                (inside / f"{other}{suffix}").write_bytes(content)
        return ascii(names)[:300]

    def read(self, number: int, folder: Path) -> object:
        root = folder / "photos"
        if number % 3 == 0:
            survey = survey_folder(root, workers=0)
            return [image.name for image in survey.unreadable()]
        if number % 3 == 1:
            try:
                ImageNet(data_prefix=str(root))
            except ConfigError:
                images_of(root)
        dataset = ImageFolder(data_prefix=str(root), classes=None)
        return [dataset[index] for index in range(len(dataset))]
