"""A convolutional net on the 8x8 digits, trained by a loop of PyTorch."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dist_net.data import dataset_named

torch.manual_seed(0)
torch.set_num_threads(1)
digits = dataset_named("digits")


def tensors(images, labels):
    return TensorDataset(torch.tensor(images) / 255, torch.tensor(labels, dtype=torch.int64))


train = tensors(digits.train_inputs, digits.train_targets)
test = tensors(digits.test_inputs, digits.test_targets)

module = nn.Sequential(
    nn.Unflatten(1, (1, 8)),
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Dropout(0.2),
    nn.Linear(256, 10),
)
loss = nn.CrossEntropyLoss()

if __name__ == "__main__":
    optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
    for _ in range(6):
        for images, labels in DataLoader(train, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            loss(module(images), labels).backward()
            optimizer.step()
    module.eval()
    images, labels = test.tensors
    accuracy = (module(images).argmax(1) == labels).float().mean()
    print(f"test accuracy {accuracy:.1%}")
