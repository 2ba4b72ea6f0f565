"""What the batches, the outputs and the output columns of a model mean."""
