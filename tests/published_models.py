"""Networks as published few-shot code writes them, by the name of the project, small."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

# ---- learn2learn ---------------------------------------------------------------------------------


class Lambda(nn.Module):
    def __init__(self, lmb):
        super().__init__()
        self.lmb = lmb

    def forward(self, *args, **kwargs):
        return self.lmb(*args, **kwargs)


class Flatten(nn.Module):
    def forward(self, input):
        return input.view(input.size(0), -1)


class ConvBlock(nn.Module):
    def __init__(self, inputs, outputs, kernel_size=(3, 3), max_pool=True, max_pool_factor=1.0):
        super().__init__()
        stride = (int(2 * max_pool_factor), int(2 * max_pool_factor))
        if max_pool:
            self.max_pool = nn.MaxPool2d(kernel_size=stride, stride=stride, ceil_mode=False)
            stride = (1, 1)
        else:
            self.max_pool = lambda x: x
        self.normalize = nn.BatchNorm2d(outputs, affine=True)
        nn.init.uniform_(self.normalize.weight)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride=stride, padding=1, bias=True)

    def forward(self, x):
        x = self.conv(x)
        x = self.normalize(x)
        x = self.relu(x)
        x = self.max_pool(x)
        return x


class ConvBase(nn.Sequential):
    def __init__(self, hidden=8, channels=1, max_pool=False, layers=4, max_pool_factor=1.0):
        sizes = [channels, *[hidden] * layers]
        blocks = zip(sizes[:-1], sizes[1:], strict=True)
        super().__init__(
            *(ConvBlock(a, b, (3, 3), max_pool, max_pool_factor) for a, b in blocks)
        )


class OmniglotCNN(nn.Module):
    def __init__(self, output_size=3, hidden_size=8, layers=4):
        super().__init__()
        self.hidden_size = hidden_size
        self.base = ConvBase(hidden=hidden_size, channels=1, max_pool=False, layers=layers)
        self.features = nn.Sequential(
            Lambda(lambda x: x.view(-1, 1, 28, 28)),
            self.base,
            Lambda(lambda x: x.mean(dim=[2, 3])),
            Flatten(),
        )
        self.classifier = nn.Linear(hidden_size, output_size, bias=True)

    def forward(self, x):
        x = self.features(x)
        x = self.classifier(x)
        return x


class CNN4(nn.Module):  # MiniImagenetCNN
    def __init__(self, output_size=3, hidden_size=8, layers=4, channels=3, embedding_size=32):
        super().__init__()
        base = ConvBase(
            hidden=hidden_size, channels=channels, max_pool=True, layers=layers,
            max_pool_factor=4 // layers,
        )  # fmt: skip
        self.features = nn.Sequential(base, Flatten())
        self.classifier = nn.Linear(embedding_size, output_size, bias=True)

    def forward(self, x):
        x = self.features(x)
        x = self.classifier(x)
        return x


def conv3x3(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class ResNet12Block(nn.Module):
    def __init__(self, inputs, planes, stride=1, downsample=None, drop_rate=0.0):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, planes), nn.BatchNorm2d(planes)
        self.relu1 = nn.LeakyReLU(0.1)
        self.conv2, self.bn2 = conv3x3(planes, planes), nn.BatchNorm2d(planes)
        self.relu2 = nn.LeakyReLU(0.1)
        self.conv3, self.bn3 = conv3x3(planes, planes), nn.BatchNorm2d(planes)
        self.relu3 = nn.LeakyReLU(0.1)
        self.maxpool = nn.MaxPool2d(stride)
        self.downsample = downsample
        self.drop_rate = drop_rate
        self.num_batches_tracked = 0

    def forward(self, x):
        self.num_batches_tracked += 1
        residual = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu1(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu2(out)
        out = self.conv3(out)
        out = self.bn3(out)
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        out = self.relu3(out)
        out = self.maxpool(out)
        if self.drop_rate > 0:
            out = F.dropout(out, p=self.drop_rate, training=self.training, inplace=True)
        return out


class ResNet12(nn.Module):
    def __init__(self, output_size=3, widths=(4, 6, 8, 10), channels=3, pool=5):
        super().__init__()
        self.inplanes = channels
        for i, width in enumerate(widths):
            setattr(self, f"layer{i + 1}", self._make_layer(width))
        self.avgpool = nn.AvgPool2d(pool, stride=1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(p=0.0, inplace=False)
        self.classifier = nn.Linear(widths[-1], output_size)

    def _make_layer(self, planes):
        downsample = nn.Sequential(
            nn.Conv2d(self.inplanes, planes, 1, stride=1, bias=False), nn.BatchNorm2d(planes)
        )
        block = ResNet12Block(self.inplanes, planes, 2, downsample)
        self.inplanes = planes
        return nn.Sequential(block)

    def forward(self, x):
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.avgpool(x)
        x = self.flatten(x)
        x = self.dropout(x)
        return self.classifier(x)


class WideBlock(nn.Module):  # of WRN-28-10
    def __init__(self, inputs, outputs, stride, droprate=0.0):
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv2 = conv3x3(outputs, outputs)
        self.droprate = droprate
        self.equalInOut = inputs == outputs
        self.convShortcut = (
            (not self.equalInOut)
            and nn.Conv2d(inputs, outputs, 1, stride=stride, padding=0, bias=False)
            or None
        )

    def forward(self, x):
        if not self.equalInOut:
            x = self.relu1(self.bn1(x))
        else:
            out = self.relu1(self.bn1(x))
        out = self.relu2(self.bn2(self.conv1(out if self.equalInOut else x)))
        if self.droprate > 0:
            out = F.dropout(out, p=self.droprate, training=self.training)
        out = self.conv2(out)
        return torch.add(x if self.equalInOut else self.convShortcut(x), out)


class WideResNet(nn.Module):
    def __init__(self, output_size=3, widths=(4, 6, 8)):
        super().__init__()
        self.conv1 = conv3x3(3, widths[0])
        blocks = [(widths[0], widths[1], 1), (widths[1], widths[1], 1), (widths[1], widths[2], 2)]
        self.layer = nn.ModuleList(WideBlock(*block) for block in blocks)
        self.bn1, self.relu = nn.BatchNorm2d(widths[2]), nn.ReLU(inplace=True)
        self.nChannels = widths[2]
        self.fc = nn.Linear(widths[2], output_size)

    def forward(self, x):
        out = self.conv1(x)
        for block in self.layer:
            out = block(out)
        out = self.relu(self.bn1(out))
        out = F.avg_pool2d(out, out.size()[2:])
        out = out.view(-1, self.nChannels)
        return self.fc(out)


# ---- torchmeta -----------------------------------------------------------------------------------


class MetaModule(nn.Module):
    def get_subdict(self, params, key=None):
        if params is None:
            return None
        start = "" if key is None else f"{key}."
        return OrderedDict(
            (k[len(start) :], v) for k, v in params.items() if k.startswith(start)
        )


class MetaConv2d(nn.Conv2d, MetaModule):
    def forward(self, input, params=None):
        if params is None:
            params = OrderedDict(self.named_parameters())
        bias = params.get("bias", None)
        return self._conv_forward(input, params["weight"], bias)


class MetaLinear(nn.Linear, MetaModule):
    def forward(self, input, params=None):
        if params is None:
            params = OrderedDict(self.named_parameters())
        bias = params.get("bias", None)
        return F.linear(input, params["weight"], bias)


class MetaBatchNorm2d(nn.BatchNorm2d, MetaModule):
    def forward(self, input, params=None):
        self._check_input_dim(input)
        if params is None:
            params = OrderedDict(self.named_parameters())
        factor = 0.0 if self.momentum is None else self.momentum
        return F.batch_norm(
            input, self.running_mean, self.running_var, params.get("weight"), params.get("bias"),
            self.training or not self.track_running_stats, factor, self.eps,
        )  # fmt: skip

    def _check_input_dim(self, input):
        return None


class MetaSequential(nn.Sequential, MetaModule):
    def forward(self, input, params=None):
        for name, module in self._modules.items():
            if isinstance(module, MetaModule):
                input = module(input, params=self.get_subdict(params, name))
            elif isinstance(module, nn.Module):
                input = module(input)
        return input


def meta_block(inputs, outputs):
    return MetaSequential(OrderedDict([
        ("conv", MetaConv2d(inputs, outputs, kernel_size=3, stride=1, padding=1, bias=True)),
        ("norm", MetaBatchNorm2d(outputs, momentum=1.0, track_running_stats=False)),
        ("relu", nn.ReLU()),
        ("pool", nn.MaxPool2d(2)),
    ]))  # fmt: skip


class MetaConvModel(MetaModule):
    def __init__(self, inputs=1, outputs=3, hidden_size=8, feature_size=8):
        super().__init__()
        sizes = [inputs, *[hidden_size] * 4]
        blocks = [meta_block(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        self.features = MetaSequential(
            OrderedDict((f"layer{i + 1}", block) for i, block in enumerate(blocks))
        )
        self.classifier = MetaLinear(feature_size, outputs, bias=True)

    def forward(self, inputs, params=None):
        features = self.features(inputs, params=self.get_subdict(params, "features"))
        features = features.view((features.size(0), -1))
        return self.classifier(features, params=self.get_subdict(params, "classifier"))


# ---- MAML-Pytorch (dragen1860) -------------------------------------------------------------------

CONFIG = [
    ("conv2d", [8, 1, 3, 3, 2, 0]), ("relu", [True]), ("bn", [8]),
    ("conv2d", [8, 8, 3, 3, 2, 0]), ("relu", [True]), ("bn", [8]),
    ("conv2d", [8, 8, 3, 3, 2, 0]), ("relu", [True]), ("bn", [8]),
    ("conv2d", [8, 8, 2, 2, 1, 0]), ("relu", [True]), ("bn", [8]),
    ("flatten", []), ("linear", [3, 8]),
]  # fmt: skip


class Learner(nn.Module):
    def __init__(self, config=CONFIG, imgc=1, imgsz=28):
        super().__init__()
        self.config = config
        self.vars = nn.ParameterList()
        self.vars_bn = nn.ParameterList()
        for name, param in self.config:
            if name == "conv2d":
                w = nn.Parameter(torch.ones(*param[:4]))
                nn.init.kaiming_normal_(w)
                self.vars.append(w)
                self.vars.append(nn.Parameter(torch.zeros(param[0])))
            elif name == "linear":
                w = nn.Parameter(torch.ones(*param))
                nn.init.kaiming_normal_(w)
                self.vars.append(w)
                self.vars.append(nn.Parameter(torch.zeros(param[0])))
            elif name == "bn":
                self.vars.append(nn.Parameter(torch.ones(param[0])))
                self.vars.append(nn.Parameter(torch.zeros(param[0])))
                mean = nn.Parameter(torch.zeros(param[0]), requires_grad=False)
                var = nn.Parameter(torch.ones(param[0]), requires_grad=False)
                self.vars_bn.extend([mean, var])

    def forward(self, x, vars=None, bn_training=True):
        if vars is None:
            vars = self.vars
        idx = 0
        bn_idx = 0
        for name, param in self.config:
            if name == "conv2d":
                w, b = vars[idx], vars[idx + 1]
                x = F.conv2d(x, w, b, stride=param[4], padding=param[5])
                idx += 2
            elif name == "linear":
                w, b = vars[idx], vars[idx + 1]
                x = F.linear(x, w, b)
                idx += 2
            elif name == "bn":
                w, b = vars[idx], vars[idx + 1]
                running_mean, running_var = self.vars_bn[bn_idx], self.vars_bn[bn_idx + 1]
                x = F.batch_norm(x, running_mean, running_var, weight=w, bias=b,
                                 training=bn_training)  # fmt: skip
                idx += 2
                bn_idx += 2
            elif name == "flatten":
                x = x.view(x.size(0), -1)
            elif name == "relu":
                x = F.relu(x, inplace=param[0])
            elif name == "max_pool2d":
                x = F.max_pool2d(x, param[0], param[1], param[2])
            else:
                raise NotImplementedError
        assert idx == len(vars)
        assert bn_idx == len(self.vars_bn)
        return x


# ---- higher, and others --------------------------------------------------------------------------


def higher_omniglot():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, momentum=1, affine=True), nn.ReLU(inplace=True),
        nn.MaxPool2d(2, 2), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=1, affine=True),
        nn.ReLU(inplace=True), nn.MaxPool2d(2, 2), nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8, momentum=1, affine=True), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2),
        Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


class Functional(nn.Module):
    """A dict of weights, as in rewrites of the original MAML (cbfinn)."""

    def __init__(self, hidden=8, n_way=3):
        super().__init__()
        sizes = [1, hidden, hidden, hidden]
        self.weights = nn.ParameterDict()
        for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True), start=1):
            self.weights[f"conv{i}"] = nn.Parameter(torch.randn(b, a, 3, 3) / 3)
            self.weights[f"b{i}"] = nn.Parameter(torch.zeros(b))
            self.weights[f"gamma{i}"] = nn.Parameter(torch.ones(b))
            self.weights[f"beta{i}"] = nn.Parameter(torch.zeros(b))
        self.weights["w"] = nn.Parameter(torch.randn(n_way, hidden) / 3)
        self.weights["b"] = nn.Parameter(torch.zeros(n_way))

    def conv_block(self, x, i):
        w = self.weights
        x = F.conv2d(x, w[f"conv{i}"], w[f"b{i}"], padding=1)
        x = F.batch_norm(x, None, None, w[f"gamma{i}"], w[f"beta{i}"], training=True)
        return F.max_pool2d(F.relu(x), kernel_size=2, stride=2)

    def forward(self, x):
        x = x.reshape(-1, 1, 28, 28)
        for i in range(1, 4):
            x = self.conv_block(x, i)
        x = torch.mean(x, dim=(2, 3))
        return F.linear(x, self.weights["w"], self.weights["b"])


class ProtoEncoder(nn.Module):
    """Snell et al. 2017, with a head."""

    def __init__(self, hidden=8):
        super().__init__()
        self.encoder = nn.Sequential(self.block(1, hidden), self.block(hidden, hidden))
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(hidden, 3)

    def block(self, inputs, outputs):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.MaxPool2d(2),
        )  # fmt: skip

    def forward(self, x):
        (num_samples, c, h, w) = x.size()
        z = self.encoder(x.view(num_samples, c, h, w))
        z = F.adaptive_avg_pool2d(z, 1)
        return self.fc(self.drop(z.squeeze(3).squeeze(2)))
