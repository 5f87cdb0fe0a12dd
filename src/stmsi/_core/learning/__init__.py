"""What models learn with: expression space, folds, solvers, stacking, the two stages put together."""
