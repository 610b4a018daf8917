"""The book: its parts and lessons, in reading order, which is also the order of imports.

The strip in each notebook, the table on the front page and the sidebar of the site are made from
this list:

    python tools/book.py            # fills the strips and the sidebar
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Lesson:
    "One notebook."

    stem: str  # file name without suffix
    module: str  # that it exports, below sslpdl_nb; empty = none
    about: str  # what you learn


@dataclass(frozen=True)
class Part:
    "A part of the book."

    title: str
    about: str
    lessons: tuple = ()


BOOK = (
    Part(
        "Start",
        "The whole way in a quarter of an hour; words, grids and figures that all use; recipes.",
        (
            Lesson("00_tour", "", "the whole way from forecast to rain map, on the bundled sample"),
            Lesson("01_core", "core", "sixteen variables, one configuration, a glossary"),
            Lesson("02_grids", "grids.types", "where the pixels are: maps by hand and by PROJ"),
            Lesson("03_viz", "viz", "maps, rain colours, coastlines without a download"),
            Lesson("04_recipes", "", "from a download to a map: GFS, HRRR, ERA5, WRF, ICON, Korea"),
            Lesson("05_check", "check", "is my answer right? exercises that can tell"),
        ),
    ),
    Part(
        "The method",
        "From a store of samples to a map of rain probability.",
        (
            Lesson("10_store", "store", "samples, splits by whole days, standardising"),
            Lesson("11_labels", "labels", "probabilistic density labels and their loss"),
            Lesson("12_deform", "deform", "deformable convolution by hand, and its layer"),
            Lesson("13_encoder", "encoder", "InternImage, with layers that are really called"),
            Lesson("14_decoder", "decoder", "UPerNet: pooling and feature pyramid"),
            Lesson("15_masking", "masking", "tokens, masks, what a masked loss sees"),
            Lesson("16_train", "train", "a training loop that can be stopped and resumed"),
            Lesson("17_checkpoint", "checkpoint", "weights and everything that explains them"),
            Lesson("18_pretrain", "pretrain", "self-supervised pre-training, against baselines"),
            Lesson("19_verify", "verify", "scores, reliability, and honest intervals"),
            Lesson("20_decide", "decide", "calibration and probability thresholds"),
            Lesson("21_finetune", "finetune", "moving the encoder to rain; two baselines"),
            Lesson("22_results", "", "every forecast on the held-out days"),
            Lesson("23_gradcam", "gradcam", "which parts of a forecast the network relies on"),
            Lesson("24_predict", "predict", "from a forecast to a rain map in CF form"),
            Lesson("25_weights", "weights", "trained weights by name, and cards for them"),
        ),
    ),
    Part(
        "Data",
        "Where samples come from: a simulated atmosphere, and the files of real models and radars.",
        (
            Lesson(
                "30_simulate_model", "simulate.model", "a simulated atmosphere and forecasts of it"
            ),
            Lesson(
                "31_simulate_archive",
                "simulate.archive",
                "archives, and the best forecast possible",
            ),
            Lesson(
                "32_grids_neighbours", "grids.neighbours", "nearest points on the sphere, weights"
            ),
            Lesson("33_grids_regrid", "grids.regrid", "from one grid to another; rain totals"),
            Lesson("34_io_samples", "io.samples", "public forecasts and radar images by name"),
            Lesson("35_io_fields", "io.fields", "what a field is before it is read"),
            Lesson("36_io_derive", "io.derive", "units, and quantities that physics can supply"),
            Lesson("37_io_octets", "io.octets", "the frame of GRIB messages, octet by octet"),
            Lesson("38_io_grib", "io.grib", "GRIB: quantities, grids, values"),
            Lesson("39_io_times", "io.times", "when the fields of a NetCDF file are valid"),
            Lesson("40_io_netcdf", "io.netcdf", "NetCDF and Zarr, field by field"),
            Lesson("41_io_wrf", "io.wrf", "raw WRF output on pressure levels"),
            Lesson("42_io_lexicon", "io.lexicon", "the names that models and radars use"),
            Lesson("43_io_plan", "io.plan", "how each of sixteen variables is made"),
            Lesson("44_io_nwp", "io.nwp", "forecasts of any model as one dataset"),
            Lesson("45_io_radar", "io.radar", "radar images: from counts to rain"),
            Lesson("46_io_qpe", "io.qpe", "observed rain, added up to hours"),
            Lesson("47_io_prepare", "io.prepare", "from a year of files to one store"),
            Lesson("48_io_inspect", "io.inspect", "what a file is, and the next command"),
            Lesson("49_cli", "cli", "nine commands, and a real forecast"),
        ),
    ),
    Part(
        "Speed",
        "The deformable convolution on CPU and GPU.",
        (
            Lesson("50_kernels_cpu", "kernels.cpu", "the kernel on a CPU, compiled by numba"),
            Lesson("51_kernels_gpu", "kernels.gpu", "the kernel on a GPU, and without one"),
            Lesson(
                "52_kernels_backend", "kernels.backend", "choosing a kernel; the limit of memory"
            ),
        ),
    ),
    Part(
        "Experiments",
        "The method on trial: its rivals, what each part is worth, and how sure one can be.",
        (
            Lesson(
                "60_baselines_protocol", "baselines.protocol", "what a rival must be able to do"
            ),
            Lesson(
                "61_baselines_neighbourhood",
                "baselines.neighbourhood",
                "raw forecast, quantile mapping, share of rain around a pixel",
            ),
            Lesson("62_baselines_pixels", "baselines.pixels", "logistic regression and boosting"),
            Lesson("63_baselines_emos", "baselines.emos", "a censored gamma distribution"),
            Lesson("64_baselines_losses", "baselines.losses", "losses for rare classes"),
            Lesson("65_baselines_networks", "baselines.networks", "any network, trained fairly"),
            Lesson("66_baselines_recurrent", "baselines.recurrent", "ConvLSTM and MetNet"),
            Lesson(
                "67_baselines_library", "baselines.library", "ConvNeXt, SegFormer, Swin, DeepLab"
            ),
            Lesson(
                "68_baselines_registry", "baselines.registry", "all rivals by name, in one table"
            ),
            Lesson("69_experiments_cells", "experiments.cells", "one comparison, and its code"),
            Lesson("70_experiments_scores", "experiments.scores", "counts that tell everything"),
            Lesson("71_experiments_claims", "experiments.claims", "how sure one can be"),
            Lesson(
                "72_experiments_figures", "experiments.figures", "one style for all comparisons"
            ),
            Lesson("73_experiments_runner", "experiments.runner", "studies that can be killed"),
            Lesson(
                "74_experiments_diagnosis",
                "experiments.diagnosis",
                "where the papers' gains come from",
            ),
            Lesson("75_papers", "", "the papers' tables and figures, remade"),
            Lesson("76_learning_curves", "", "skill against the amount of weather"),
            Lesson(
                "77_experiments_pretexts", "experiments.pretexts", "what masked pre-training learns"
            ),
            Lesson("78_labels", "", "what finds heavy rain: labels, losses, weights"),
            Lesson("79_transfer", "", "adapters, lead times, regions, missing variables"),
        ),
    ),
    Part(
        "Nowcasting",
        "From radar images to the next hour.",
        (
            Lesson("80_nowcast_sky", "nowcast.sky", "a simulated radar with a known best forecast"),
            Lesson("81_nowcast_frames", "nowcast.frames", "how real it is; an archive of frames"),
            Lesson("82_nowcast_flow", "nowcast.flow", "moving the rain: S-PROG and an ensemble"),
            Lesson(
                "83_nowcast_sparse", "nowcast.sparse", "hiding blocks from a convolution: SparK"
            ),
            Lesson("84_nowcast_networks", "nowcast.networks", "SmaAt-UNet and SpaT-SparK"),
            Lesson("85_nowcast_measures", "nowcast.measures", "what a nowcast is praised for"),
            Lesson("86_nowcast_verify", "nowcast.verify", "which of two nowcasts is better"),
            Lesson("87_nowcast_tasks", "nowcast.tasks", "what a network is asked for"),
            Lesson("88_nowcast_train", "nowcast.train", "from a configuration to a checkpoint"),
            Lesson("89_nowcast_predict", "nowcast.predict", "from radar files to the next hour"),
            Lesson("90_nowcast_study", "nowcast.study", "a question becomes a cell of a table"),
            Lesson("91_nowcast_answers", "", "who forecasts the next hour best; nine answers"),
        ),
    ),
)
LESSONS = tuple(lesson for part in BOOK for lesson in part.lessons)


def part_of(stem: str) -> tuple:
    "Number and part of a lesson."
    for number, part in enumerate(BOOK):
        if stem in [lesson.stem for lesson in part.lessons]:
            return number, part
    raise KeyError(f"{stem} is not in tools/book.py")


# ------------------------------------------------------------------ the strip of a notebook

STRIP = re.compile(r"<!-- strip -->(?:.*<!-- /strip -->)?", re.S)


def strip(stem: str) -> str:
    "Where a lesson stands: its part, and the lessons around it."
    number, part = part_of(stem)
    names = []
    for lesson in part.lessons:
        name = lesson.stem.split("_", 1)[1]
        if lesson.stem == stem:
            names.append(f"**{name}**")
        else:
            names.append(f"[{name}]({lesson.stem}.ipynb)")
    lines = ["<!-- strip -->", f"*Part {number}, {part.title}:* " + " → ".join(names)]
    if part.lessons[0].stem == stem:
        lines.insert(1, f"**Part {number}. {part.title}.** {part.about}\n")
    return "\n".join([*lines, "<!-- /strip -->"])


def fill_strip(path: Path) -> bool:
    "Fill the strip of a notebook; whether that changed it."
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and "<!-- strip -->" in source:
            filled = STRIP.sub(lambda _: strip(path.stem), source, count=1)
            cell["source"] = filled.splitlines(keepends=True)
    new = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if new != text:
        path.write_text(new, encoding="utf-8")
    return new != text


# ------------------------------------------------------------------ sidebar and table

SIDEBAR = re.compile(r"( *)# book: begin\n.*?# book: end", re.S)


def sidebar(indent: str) -> str:
    "The contents of the site's sidebar."
    lines = ["# book: begin", "- index.ipynb"]
    for part in BOOK:
        if part.lessons:
            names = ", ".join(f"{lesson.stem}.ipynb" for lesson in part.lessons)
            lines.append(f"- {{section: {part.title}, contents: [{names}]}}")
    lines.append("# book: end")
    return "\n".join(indent + line for line in lines)


def fill_sidebar(path: Path):
    "Fill the sidebar of _quarto.yml."
    text = path.read_text(encoding="utf-8")
    path.write_text(SIDEBAR.sub(lambda m: sidebar(m[1]), text), encoding="utf-8")


def table(
    seconds: dict,  # stem -> seconds of a run
) -> str:  # markdown
    "The table of the front page, one part after the other."
    lines = []
    for number, part in enumerate(BOOK):
        lines += [f"### Part {number}. {part.title}", "", part.about, ""]
        if part.lessons:
            lines += ["| notebook | what you learn | module | seconds |", "|---|---|---|---|"]
        for lesson in part.lessons:
            module = f"`sslpdl_nb.{lesson.module}`" if lesson.module else ""
            link = f"[{lesson.stem}]({lesson.stem}.ipynb)"
            lines.append(f"| {link} | {lesson.about} | {module} | {seconds.get(lesson.stem, '')} |")
        lines.append("")
    return "\n".join(lines).strip()


def main(root: Path = ROOT) -> int:
    for lesson in LESSONS:
        path = root / "nbs" / f"{lesson.stem}.ipynb"
        if path.exists():
            fill_strip(path)
    fill_sidebar(root / "_quarto.yml")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
