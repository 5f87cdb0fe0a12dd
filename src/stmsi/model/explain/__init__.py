"""What a trained model attends to and what drives it; read by `tl.attention` and `tl.attribute`."""
