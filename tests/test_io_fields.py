"Files are known by their first bytes, looked at once and listed in order."

import pickle
import zipfile

import numpy as np
import pytest

from sslpdl_nb.core import DataError
from sslpdl_nb.io.fields import Field, add_file_name, as_raw_file, file_type, list_files, open_file


@pytest.mark.parametrize(
    "content, described",
    [
        (b"GRIB....", "GRIB"),
        (b"\r\r\nHEADER\r\r\nGRIB....", "GRIB"),
        (b"CDF\x01", "NetCDF"),
        (b"\x89HDF\r\n\x1a\n", "NetCDF"),
        (
            b"<!DOCTYPE",
            "a web page or XML file (perhaps the answer of a server to a failed download)",
        ),
        (b"hello", "bytes b'hello'"),
        (b"", "an empty file"),
    ],
)
def test_the_first_bytes_decide(tmp_path, content, described):
    (tmp_path / "a.nc").write_bytes(content)
    assert file_type(tmp_path / "a.nc") == described


@pytest.mark.parametrize(
    "content, command",
    [
        (b"\x1f\x8b\x08", "gunzip"),
        (b"BZh91AY", "bunzip2"),
        (b"\xfd7zXZ\x00", "unxz"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
        (bytes(257) + b"ustar", "tar -xf"),
    ],
)
def test_archives_are_refused_with_the_command_that_unpacks_them(tmp_path, content, command):
    (tmp_path / "a b.grib2").write_bytes(content)
    assert f"unpack it: {command} '{tmp_path}/a b.grib2'" in file_type(tmp_path / "a b.grib2")


def test_the_members_of_a_zip_archive_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "era5.nc", "w") as archive:
        for k in range(6):
            archive.writestr(f"{k}.nc", b"CDF\x01")
    found = file_type(tmp_path / "era5.nc")
    assert found.startswith("a zip archive of 0.nc, 1.nc, 2.nc, 3.nc and 2 more, unpack it: unzip")
    (tmp_path / "era5.nc").write_bytes((tmp_path / "era5.nc").read_bytes()[:40])
    assert file_type(tmp_path / "era5.nc").startswith("a zip archive (damaged), unpack it")


def test_a_file_or_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "secret.nc").write_bytes(b"CDF\x01")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match="secret.nc: .*Permission denied"):
        file_type(tmp_path / "secret.nc")
    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(DataError, match=f"{tmp_path.name}: .*Permission denied"):
        list_files(tmp_path)


def test_what_lies_beside_the_data_is_left_out_and_loops_end(tmp_path):
    folder = tmp_path / "März 2024"
    folder.mkdir()
    beside = ("README", "LICENSE", "a.nc.sha256", "SHA256SUMS", "a.json", "b.csv", "c.PNG", "d.xml")
    for name in ("wrfout_d01_2024-07-01_01:00:00", "größe 1.nc", *beside):
        (folder / name).write_bytes(b"CDF\x01")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/a.pyc").touch()
    (folder / "loop").symlink_to(tmp_path)
    found = [p.name for p in list_files(tmp_path)]
    assert found == ["größe 1.nc", "wrfout_d01_2024-07-01_01:00:00"]


def test_folders_and_nothing_are_told_apart(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(DataError, match="a.zarr.*found a folder"):
        open_file(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/zarr.json").touch()
    assert open_file(tmp_path / "a.zarr").file_type == "Zarr"
    with pytest.raises(DataError, match="lost.*nothing there"):
        open_file(tmp_path / "lost")


def test_a_raw_file_is_not_opened_again(tmp_path):
    (tmp_path / "a").write_bytes(b"GRIB")
    file = open_file(str(tmp_path / "a"))
    (tmp_path / "a").unlink()
    assert as_raw_file(file) is file and file.path == tmp_path / "a"
    assert pickle.loads(pickle.dumps(file)) == file


def test_identity_follows_content_and_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"GRIB")
    one, two = (open_file(tmp_path / name / "a") for name in ("one", "two"))
    assert one.file_id != two.file_id
    (tmp_path / "one/a").write_bytes(b"GRIB and more")
    assert open_file(tmp_path / "one/a").file_id != one.file_id
    assert open_file(tmp_path / "two/a") == two


def test_an_error_names_its_file_once():
    error = add_file_name("a/b.nc", DataError("no times"))
    assert str(error) == "a/b.nc: no times"
    assert add_file_name("a/b.nc", error) is error


def test_folders_by_date_and_indices_beside_the_files(tmp_path):
    names = (
        "20240701/a.grib2",
        "20240702/b.grib2",
        "20240702/b.grib2.idx",
        "20240702/.part",
        "README.md",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"GRIB")
    found = [p.name for p in list_files(tmp_path)]
    assert found == ["a.grib2", "b.grib2"]
    assert [p.name for p in list_files([tmp_path / "20240702", "x.nc"])] == ["b.grib2", "x.nc"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="at least one"):
        list_files(tmp_path / "empty")


def test_a_zarr_store_is_one_file(tmp_path):
    (tmp_path / "a.zarr/t2m").mkdir(parents=True)
    (tmp_path / "a.zarr/.zgroup").touch()
    assert list_files(tmp_path) == [tmp_path / "a.zarr"] == list_files(tmp_path / "a.zarr")


def test_a_file_or_store_that_is_given_twice_is_listed_once(tmp_path, monkeypatch):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr/.zgroup").touch()
    (tmp_path / "b.nc").write_bytes(b"CDF\x01")
    store, file = tmp_path / "a.zarr", tmp_path / "b.nc"
    assert list_files([file, store, file, store]) == [file, store]
    assert list_files([tmp_path, file, store]) == [store, file]
    assert list_files([file, tmp_path]) == [file, store]
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in list_files(["b.nc", file, f"../{tmp_path.name}/b.nc"])] == [
        "b.nc"
    ]
    (tmp_path / "loop.nc").symlink_to("loop.nc")  # leads nowhere: told when it is opened
    assert [path.name for path in list_files(tmp_path)] == ["a.zarr", "b.nc", "loop.nc"]


def test_fields_are_made_by_keywords_and_compared_by_what_they_say():
    about = dict(
        name="tp",
        level_type="surface",
        level=0.0,
        reference_time=np.datetime64("2024-07-01", "ns"),
        start_step=0.0,
        end_step=3.0,
        units="mm",
        file_name="a.grib",
    )
    with pytest.raises(TypeError):
        Field(*about.values())
    one, same = Field(**about, read=lambda: 1), Field(**about, read=lambda: 2)
    assert one == same and hash(one) == hash(same)
    assert one != Field(**about | dict(start_step=2.0))
    assert one.key == ("tp", "surface", 0.0)
