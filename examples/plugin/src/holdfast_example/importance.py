"""An importance: how far each weight has come from zero. Methods ewc-magnitude and wva-magnitude come with it."""

import holdfast as hf
from holdfast import lab


@lab.register_importance("magnitude", label="magnitude", source="the size of each weight")
def magnitude(model, task):
    """|theta|, the quantity that is pruned by."""
    values = {name: weight.detach().abs() for name, weight in model.named_parameters() if weight.requires_grad}
    return hf.Importance(values, hf.ImportanceInfo(kind="magnitude", num_examples=len(task.examples)))
