"""Colours that can be read, on light paper and on dark, and figures that take those of their page."""

import pytest

from simulations.report.drawing import GRAPHICS, PLAIN, css, themed, variables
from tests.simulations.report.test_report import drawn_figures

LIGHT, DARK = 0, 1


def contrast(one, other):
    """The contrast of two colours, 1 to 21, as WCAG 2.2 defines it."""
    lighter, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (dark + 0.05)


def _luminance(color):
    parts = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_contrast_is_that_of_wcag():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)  # the well-known grey that just fails


@pytest.mark.parametrize("paper", ["paper", "code"])
@pytest.mark.parametrize("mode", [LIGHT, DARK])
@pytest.mark.parametrize("words", ["ink", "muted", "accent", *(name for name in variables() if name.endswith("-text"))])
def test_words_stand_out_by_four_and_a_half(words, mode, paper):
    assert contrast(variables()[words][mode], PLAIN[paper][mode]) >= 4.5


@pytest.mark.parametrize("mode", [LIGHT, DARK])
@pytest.mark.parametrize("name", [*GRAPHICS, "muted"])
def test_graphics_stand_out_by_three(name, mode):
    assert contrast(variables()[name][mode], PLAIN["paper"][mode]) >= 3


@pytest.mark.parametrize("mode", [LIGHT, DARK])
@pytest.mark.parametrize("bar", ["blue", "green-text"])
def test_figures_at_the_foot_of_bars_can_be_read(bar, mode):
    assert contrast(PLAIN["paper"][mode], variables()[bar][mode]) >= 4.5


def test_every_colour_of_a_figure_is_one_of_the_pages():
    for plot in drawn_figures():
        for svg in (plot.svg, plot.narrow):
            assert "#222222" in svg
            assert ": #" not in themed(svg).replace("#000000", "")  # matplotlib's default of what is not drawn
            assert "var(--paper, #ffffff)" in themed(svg)


def test_no_two_variables_are_alike_on_light_paper():
    """Or a figure's colour could be taken for another's."""
    assert len({light for light, _ in variables().values()}) == len(variables())
    assert css(dark=False).count("--") == css(dark=True).count("--") == len(variables())
