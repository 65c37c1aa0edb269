"""How do the numbers look beside their null? Small functions from an `Estimate` to a figure.

Every picture draws the control into the same axes as the observed value, never beside it, and says
both in its hover text. Figures are plotly's, which is imported where one is drawn.
"""

from mechinterp_toolkit.plots.estimates import curve, heat_map, picture, spectrum, strip
from mechinterp_toolkit.plots.look import (
    SERIES,
    Colours,
    Figure,
    escape,
    template,
    without_foreign_tags,
)
from mechinterp_toolkit.plots.plain import matrix, plane
