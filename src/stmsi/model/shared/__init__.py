"""What all models share: input from AnnData, targets, trained state, model files, the base class."""
