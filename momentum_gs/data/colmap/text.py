"""Text COLMAP files."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from momentum_gs.core.errors import UserError
from momentum_gs.data.colmap.records import Intrinsics, Pose, check_model
from momentum_gs.data.lens import Lens, parameter_count


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from enumerate((line.rstrip("\r\n") for line in file), start=1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 ({error.reason}); export the model again") from error


def _holds_data(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _bad_line(path: Path, number: int, line: str, expected: str) -> UserError:
    return UserError(f"{path}: line {number} is {line[:80]!r}, expected {expected}; export the model again")


def text_cameras(path: Path) -> Iterator[tuple[int, Lens]]:
    """Id and lens of every camera in ``cameras.txt``; UserError with the first line that cannot be read."""
    for at, line in _lines(path):
        if not _holds_data(line):
            continue
        fields = line.split()
        if len(fields) > 1:
            check_model(path, fields[0], fields[1])
        try:
            number, name, width, height, *parameters = fields
            if len(parameters) != parameter_count(name):
                raise ValueError(name)
            lens = Lens.from_parameters(name, int(width), int(height), [float(p) for p in parameters])
            camera = int(number), lens
        except ValueError as error:
            raise _bad_line(path, at, line, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS") from error
        yield camera


def text_images(path: Path) -> Iterator[Pose]:
    """The images of ``images.txt``; UserError with the first line that cannot be read."""
    lines = _lines(path)
    for at, line in lines:
        if not _holds_data(line):
            continue
        try:
            # The name comes last and may contain spaces.
            number, *numbers, camera, name = line.strip().split(maxsplit=9)
            values = [float(v) for v in numbers]
            pose = Pose(name, values[:4], values[4:], int(camera), int(number))
            if len(values) != 7:
                raise ValueError(line)
        except ValueError as error:
            raise _bad_line(path, at, line, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME") from error
        # Each image has a second line with its observations, empty if it has none. Only its last word is checked: it is
        # a point's id. In a file without second lines it would be an image name, and every other image would be lost.
        at, line = next(lines, (at, ""))
        try:
            int(line.rsplit(maxsplit=1)[-1] if line.strip() else 0)
        except ValueError as error:
            expected = f"the 2D points of image {name!r} (an empty line if it has none)"
            raise _bad_line(path, at, line, expected) from error
        yield pose


def text_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions [P,3] and colours [P,3] (bytes) of ``points3D.txt``; UserError with the first line that is no point."""
    xyz, rgb = array("d"), array("B")
    for at, line in _lines(path):
        if not _holds_data(line):
            continue
        try:
            _, x, y, z, r, g, b, *_ = line.split(maxsplit=7)
            xyz.extend((float(x), float(y), float(z)))
            rgb.extend((int(r), int(g), int(b)))
        except (ValueError, OverflowError) as error:
            raise _bad_line(path, at, line, "POINT3D_ID X Y Z R G B ERROR TRACK with R, G, B in 0..255") from error
    return np.array(xyz).reshape(-1, 3), np.array(rgb).reshape(-1, 3)


def text_tracks(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As ``binary_tracks``, for ``points3D.txt``; UserError with the first line that cannot be read."""
    error, length, images = array("d"), array("q"), array("i")
    for at, line in _lines(path):
        if not _holds_data(line):
            continue
        try:
            fields = line.split()
            error.append(float(fields[7]))
            track = [int(field) for field in fields[8::2]]
            if len(fields) % 2:
                raise ValueError(line)
            length.append(len(track))
            images.extend(track)
        except (ValueError, IndexError, OverflowError) as failure:
            expected = "POINT3D_ID X Y Z R G B ERROR TRACK[] of pairs IMAGE_ID POINT2D_IDX"
            raise _bad_line(path, at, line, expected) from failure
    return np.array(error), np.array(length), np.array(images)


def write_text(
    folder: Path, ids: dict[Intrinsics, int], poses: Sequence[Pose], xyz: np.ndarray, rgb: np.ndarray
) -> None:
    """As ``write_binary``, for text files; numbers read back bit for bit."""
    cameras = (f"{i} PINHOLE {_words(c)}\n" for c, i in ids.items())
    images = (
        f"{i} {_words(p.quat)} {_words(p.translation)} {p.camera} {p.name}\n\n" for i, p in enumerate(poses, start=1)
    )
    rows = zip(xyz.tolist(), rgb.tolist(), strict=True)
    points = (f"{i} {_words(x)} {_words(c)} 0\n" for i, (x, c) in enumerate(rows, start=1))
    for name, header, lines in (
        ("cameras.txt", "# CAMERA_ID MODEL WIDTH HEIGHT PARAMS\n", cameras),
        ("images.txt", "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of POINTS2D\n", images),
        ("points3D.txt", "# POINT3D_ID X Y Z R G B ERROR TRACK\n", points),
    ):
        with (folder / name).open("w", encoding="utf-8", newline="\n") as file:
            file.write(header)
            file.writelines(lines)


def _words(values: Iterable[float | int]) -> str:
    """Numbers as text that reads back bit for bit."""
    return " ".join(str(v) for v in values)
