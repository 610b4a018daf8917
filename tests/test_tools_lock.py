"The file of tested versions."

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
from lock import locked


def test_versions_of_the_project_only():
    lines = ["zarr==3.1.6", "torch==2.14.1+cu130", "pip==26.1", "sslpdl_nb==0.1.0", "Cartopy==0.26"]
    assert locked(lines) == ["Cartopy==0.26", "torch==2.14.1", "zarr==3.1.6"]
    assert locked(["-e git+https://somewhere", ""]) == []
