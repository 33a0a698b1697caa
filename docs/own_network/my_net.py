import torch.nn as nn
import torch.nn.functional as F


class CNNModel(nn.Module):
    def __init__(self, kernel_size=5, filters=8, hidden=128, dropout=0.0):
        super().__init__()
        side = (28 - kernel_size + 1) // 2
        self.conv = nn.Conv2d(1, filters, kernel_size)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(filters * side * side, hidden)
        self.fc2 = nn.Linear(hidden, hidden // 2)
        self.fc3 = nn.Linear(hidden // 2, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = self.pool(F.relu(self.conv(x)))
        x = x.view(x.size(0), -1)
        x = self.dropout(F.relu(self.fc1(x)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)
