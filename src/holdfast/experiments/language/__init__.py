"""Ready language models: what their skill rests on, measured and kept, and fine-tuning that holds it.

`rows` reads data, `sources` names them, `models` finds a model and `heads` its heads, `choosing` says what is to be
done, `batches` brings data and model together, `skills` and `old_skill` say how well the model does, `measuring` and
`importance_folder` make the file to share, `finetuning` holds it, and `keeping` and `kept` tell what became of both
skills.
"""
