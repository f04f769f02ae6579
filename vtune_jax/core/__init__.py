"""Types, simplex operations, history, scores, steps and constraints: what every rule is made of."""
