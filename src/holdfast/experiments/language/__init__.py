"""Ready language models: what their skill rests on, measured and kept, and fine-tuning that holds it.

`rows` reads data, `models` finds a model, `batches` brings them together, `skills` says how well the model does,
`measuring` and `importance_folder` make the file to share, `finetuning` holds it.
"""
