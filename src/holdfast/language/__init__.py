"""Ready language models, which come without their data: what their skill rests on is measured, dreamt and held.

`rows` reads data, `models` finds a model and `heads` its heads, `choosing` says what is to be
done, `batches` brings data and model together, `skills` and `old_skill` say how well the model does, `dreaming` lets it
write, `measuring` and `importance_folder` make the file to share, `finetuning` holds it, and `keeping` and `kept` tell
what became of both skills.
"""

from holdfast.language.dreaming import dreams
from holdfast.language.texts import CONFIG, Dreams, DreamsInfo

__all__ = ["CONFIG", "Dreams", "DreamsInfo", "dreams"]
