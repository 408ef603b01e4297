"""A small network around every layer, and nets whose graphs are more than a chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

F64 = torch.float64


class Entry(NamedTuple):
    """A layer in a network: a layer with weights before it, a linear one after it."""

    name: str
    build: Callable[[], nn.Module]
    sample: tuple[int, ...]  # shape of one sample
    ids: int = 0  # inputs are whole numbers below this
    outputs: int = 3
    label: str = ""  # of the layer in its stage, if it is not the first word of the name
    seed: int | None = None  # of dropout


def flat(layer: Callable[[], nn.Module], width: int = 5, after: int = 5) -> Callable[[], nn.Module]:
    """On vectors: 4 -> width, the layer, after -> 3."""
    return lambda: nn.Sequential(nn.Linear(4, width), layer(), nn.Linear(after, 3))


def signal(layer: Callable[[], nn.Module], after: int) -> Callable[[], nn.Module]:
    """On (2, 6) signals."""
    return lambda: nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1), layer(), nn.Flatten(), nn.Linear(after, 3)
    )


def image(layer: Callable[[], nn.Module], after: int) -> Callable[[], nn.Module]:
    """On (1, 4, 4) images."""
    return lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), layer(), nn.Flatten(), nn.Linear(after, 3)
    )


def sequence(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """On (3, 4) sequences."""
    return lambda: nn.Sequential(nn.Linear(4, 4), layer(), nn.Flatten(), nn.Linear(12, 3))


class SelfAttention(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x)[0]


class ScaledDot(nn.Module):
    """Attention written out, with a causal mask in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(3, 3).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask))


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, activation="gelu")


def weight_norm() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))


ACTIVATIONS = [
    *("ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Softplus"),
    *("Softsign", "Tanh", "Sigmoid", "LogSigmoid", "Hardtanh", "Hardswish", "Hardsigmoid"),
    *("Tanhshrink", "Softshrink", "Hardshrink", "PReLU"),
]


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Bilinear(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), x)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.out = kind(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0][:, -1])


class Unrolled(nn.Module):
    """A recurrence: the cell is used three times, its weights are tied."""

    def __init__(self, kind: type[nn.RNNCellBase], **options: object) -> None:
        super().__init__()
        self.cell, self.out = kind(4, 5, **options), nn.Linear(5, 3)
        self.pair = kind is nn.LSTMCell

    def forward(self, x: Tensor) -> Tensor:
        h = torch.full((x.shape[0], 5), 0.1, dtype=x.dtype)
        state = (h, h) if self.pair else h
        for t in range(3):
            state = self.cell(x[:, t], state)
        return self.out(state[0] if self.pair else state)


