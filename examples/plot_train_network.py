"""
A network as an optimal control problem
=======================================

The layers are stages, the activations states and the weights controls; training is a solver step
on every batch. Gaussian clusters, so that no data set is needed.
"""

import torch

import ocp_nn
from ocp_nn.data import clusters
from ocp_nn.experiments import compare, mlp
from ocp_nn.experiments.plots import curves

torch.set_num_threads(1)
data = clusters(classes=5, features=8, per_class=60, distance=2.5)

# %%
# What the compiler makes of a small network.

model = mlp(data.shape, data.classes, (16, 16), "tanh")
problem = ocp_nn.compile(model, "cross_entropy", data.inputs[:16], data.targets[:16])
print(ocp_nn.stage_table(problem))

# %%
# One step of DDP is one solver step on that problem with the batch's data.

optimizer = ocp_nn.DDPOptimizer(model, "cross_entropy", damping=0.3, terminal_damping=0.3)
for start in range(0, 64, 16):
    batch = slice(start, start + 16)
    loss = optimizer.step(data.inputs[batch], data.targets[batch])
    print(f"loss of the batch before its step: {float(loss):.3f}")

# %%
# Beside other optimisers, from the same weights and with the same batches.

study = compare(
    data,
    {"sgd": {"lr": 0.3}, "adam": {"lr": 0.01}, "ekfac": {}, "ddp": {}},
    lambda seed: mlp(data.shape, data.classes, (16, 16), "tanh", seed=seed),
    epochs=4,
    batch_size=16,
)
print(study.table())

# %%
# Training loss and test accuracy, by epoch and by seconds.

figure = curves(study.title, {name: [r.rows for r in runs] for name, runs in study.results.items()})
