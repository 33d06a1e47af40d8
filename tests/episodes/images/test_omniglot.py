import functools
import hashlib
import threading
import zipfile
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastmeta.episodes import ImageClasses, omniglot, omniglot_characters, split_omniglot
from fastmeta.episodes.images.omniglot import read_drawings
from fastmeta.episodes.images.zips import zip_files

PATCHED = "fastmeta.episodes.images.omniglot"
# Part, alphabet, character, number; the numbers are not in the order of the names.
CHARACTERS = (
    ("images_background", "Latin", "character01", 2),
    ("images_background", "Greek", "character01", 1),
    ("images_evaluation", "Angelic", "character07", 3),
)
NAMES = ("Greek/character01", "Latin/character01", "Angelic/character07")
DRAWERS = 3


def bitmap(number, drawer):
    """A drawing: black ink on white, as published."""
    ink = np.random.default_rng([number, drawer]).random((105, 105)) < 0.3
    return Image.fromarray(np.where(ink, 0, 255).astype(np.uint8)).convert("1")


def drawn(number, size=28):
    """What is to become of the drawings of a character."""
    images = [
        Image.fromarray(255 - np.asarray(bitmap(number, drawer).convert("L")))
        for drawer in range(1, DRAWERS + 1)
    ]
    small = [image.resize((size, size), Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image)[None] for image in small])


@pytest.fixture
def small_omniglot(monkeypatch):
    """Omniglot has three characters by three drawers."""
    parts = [(part, sum(c[0] == part for c in CHARACTERS), "") for part, *_ in CHARACTERS[1:]]
    for name, value in (("PARTS", parts), ("CHARACTERS", 3), ("BACKGROUND", 2), ("DRAWERS", 3)):
        monkeypatch.setattr(f"{PATCHED}.{name}", value)


@pytest.fixture
def folders(tmp_path, small_omniglot):
    """The folders, as extracted."""
    for part, alphabet, character, number in CHARACTERS:
        place = tmp_path / "data" / part / alphabet / character
        place.mkdir(parents=True)
        for drawer in range(1, DRAWERS + 1):
            bitmap(number, drawer).save(place / f"{number:04d}_{drawer:02d}.png")
    return tmp_path / "data"


@pytest.fixture
def zips(tmp_path, folders):
    """The zips, as published."""
    target = tmp_path / "zips"
    target.mkdir()
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(target / f"{part}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{part}/", "")
            for file in sorted((folders / part).rglob("*.png"), reverse=True):
                archive.write(file, file.relative_to(folders))
            archive.writestr(f"__MACOSX/{part}/._0001_01.png", b"not an image")
    return target