LAYERS = [
    Entry("Linear", flat(lambda: nn.Linear(5, 7), 5, 7), (4,)),
    Entry("Linear (no bias)", flat(lambda: nn.Linear(5, 2, bias=False), 5, 2), (4,)),
    Entry("Linear on sequences", sequence(lambda: nn.Linear(4, 4)), (3, 4)),
    Entry("Bilinear", Pair, (4,)),
    Entry("Conv1d", signal(lambda: nn.Conv1d(3, 2, 3, stride=2), 4), (2, 6)),
    Entry("Conv2d", image(lambda: nn.Conv2d(2, 4, 2, stride=2), 16), (1, 4, 4)),
    Entry("Conv2d (grouped, reflect)", image(
        lambda: nn.Conv2d(2, 2, 3, padding=1, groups=2, padding_mode="reflect"), 32), (1, 4, 4)),
    Entry("Conv3d", lambda: nn.Sequential(
        nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)), (1, 3, 3, 3)),
    Entry("ConvTranspose1d", signal(lambda: nn.ConvTranspose1d(3, 2, 3, stride=2), 26), (2, 6)),
    Entry("ConvTranspose2d", image(lambda: nn.ConvTranspose2d(2, 1, 2, stride=2), 64), (1, 4, 4)),
    Entry("Embedding", lambda: nn.Sequential(
        nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, 3)), (4,), ids=7),
    *(Entry(name, flat(getattr(nn, name)), (4,)) for name in ACTIVATIONS),
    Entry("Softmax", flat(lambda: nn.Softmax(dim=-1)), (4,)),
    Entry("LogSoftmax", flat(lambda: nn.LogSoftmax(dim=-1)), (4,)),
    Entry("GLU", flat(nn.GLU, 10, 5), (4,)),
    Entry("MaxPool1d", signal(lambda: nn.MaxPool1d(2), 9), (2, 6)),
    Entry("AvgPool1d", signal(lambda: nn.AvgPool1d(2), 9), (2, 6)),
    Entry("AdaptiveAvgPool1d", signal(lambda: nn.AdaptiveAvgPool1d(2), 6), (2, 6)),
    Entry("AdaptiveMaxPool1d", signal(lambda: nn.AdaptiveMaxPool1d(2), 6), (2, 6)),
    Entry("MaxPool2d", image(lambda: nn.MaxPool2d(2), 8), (1, 4, 4)),
    Entry("AvgPool2d", image(lambda: nn.AvgPool2d(2), 8), (1, 4, 4)),
    Entry("AdaptiveAvgPool2d", image(lambda: nn.AdaptiveAvgPool2d(3), 18), (1, 4, 4)),
    Entry("AdaptiveMaxPool2d", image(lambda: nn.AdaptiveMaxPool2d(1), 2), (1, 4, 4)),
    Entry("LPPool2d", image(lambda: nn.LPPool2d(2, 2), 8), (1, 4, 4)),
    Entry("Flatten", lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), (2, 3)),
    Entry("Unflatten", lambda: nn.Sequential(
        nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 3, 2), nn.Flatten()), (4,),
        outputs=6),
    Entry("Identity", flat(nn.Identity), (4,)),
    Entry("Upsample", image(lambda: nn.Upsample(scale_factor=2), 128), (1, 4, 4)),
    Entry("PixelShuffle", lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.PixelShuffle(2), nn.Flatten(), nn.Linear(64, 3)),
        (1, 4, 4)),
    Entry("ZeroPad2d", image(lambda: nn.ZeroPad2d(1), 72), (1, 4, 4)),
    Entry("LayerNorm", flat(lambda: nn.LayerNorm(5)), (4,)),
    Entry("RMSNorm", flat(lambda: nn.RMSNorm(5)), (4,)),
    Entry("GroupNorm", image(lambda: nn.GroupNorm(2, 2), 32), (1, 4, 4)),
    Entry("InstanceNorm2d", image(lambda: nn.InstanceNorm2d(2, affine=True), 32), (1, 4, 4)),
    Entry("LocalResponseNorm", image(lambda: nn.LocalResponseNorm(2), 32), (1, 4, 4)),
    Entry("BatchNorm1d (training)", flat(lambda: nn.BatchNorm1d(5)), (4,)),
    Entry("BatchNorm2d (training)", image(lambda: nn.BatchNorm2d(2), 32), (1, 4, 4)),
    Entry("BatchNorm1d (eval)", flat(lambda: nn.BatchNorm1d(5).eval()), (4,)),
    Entry("BatchNorm2d (eval)", image(lambda: nn.BatchNorm2d(2).eval(), 32), (1, 4, 4)),
    Entry("Dropout (eval)", flat(lambda: nn.Dropout(0.5).eval()), (4,)),
    Entry("Dropout (training, no seed)", flat(lambda: nn.Dropout(0.5)), (4,)),
    Entry("Dropout (training, seed)", flat(lambda: nn.Dropout(0.5)), (4,), seed=1),
    Entry("Dropout2d (training, seed)", image(lambda: nn.Dropout2d(0.5), 32), (1, 4, 4), seed=1),
    Entry("AlphaDropout (training)", flat(nn.AlphaDropout), (4,)),
    Entry("MultiheadAttention", sequence(SelfAttention), (3, 4)),
    Entry("MultiheadAttention (batch second)", sequence(lambda: SelfAttention(False)), (3, 4)),
    Entry("scaled_dot_product_attention", sequence(ScaledDot), (3, 4)),
    Entry("TransformerEncoderLayer", sequence(encoder_layer), (3, 4)),
    Entry("weight_norm", flat(weight_norm), (4,), label="ParametrizedLinear"),
    Entry("LSTM", lambda: Recurrent(nn.LSTM), (3, 4)),
    Entry("GRU", lambda: Recurrent(nn.GRU), (3, 4)),
    Entry("RNNCell", lambda: Unrolled(nn.RNNCell, nonlinearity="relu"), (3, 4)),
    Entry("GRUCell", lambda: Unrolled(nn.GRUCell), (3, 4)),
    Entry("LSTMCell", lambda: Unrolled(nn.LSTMCell), (3, 4)),
]  # fmt: skip


