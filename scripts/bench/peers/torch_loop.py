"""The same training in PyTorch: tensors in memory, an index a batch, the fused Adam.

Left out for being slower here: `torch.compile`, which takes 17 seconds and more to compile a step
and gains nothing on it, and a single thread.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import nn

batch, epochs, data, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]

with np.load(data) as mnist:
    x_train = torch.from_numpy(mnist["x_train"].reshape(-1, 784)).float() / 255
    y_train = torch.from_numpy(mnist["y_train"].astype(np.int64))
    x_test = torch.from_numpy(mnist["x_test"].reshape(-1, 784)).float() / 255
    y_test = torch.from_numpy(mnist["y_test"].astype(np.int64))

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
loss_of = nn.CrossEntropyLoss()
seconds = []
for _ in range(epochs):
    began = time.perf_counter()
    for rows in torch.randperm(len(x_train)).split(batch):
        optimizer.zero_grad(set_to_none=True)
        images, labels = x_train.index_select(0, rows), y_train.index_select(0, rows)
        loss_of(model(images), labels).backward()
        optimizer.step()
    seconds.append(time.perf_counter() - began)
with torch.inference_mode():
    accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
torch.save(model.state_dict(), f"{output}/weights.pt")
speed = len(x_train) / float(np.median(seconds[1:]))
print(json.dumps({"accuracy": accuracy, "images_per_second": speed}))
