"Real files for tests: in the folder that SSLPDL_DATA names, or the test is skipped."

import pytest

from sslpdl_nb.io.samples import find_real


def real(name):
    "The path of a real file or folder."
    path = find_real(name)
    if path is None:
        pytest.skip(f"no real file {name}: set SSLPDL_DATA")
    return path
