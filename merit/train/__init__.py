"""The model, the encoded examples, and the one training loop; what a branch depends on."""
