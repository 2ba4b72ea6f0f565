"""Keepers in other people's training programs. Each module imports one optional package, and only itself does.

transformers    `HoldfastCallback` for `transformers.Trainer` and the trainers of TRL, which derive from it
lightning       `HoldfastCallback` for `lightning.Trainer`
peft            `LoraEWC`: the importance of base weights held on their LoRA adapters (found in `peft_layers`)
sharding        importances and keepers of models that `fully_shard` or `DistributedDataParallel` spread over processes
"""