@pytest.fixture
def server(zips, monkeypatch):
    """The zips at an address, with their checksums; gives what was asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(zips))
    parts = [
        (part, count, hashlib.md5((zips / f"{part}.zip").read_bytes()).hexdigest())
        for part, count in (("images_background", 2), ("images_evaluation", 1))
    ]
    monkeypatch.setattr(f"{PATCHED}.PARTS", parts)
    with HTTPServer(("127.0.0.1", 0), handler) as running:
        monkeypatch.setattr(f"{PATCHED}.SOURCE", f"http://127.0.0.1:{running.server_port}")
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield asked
        running.shutdown()
        thread.join()


def assert_all_there(characters, size=28):
    assert characters.names == NAMES
    for number, name in enumerate(NAMES, 1):
        np.testing.assert_array_equal(characters[name], drawn(number, size))


# ---- what is on disk ----------------------------------------------------------------------------


def test_folders_and_zips(folders, zips):
    assert_all_there(omniglot_characters(folders))
    assert_all_there(omniglot_characters(zips))
    assert_all_there(omniglot_characters(zips, image_size=20), 20)
    assert {file.suffix for file in zips.iterdir()} == {".zip"}  # nothing was extracted


def test_a_zip_beside_a_folder(folders, zips):
    for file in zips.glob("*evaluation.zip"):
        file.rename(folders / file.name)
    for file in sorted((folders / "images_evaluation").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (folders / "images_evaluation").rmdir()
    assert_all_there(omniglot_characters(folders))


def test_nothing_there_says_what_is_needed(tmp_path):
    with pytest.raises(OSError, match="needs omniglot_28.npz, or images_background.zip and"):
        omniglot_characters(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_drawing(folders):
    (folders / "images_background" / "Latin" / "character01" / "0002_02.png").unlink()
    with pytest.raises(ValueError, match="Latin/character01 has 2 drawings and not 3"):
        omniglot_characters(folders)


def test_a_missing_character(folders):
    for file in (folders / "images_background" / "Latin" / "character01").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="images_background has 1 characters, Omniglot 2"):
        omniglot_characters(folders)


def test_a_corrupt_drawing(folders):
    broken = folders / "images_evaluation" / "Angelic" / "character07" / "0003_01.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match="character07/0003_01.png cannot be read as an image"):
        omniglot_characters(folders)


def test_files_of_another_name(folders):
    place = folders / "images_evaluation" / "Angelic" / "character07"
    (place / "0003_01.png").rename(place / "first.png")
    with pytest.raises(ValueError, match="first.png is not named as drawings are"):
        omniglot_characters(folders)
    (place / "first.png").rename(place / "0001_01.png")
    with pytest.raises(ValueError, match="Angelic/character07 has 1 drawings and not 3"):
        omniglot_characters(folders)


@pytest.mark.parametrize("name", ["../0003_09.png", "/tmp/0003_09.png", "a\\..\\..\\0003_09.png"])
def test_a_zip_that_leads_out_of_its_folder(zips, name):
    with zipfile.ZipFile(zips / "images_evaluation.zip", "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(ValueError, match="images_evaluation.zip has a file .* outside its folder"):
        omniglot_characters(zips)


def test_a_zip_with_a_file_that_is_no_drawing(zips):
    with zipfile.ZipFile(zips / "images_evaluation.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images_evaluation/a/b/0009_01.png", bytes(1 << 21))
    with pytest.raises(ValueError, match="has 2097152 bytes: no drawing"):
        omniglot_characters(zips)


def test_a_damaged_zip(zips):
    path = zips / "images_background.zip"
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:400] + b"\xff" * 40 + whole[440:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="images_background.zip cannot be read as a zip"):
            omniglot_characters(zips)


# ---- downloads and the archive ------------------------------------------------------------------


def test_a_download_is_kept_as_an_archive(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert_all_there(omniglot_characters())
    folder = tmp_path / "cache" / "fastmeta" / "omniglot"
    kept = ["images_background.zip", "images_evaluation.zip", "omniglot_28.npz"]
    assert sorted(file.name for file in folder.iterdir()) == kept
    with np.load(folder / "omniglot_28.npz") as archive:
        assert archive["images"].shape == (3, 3, 28, 28)
        assert archive["background"].tolist() == [1, 1, 0]
    assert_all_there(omniglot_characters())
    assert len(server) == 2
    (folder / "images_background.zip").unlink()
    assert_all_there(omniglot_characters(folder / "omniglot_28.npz"))
    assert_all_there(omniglot_characters(image_size=20), 20)  # fetches what is missing only
    assert len(server) == 3


def test_a_named_folder_is_filled_only_if_asked(server, tmp_path):
    with pytest.raises(FileNotFoundError):
        omniglot_characters(tmp_path / "new")
    assert not server
    assert_all_there(omniglot_characters(tmp_path / "new", download=True))


def test_another_checksum_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{PATCHED}.PARTS", [("images_background", 2, "0" * 32)])
    with pytest.raises(ValueError, match="images_background.zip has MD5"):
        omniglot_characters(tmp_path / "new", download=True)
    assert not list((tmp_path / "new").iterdir())


def test_an_archive_in_another_order(tmp_path, small_omniglot):
    images = np.stack([drawn(number)[:, 0] for number in (3, 1, 2)])
    arrays = {"images": images, "names": np.array([NAMES[2], *NAMES[:2]])}
    np.savez(tmp_path / "omniglot_28.npz", character_id=np.array([3, 1, 2]), **arrays)
    assert_all_there(omniglot_characters(tmp_path))
    np.savez(tmp_path / "omniglot_28.npz", character_id=np.array([3, 1, 1]), **arrays)
    with pytest.raises(ValueError, match="omniglot_28.npz: names and character_id"):
        omniglot_characters(tmp_path)
    np.savez(tmp_path / "omniglot_20.npz", character_id=np.array([3, 1, 2]), **arrays)
    with pytest.raises(ValueError, match=r"images must be uint8 \[3, 3, 20, 20\]"):
        omniglot_characters(tmp_path, image_size=20)


# ---- splits -------------------------------------------------------------------------------------


def test_wrong_splits():
    few = ImageClasses.of({"a/b": torch.zeros(1, 1, 2, 2, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="one of vinyals, first-1200, background, not 'x'"):
        split_omniglot(few, "x")
    with pytest.raises(ValueError, match="1623 characters, not 1"):
        split_omniglot(few)


@pytest.mark.parametrize(
    ("split", "counts"),
    [
        ("vinyals", (1028, 172, 423)),
        ("first-1200", (1200, 0, 423)),
        ("background", (792, 172, 659)),
    ],
)
def test_published_counts(data_folder, split, counts):
    splits = omniglot(data_folder, split=split)
    assert tuple(map(len, splits)) == counts
    names = {name for side in splits for name in side.names}
    assert len(names) == 1623


def test_the_split_of_vinyals(data_folder):
    folder = data_folder / "splits" / "omniglot_vinyals"
    for side, file in zip(omniglot(data_folder), ("train", "val", "test"), strict=True):
        listed = (folder / f"{file}.txt").read_text().split()
        assert set(side.names) == {line.rpartition("/")[0] for line in listed}


def test_the_background_set(data_folder):
    with np.load(data_folder / "omniglot_28.npz") as archive:
        evaluation = set(archive["names"][archive["background"] == 0].tolist())
    assert set(omniglot(data_folder, split="background").test.names) == evaluation


def test_published_drawings_become_the_archive(data_folder):
    archive = omniglot_characters(data_folder)
    found = read_drawings(zip_files(data_folder / "original" / "images_background_small1.zip"))
    assert len(found) == 136
    for number, (name, images) in found.items():
        assert archive.names[number - 1] == name
        np.testing.assert_array_equal(archive[name], images)


def test_every_image_is_where_the_archive_has_it(data_folder):
    characters = omniglot_characters(Path(data_folder) / "omniglot_28.npz")
    with np.load(data_folder / "omniglot_28.npz") as archive:
        for row in (0, 700, 1622):
            name = str(archive["names"][row])
            np.testing.assert_array_equal(characters[name][:, 0], archive["images"][row])


def test_a_download_that_fails_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(f"{PATCHED}.SOURCE", "http://127.0.0.1:1")
    with pytest.raises(OSError, match=r"was not downloaded: .*--data DIR .* omniglot\(DIR\)"):
        omniglot_characters()
