"""What becomes of a domain without a usable target: said in the config, and said aloud when it happens."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from vtune_jax.errors import UserError
from vtune_jax.fits.diagnostics import DOUBTFUL, UNUSABLE
from vtune_jax.fits.estimate import TargetEstimate
from vtune_jax.fits.fitted import Target
from vtune_jax.fits.pooling import pooled_losses
from vtune_jax.fits.sizes import SizeEstimate

Policy = Literal["error", "last_seen", "pooled", "given"]


def apply_policy(
    estimate: TargetEstimate | SizeEstimate,
    target: Target | None,
    initial_losses: np.ndarray,
    *,
    policy: Policy,
    names: Sequence[str],
    given: Sequence[float] = (),
    strict: bool = False,
) -> tuple[Float[np.ndarray, " domains"], list[str]]:
    """Targets to be used, and one line aloud for each that was replaced.

    Args:
        estimate: with verdicts.
        target: where it was read off; None: over model sizes.
        initial_losses: of the base model.
        policy: `error` refuses; `last_seen` takes the loss at the most tokens, which overstates what can be reached;
            `pooled` takes the law that the usable domains have in common, at the domain's own level; `given` takes the
            user's own number.
        names: of the domains.
        given: one number per domain, for `given`.
        strict: also replaces targets that are merely doubtful: under-determined, too wide, or too far.

    Raises:
        UserError: under `error`, naming every domain without a usable target; or no domain to pool with.
    """
    refused = UNUSABLE | DOUBTFUL if strict else UNUSABLE
    reasons = [
        next((advice for verdict, advice in zip(*both, strict=True) if verdict in refused), "")
        for both in zip(estimate.verdicts, estimate.advices, strict=True)
    ]
    bad = np.array([bool(reason) for reason in reasons])
    targets, notes = estimate.target.copy(), list[str]()
    if not bad.any():
        return targets, notes
    if policy == "error":
        said = "; ".join(f"'{names[domain]}': {reasons[domain]}" for domain in np.flatnonzero(bad).tolist())
        raise UserError(
            f"no usable target loss for {said}",
            'mend that, or set targets.when_unusable = "last_seen", "pooled" or "given"',
        )
    if policy == "pooled" and bad.all():
        raise UserError(
            "no domain has a usable target, so there is none to pool with",
            'lengthen the proxies, or set targets.when_unusable = "last_seen"',
        )
    replacement, what = {
        "last_seen": lambda: (estimate.last_seen, "The loss of its longest proxy"),
        "pooled": lambda: (_pooled(estimate, target, ~bad), "What the other domains' common law gives"),
        "given": lambda: (np.asarray(given, np.float64), "The given target"),
    }[policy]()
    for domain in np.flatnonzero(bad).tolist():
        targets[domain] = replacement[domain]
        note = f"domain '{names[domain]}': {reasons[domain]}. {what}, {targets[domain]:.3f}, is used"
        if not targets[domain] < initial_losses[domain]:
            note += f"; it is not below the initial {initial_losses[domain]:.3f}: the remaining fraction counts as 0"
        notes.append(note)
    return targets, notes


def _pooled(estimate: TargetEstimate | SizeEstimate, target: Target | None, sound: np.ndarray) -> np.ndarray:
    if target is None or isinstance(estimate, SizeEstimate):
        raise UserError(
            "a law over model sizes has no curves that domains could pool",
            'set targets.when_unusable = "last_seen" or "given", or give losses of one size, without params',
        )
    return pooled_losses(estimate.curves, target, sound)
