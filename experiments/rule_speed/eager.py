"""The rules in the style of their own repositories: eager numpy on one vector, written from the formulas."""

from collections.abc import Callable
from typing import Any

import numpy as np

Evidence = dict[str, Any]
Step = Callable[[Evidence], np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


def eg(weights: np.ndarray, scores: np.ndarray, eta: float, c: float) -> np.ndarray:
    return (1 - c) * softmax(np.log(weights) + eta * scores) + c / len(weights)


def steps(facts: dict[str, np.ndarray]) -> dict[str, Step]:
    """One stateful step per method, on the constants of a run."""
    prior, initial, target, sizes = (facts[name] for name in ("prior", "initial", "target", "sizes"))
    k = len(prior)
    state: dict[str, Any] = {
        name: prior.copy()
        for name in ("velocitune", "dbl", "doremi", "doge", "group_dro", "odm", "ado", "aioli", "grape", "tasks")
    }
    state |= {"reward": np.zeros(k), "eps": 1 / k, "window": [], "mean": np.zeros(k), "score": np.zeros(k)}
    state |= {"credit": prior.copy(), "average": prior.copy(), "n": np.zeros(k), "last": initial.copy(), "phase": 0}
    state |= {"drops": np.zeros((k, k)), "loss": initial.copy()}

    def velocitune(e: Evidence) -> np.ndarray:
        remaining = np.clip((e["loss"] - target) / (initial - target), 0, 1)
        state["velocitune"] = eg(state["velocitune"], remaining, 1.0, 0.0)
        return state["velocitune"]

    def dbl(e: Evidence) -> np.ndarray:
        new = eg(state["dbl"], e["loss"] - target, 1.0, 1e-4)
        state["dbl"] = new / new.sum()
        return state["dbl"]

    def group_dro(e: Evidence) -> np.ndarray:
        new = state["group_dro"] * np.exp(0.01 * e["loss"])
        state["group_dro"] = new / new.sum()
        return state["group_dro"]

    def cvar(e: Evidence) -> np.ndarray:
        state["mean"] = 0.9 * state["mean"] + 0.1 * e["loss"]
        order = np.argsort(-state["mean"])
        share = (sizes / sizes.sum())[order]
        taken = np.clip(0.2 - (np.cumsum(share) - share), 0, share) / 0.2
        weights = np.zeros(k)
        weights[order] = taken / taken.sum()
        return weights

    def odm(e: Evidence) -> np.ndarray:
        state["reward"] = state["reward"] + 0.1 * e["loss"] / state["odm"]
        chosen = softmax(state["eps"] * state["reward"])
        state["eps"] = min(1 / k, np.sqrt(np.log(k) / (k * e["step"])))
        state["odm"] = (1 - k * state["eps"]) * chosen + state["eps"]
        return state["odm"]

    def skillit(e: Evidence) -> np.ndarray:
        state["window"] = [*state["window"][-2:], e["loss"]]
        return softmax(0.2 * (facts["graph"] @ np.sum(state["window"], axis=0)))

    def doremi(e: Evidence) -> np.ndarray:
        state["score"] = np.where(e["tokens"] > 0, e["clipped"] / e["tokens"], state["score"])
        state["doremi"] = eg(state["doremi"], state["score"], 1.0, 1e-3)
        return state["doremi"]

    def doge(e: Evidence) -> np.ndarray:
        shrink = np.minimum(1, 5 / (e["norm"] + 1e-6))
        inner = e["inner"] * shrink[:, None] * shrink
        score = 1e-3 * inner.sum(axis=1) / ((shrink * e["norm"]).mean() + 1e-6)
        state["doge"] = eg(state["doge"], np.clip(score, 0, 5e-3), 20.0, 0.0)
        return state["doge"]

    def grape(e: Evidence) -> np.ndarray:
        rate = (state["last"] - e["loss"]) / state["last"]
        state["last"] = e["loss"]
        state["tasks"] = eg(state["tasks"], -rate, 20.0, 0.0)
        score = 1e-3 * (e["inner"] @ (state["tasks"] / e["loss"])) / (e["norm"].mean() + 1e-6)
        state["grape"] = eg(state["grape"], score, 20.0, 0.0)
        return state["grape"]

    def ado(e: Evidence) -> np.ndarray:
        total = e["tokens"].sum()
        state["credit"] = 0.9 * state["credit"] + 0.1 * e["tokens"] / total
        state["n"] = state["n"] + total
        slope = 0.4 * np.exp(2.0) * state["n"] ** -0.4 / state["n"]
        rho = prior * np.sqrt(state["credit"]) * slope
        rho = np.maximum(rho / rho.sum(), 0.01)
        rho /= rho.sum()
        weights = 0.9 * state["average"] + 0.1 * rho
        state["average"] = state["average"] + (rho - state["average"]) / (e["step"] + 1)
        return weights

    return {
        "velocitune": velocitune,
        "dbl": dbl,
        "group_dro": group_dro,
        "group_dro cvar": cvar,
        "odm": odm,
        "skillit": skillit,
        "doremi": doremi,
        "doge": doge,
        "grape": grape,
        "ado": ado,
    }
