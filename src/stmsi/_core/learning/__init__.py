"""Tools of the models: expression space, folds, solvers, stacking, both stages together."""