# -- graphs --------------------------------------------------------------------------------------
class Residual(nn.Module):
    """Two residual blocks, one with a projection on the skip; in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(4, 6)
        self.act, self.out = nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h += x
        h = self.act(h)
        return self.out(torch.tanh(self.b(h)) + self.c(h))


class InPlace(nn.Module):
    """Values are read again after an operation has changed them in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.act = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        y = self.b(self.act(h))
        y.mul_(2)
        return self.out(torch.cos(F.elu(y, inplace=True)) + h + y)


class UShaped(nn.Module):
    """Down, down, up, up with skips by concatenation; output (3, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.d1, self.d2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.up, self.u1 = nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Conv2d(4, 3, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.d1(x))
        b = F.elu(self.d2(self.pool(a)))
        return self.u1(torch.cat((self.up(b), a), dim=1))


class Dense(nn.Module):
    """Each layer sees all activations before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4 + 3 * i, 3) for i in range(3)])
        self.out = nn.Linear(13, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat((x, torch.tanh(layer(x))), dim=-1)
        return self.out(x)


class Transformer(nn.Module):
    """Token and learned position embeddings, a causal block, a class token, parameters as such."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.first = nn.Embedding(7, 4), nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(0.1 * torch.randn(5, 4))
        self.attention, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)
        self.up, self.down, self.out = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        B, L = ids.shape
        some = (ids > 2).any(dim=1, keepdim=True)
        x = torch.cat((self.first.expand(B, -1, -1), self.tokens(ids)), dim=1)
        x = x + self.positions
        h = self.norm(x)
        mask = torch.ones(L + 1, L + 1).triu(1).bool()
        x = x + self.attention(h, h, h, attn_mask=mask, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(x)))
        return self.out(x[:, 0] * some)


class Tied(nn.Module):
    """An autoencoder whose decoder is the transpose of its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.encoder, self.last = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.encoder(torch.tanh(self.first(x))))
        return self.last(torch.tanh(h @ self.encoder.weight))


class Branching(nn.Module):
    """A submodule that torch.fx cannot look into, in the middle."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            if int(torch.linalg.matrix_rank(torch.eye(x.shape[-1]))) == 5:
                return self.linear(x)
            return x

    def __init__(self) -> None:
        super().__init__()
        self.a, self.inner, self.b = nn.Linear(4, 5), self.Inner(), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.inner(torch.tanh(self.a(x)))))


class Lenet(nn.Module):
    """View and sizes from the batch, functional pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.fc, self.out = nn.Conv2d(1, 2, 3), nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.c(x)), 2, stride=1, padding=0)
        x = F.interpolate(x, size=(2, 2)).view(x.size(0), -1)
        return self.out(F.relu(self.fc(x)))


class NormalisedResidual(nn.Module):
    """Batch norm in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.c2, self.n2 = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.out = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.n1(self.c1(x)))
        return self.out(F.relu(self.n2(self.c2(h)) + h).mean(dim=(2, 3)))


GRAPHS = [
    Entry("chain", lambda: nn.Sequential(
        nn.Sequential(nn.Linear(4, 2), nn.Tanh()), nn.Sequential(nn.Linear(2, 6), nn.ReLU()),
        nn.Linear(6, 3)), (4,)),
    Entry("residual", Residual, (4,)),
    Entry("U", UShaped, (1, 4, 4), outputs=48),
    Entry("dense", Dense, (4,)),
    Entry("transformer", Transformer, (4,), ids=7),
    Entry("tied", Tied, (4,)),
    Entry("opaque", Branching, (4,)),
    Entry("lenet", Lenet, (1, 4, 4)),
    Entry("normalised residual", NormalisedResidual, (1, 4, 4)),
    Entry("in place", InPlace, (4,)),
    Entry("single layer", lambda: nn.Linear(4, 3), (4,)),
]  # fmt: skip


def data(entry: Entry, B: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(B)
    if entry.ids:
        x = torch.randint(entry.ids, (B, *entry.sample), generator=g)
    else:
        x = torch.randn(B, *entry.sample, generator=g, dtype=F64).to(dtype)
    return x, torch.randint(3, (B,), generator=g)


def made(entry: Entry, dtype: torch.dtype = F64) -> nn.Module:
    """The network, with running statistics of batch norms that are not those it starts with."""
    torch.manual_seed(1)
    model = entry.build().to(dtype)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model
