"""What becomes of a domain without a usable target: the config decides, and a note tells when it happens."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from vtune_jax.errors import UserError
from vtune_jax.fits.laws.law import Estimate
from vtune_jax.fits.verdicts import DOUBTFUL, UNUSABLE

Policy = Literal["error", "last_seen", "pooled", "given"]


def apply_policy(
    estimate: Estimate,
    initial_losses: np.ndarray,
    *,
    policy: Policy,
    names: Sequence[str],
    fallback: Sequence[float] = (),
    strict: bool = False,
) -> tuple[Float[np.ndarray, " domains"], list[str]]:
    """Targets to be used, and one note for each that was replaced.

    Args:
        estimate: at a budget.
        initial_losses: of the base model.
        policy: `error` refuses; `last_seen` takes the loss at the most tokens, which is higher than the loss that can
            be reached; `pooled` takes the law that the usable domains have in common, at the domain's own level;
            `given` takes the fallback.
        names: of the domains.
        fallback: the user's own target losses, one per domain, for `given`.
        strict: also replaces targets that are merely doubtful: under-determined, too wide, or too far.

    Raises:
        UserError: under `error`, naming every domain without a usable target; under `pooled`, if no domain is usable.
    """
    refused = UNUSABLE | DOUBTFUL if strict else UNUSABLE
    reasons = [
        next((judgement.advice for judgement in domain if judgement.verdict in refused), "")
        for domain in estimate.judgements
    ]
    unusable = np.array([bool(reason) for reason in reasons])
    targets, notes = estimate.target.copy(), list[str]()
    if not unusable.any():
        return targets, notes
    if policy == "error":
        listed = "; ".join(f"'{names[domain]}': {reasons[domain]}" for domain in np.flatnonzero(unusable).tolist())
        raise UserError(
            f"no usable target loss for {listed}",
            'mend that, or set targets.when_unusable = "last_seen", "pooled" or "given"',
        )
    if policy == "pooled" and unusable.all():
        raise UserError(
            "no domain has a usable target, so there is none to pool with",
            'lengthen the proxies, or set targets.when_unusable = "last_seen"',
        )
    if policy == "last_seen":
        replacement, what = estimate.last_seen, "The loss of its longest proxy"
    elif policy == "pooled":
        replacement, what = estimate.pooled(~unusable), "The target of the other domains' common law"
    else:
        replacement, what = np.asarray(fallback, np.float64), "The given target"
    for domain in np.flatnonzero(unusable).tolist():
        targets[domain] = replacement[domain]
        note = f"domain '{names[domain]}': {reasons[domain]}. {what}, {targets[domain]:.3f}, is used"
        if not targets[domain] < initial_losses[domain]:
            note += f"; it is not below the initial {initial_losses[domain]:.3f}: the remaining fraction counts as 0"
        notes.append(note)
    return targets, notes
