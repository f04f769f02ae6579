"""What every rule is made of: types, simplex, history, scores, re-weighting steps, filters, constraints, needs."""
