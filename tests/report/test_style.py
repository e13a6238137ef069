"""Colours: one for a method in every report, and readable on both pages."""

from pathlib import Path

from svdexp.cells.choices import config_dir
from svdexp.report.style import COLOURS, SHAPES, STAR, marker, styles


def luminance(colour: str) -> float:
    """As WCAG 2 has it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_method_has_a_colour_of_its_own() -> None:
    assert COLOURS.keys() == {path.stem for path in (Path(config_dir()) / "method").glob("*.yaml")}
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_colours_stand_out_on_the_light_and_on_the_dark_page() -> None:
    for name, colour in COLOURS.items():
        for page in ("#ffffff", "#14181c"):
            low, high = sorted((luminance(colour), luminance(page)))
            assert (high + 0.05) / (low + 0.05) >= 3, (name, page)


def test_a_method_looks_the_same_whatever_stands_beside_it() -> None:
    alone = styles([("kron", "kron"), ("mine", "mine")])
    beside = styles([("asvd", "asvd"), ("kron", "kron"), ("mine", "mine"), ("zzz", "zzz")])
    assert {name: beside[name] for name in alone} == alone
    assert alone["mine"].colour in COLOURS.values()


def test_lines_of_one_method_share_its_colour_and_differ_in_marker() -> None:
    looks = styles([(f"kron · {i}", "kron") for i in range(12)])
    assert {look.colour for look in looks.values()} == {COLOURS["kron"]}
    assert len(set(looks.values())) == 12
    assert len({look.shape for look in list(looks.values())[:8]}) == 8


def test_every_marker_can_be_drawn_beside_its_name() -> None:
    assert all(marker(shape).startswith("M") for shape in SHAPES)
    assert STAR not in SHAPES
