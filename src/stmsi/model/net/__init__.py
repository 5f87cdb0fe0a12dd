"""HurdleNet, a scvi-tools model: training, prediction, calibration; encoders and torch modules have rooms of their own."""
