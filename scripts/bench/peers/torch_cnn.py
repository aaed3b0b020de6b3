"""The convolutional net in PyTorch: channels-last, an index a batch, the fused AdamW.

With the word `compile`, net and loss are compiled by `torch.compile`. Images are turned, scaled,
slanted and moved in the step, a batch at once, by `grid_sample`.

Left out for being slower here: channels first, and convolutions as products of matrices (`cat` of
slices and `matmul`), compiled or not.
"""

import math
import os
import time

import numpy as np
import torch
from recipe import (
    EPSILON,
    MOMENTUM,
    filters,
    hidden,
    how,
    order,
    output,
    rates,
    recipe,
    tell,
    x_test,
    x_train,
    y_test,
    y_train,
)
from torch import nn
from torch.nn import functional


def layers():
    channels, side = 1, x_train.shape[1]
    for place, number in enumerate(filters, start=1):
        yield nn.Conv2d(channels, number, 3, bias=False)
        channels, side = number, side - 2
        if place < len(filters):
            yield nn.MaxPool2d(2)
            side //= 2
        yield from normalized(nn.BatchNorm2d, channels)
    yield nn.Flatten()
    features = channels * side**2
    if hidden:
        yield nn.Linear(features, hidden, bias=False)
        yield from normalized(nn.BatchNorm1d, hidden)
        features = hidden
    if recipe["dropout"]:
        yield nn.Dropout(recipe["dropout"])
    yield nn.Linear(features, 10)


def normalized(kind, channels):
    norm = kind(channels, eps=EPSILON, momentum=1 - MOMENTUM)
    norm.weight.requires_grad_(False)  # no scale, as in the job
    return norm, nn.ReLU(inplace=True)


def augmented(images):
    """Return `images`, shape (batch, 1, side, side), each transformed a little, as in the job."""
    limits = recipe["affine"]
    if limits is None:
        return images
    turn, tall, wide, slant, down, right = torch.empty(6, len(images)).uniform_(-1, 1)
    angle, slant = turn * limits["degrees"] * math.pi / 180, slant * limits["slant"]
    tall, wide = 1 + tall * limits["scale"], 1 + wide * limits["scale"]
    move = 2 * limits["move"]  # grids go from -1 to 1
    cosine, sine = angle.cos(), angle.sin()
    from_x = [(sine * slant + cosine) * wide, sine * tall, right * move]
    from_y = [(cosine * slant - sine) * wide, cosine * tall, down * move]
    matrices = torch.stack([*from_x, *from_y], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrices, images.shape, align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


torch.manual_seed(0)
model = nn.Sequential(*layers())
for parameter in model.parameters():
    if parameter.dim() > 1:
        nn.init.xavier_uniform_(parameter)
model.to(memory_format=torch.channels_last)
learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(
    [
        {
            "params": [parameter for parameter in learned if parameter.dim() > 1],
            "weight_decay": recipe["weight_decay"],
        },
        {"params": [parameter for parameter in learned if parameter.dim() == 1]},
    ],
    weight_decay=0,
    eps=1e-7,  # as Keras has it
    fused=True,
)


def loss_of(images, labels):
    smoothing = recipe["label_smoothing"]
    return functional.cross_entropy(model(images), labels, label_smoothing=smoothing)


if how == ["compile"]:
    # No program is kept from one process to the next, as for all; PyTorch's own headers are.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{output}/compiled"
    loss_of = torch.compile(loss_of)
images = torch.from_numpy(x_train).float().div_(255).unsqueeze(1)
labels = torch.from_numpy(y_train.astype(np.int64))
seconds = []
for rates_of_epoch in rates().tolist():
    began = time.perf_counter()
    for rows, rate in zip(torch.from_numpy(order()), rates_of_epoch, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        pixels = augmented(images.index_select(0, rows))
        loss_of(pixels, labels.index_select(0, rows)).backward()
        optimizer.step()
    seconds.append(time.perf_counter() - began)
model.eval()
with torch.inference_mode():
    tests = torch.from_numpy(x_test).float().div_(255).unsqueeze(1)
    predicted = torch.cat([model(part).argmax(1) for part in tests.split(1000)])
torch.save(model.state_dict(), f"{output}/weights.pt")
statistics = [b for name, b in model.named_buffers() if "running" in name]
numbers = sum(array.numel() for array in [*learned, *statistics])
tell((predicted.numpy() == y_test).mean(), seconds, numbers)
