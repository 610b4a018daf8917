"Packaging: everything is read from settings.ini; edit that file, not this one."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]


def words(key):
    "The blank-separated words under `key`, or an empty list."
    return cfg.get(key, "").split()


class BuildWithWeights(build_py):
    "A wheel carries the bundled weights; an editable install finds them in the repository."

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, cfg["lib_name"], "weights_data")
            self.copy_tree(str(here / "data_samples" / "weights"), str(target))


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
    ],
    packages=find_packages(include=["sslpdl_nb", "sslpdl_nb.*"]),
    package_data={"sslpdl_nb": ["*.npz"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=words("requirements"),
    extras_require={
        "gpu": words("gpu_requirements"),
        "readers": words("readers_requirements"),
        "scale": words("scale_requirements"),
        "experiments": words("experiments_requirements"),
        "site": words("site_requirements"),
        "dev": [
            *words("dev_requirements"),
            *words("readers_requirements"),
            *words("scale_requirements"),
            *words("experiments_requirements"),
            *words("site_requirements"),
        ],
    },
    entry_points={
        "console_scripts": words("console_scripts"),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    cmdclass={"build_py": BuildWithWeights},
    zip_safe=False,
)
