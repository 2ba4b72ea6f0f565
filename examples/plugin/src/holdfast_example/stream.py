"""A stream: the same inputs, with more and more noise."""

import torch

from holdfast import lab


@lab.register_stream("noisy-digits", summary="digits under more and more noise", data="digits", num_tasks=3)
def noisy(plan):
    """Task k has noise of standard deviation k/4, the same each time."""
    generator = torch.Generator().manual_seed(plan.seed)

    def task(k):
        def with_noise(part):
            noise = torch.randn(part.inputs.shape, generator=generator)
            return lab.Examples(part.inputs + k / 4 * noise, part.targets)

        return plan.data.map(with_noise, name=f"noise {k / 4:g}", classes=plan.data.classes)

    return lab.Stream.of(plan.name, [task(k) for k in range(plan.num_tasks)], scenario=plan.scenario)
