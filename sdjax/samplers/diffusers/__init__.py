"""Samplers that do what diffusers' schedulers do, made from their files.

    sampler = sdjax.samplers.from_diffusers(json.load(open("model/scheduler/scheduler_config.json")))
    sdjax.text_to_image(pipe, "a cat", sampler=sampler, num_steps=20)

`from_diffusers` (build.py) reads the file. Most schedulers are a sampler of this library on one of diffusers' grids
(grid.py); those whose steps differ are in whole.py and own.py.

Source: huggingface/diffusers 0.42.1, schedulers/.
"""
