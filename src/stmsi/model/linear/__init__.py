"""HurdleLinear and its regressions: one estimator for each metabolite and stage, and the negative controls."""
