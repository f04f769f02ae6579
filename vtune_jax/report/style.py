"""Colours and fonts that figures, pictures and the page share."""

from vtune_jax.report.results import ArmResult, Results

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7B4173")
"""Okabe and Ito's colours, which colour-blind readers can tell apart, and two more."""
BLUE, RED, GREEN = PALETTE[:3]
TARGET_COLOUR, CONTROL_COLOUR, LAW_COLOUR = GREEN, "#767676", "#999999"
BETTER_COLOUR, WORSE_COLOUR = GREEN, RED
INK, AXIS_COLOUR = "#2b2b2b", "#333333"
FONT = "Inter, system-ui, -apple-system, 'Segoe UI', sans-serif"


def colour_of(results: Results, arm: ArmResult) -> str:
    """The colour of an arm, the same in every figure; the control is grey."""
    control = results.control
    if control is not None and arm.name == control.name:
        return CONTROL_COLOUR
    names = [challenger.name for challenger in results.challengers]
    return PALETTE[names.index(arm.name) % len(PALETTE)]
