"""HurdleEnsemble: members, their held-out predictions, and the weights that stack them."""
