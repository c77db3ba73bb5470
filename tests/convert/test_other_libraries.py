"""Files that other libraries write, by these libraries themselves: what is converted answers as their network does."""

from __future__ import annotations

from typing import Any

import pytest

from convert.torch2paddle import FAILED, OK, main
from paddle_dense import load_model
from tests.helpers import answers, random_images
from tests.peers import peer

torch = pytest.importorskip("torch", reason="runs the conversion: pip install torch")
from torch import nn

DENSE = {"growth_rate": 8, "block_config": (2, 3, 2), "bn_size": 2}
X = random_images(2, 3, 64, 64)


def library(name: str, package: str = "") -> Any:
    return pytest.importorskip(name, reason=f"writes the file: pip install {package or name}")


def lived_in(network: nn.Module) -> nn.Module:
    """With statistics and affine parts of BN of which every one matters."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.6, 1.4)
    return network.eval()


def converted(path: Any, *options: str) -> Any:
    target = path.with_name("converted.pdparams")
    assert main([str(path), "-o", str(target), "--force", *options]) == OK
    return load_model(target)


def test_monai(difference, tmp_path):
    densenet = library("monai.networks.nets", "monai").DenseNet
    network = lived_in(densenet(2, 3, 5, init_features=12, **DENSE))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    assert difference(answers(converted(tmp_path / "net.pth"), X), answers(network, X)) < 1e-6


def test_monais_volumes_are_refused(tmp_path, capsys):
    densenet = library("monai.networks.nets", "monai").DenseNet
    torch.save(densenet(3, 1, 2, init_features=12, **DENSE).state_dict(), tmp_path / "net.pth")
    assert main([str(tmp_path / "net.pth")]) == FAILED
    assert "has a convolution of 3-D inputs" in capsys.readouterr().err


@pytest.mark.parametrize("whole", [True, False], ids=["module", "state_dict"])
def test_torchxrayvision(whole, difference, tmp_path, capsys):
    peer("torchvision")  # which it imports
    models = library("torchxrayvision").models
    network = lived_in(models.DenseNet(num_init_features=12, num_classes=5, in_channels=1, **DENSE))
    network.op_threshs = torch.tensor([0.1, 0.7, 0.3, 0.2, 0.5])
    x = random_images(2, 1, 64, 64)
    torch.save(network if whole else network.state_dict(), tmp_path / "net.pt")
    logits = torch.from_numpy(answers(converted(tmp_path / "net.pt"), x))
    assert "the thresholds 'op_threshs': the network here returns the logits" in capsys.readouterr().err
    assert difference(models.op_norm(torch.sigmoid(logits), network.op_threshs), answers(network, x)) < 1e-6


def batches() -> Any:
    """Two batches, always the same."""
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 64, 64, generator=random), torch.randint(5, (8,), generator=random)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 4)


@pytest.mark.parametrize("callback", [None, "StochasticWeightAveraging", "WeightAveraging"])
def test_lightning(callback, difference, tmp_path):
    """Under `net.`, next to a loss with weights; after the training its module has the averaged weights."""
    dense = peer("torchvision.models").DenseNet
    lightning = library("pytorch_lightning", "pytorch-lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = dense(num_init_features=12, num_classes=5, **DENSE)
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(5))

        def training_step(self, batch: Any, index: int) -> Any:
            return self.criterion(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    callbacks = {
        "StochasticWeightAveraging": {"swa_lrs": 0.01, "swa_epoch_start": 2, "device": None},
        "WeightAveraging": {"multi_avg_fn": torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)},
    }
    torch.manual_seed(0)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        callbacks=[getattr(lightning.callbacks, callback)(**callbacks[callback])] if callback else [],
        default_root_dir=str(tmp_path),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
    )
    trainer.fit(module, batches())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    network = module.net.eval()
    assert difference(answers(converted(tmp_path / "last.ckpt"), X), answers(network, X)) < 1e-6


def test_composer(difference, tmp_path):
    dense = peer("torchvision.models").DenseNet
    composer = library("composer", "mosaicml")
    torch.manual_seed(0)
    network = dense(num_init_features=12, num_classes=5, **DENSE)
    model = library("composer.models", "mosaicml").ComposerClassifier(network, num_classes=5)
    trainer = composer.Trainer(
        model=model,
        train_dataloader=batches(),
        max_duration="1ep",
        device="cpu",
        optimizers=torch.optim.SGD(model.parameters(), 0.05),
        progress_bar=False,
    )
    trainer.fit()
    trainer.save_checkpoint(str(tmp_path / "last.pt"))
    assert difference(answers(converted(tmp_path / "last.pt"), X), answers(network, X)) < 1e-6


def test_mmengines_runner(difference, tmp_path):
    """With its EMAHook, of which the averaged weights are taken."""
    dense = peer("torchvision.models").DenseNet
    hooks, runner = library("mmengine.hooks", "mmengine"), library("mmengine.runner", "mmengine")

    class Model(library("mmengine.model", "mmengine").BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = dense(num_init_features=12, num_classes=5, **DENSE)

        def train_step(self, batch: Any, optim_wrapper: Any) -> Any:
            loss = nn.functional.cross_entropy(self.backbone(batch[0]), batch[1])
            optim_wrapper.update_params(loss)
            return {"loss": loss}

        def forward(self, inputs: Any) -> Any:
            return self.backbone(inputs)

    torch.manual_seed(0)
    run = runner.Runner(
        model=Model(),
        work_dir=str(tmp_path),
        train_dataloader=batches(),
        train_cfg={"by_epoch": True, "max_epochs": 3},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.05}},
        custom_hooks=[{"type": "EMAHook", "momentum": 0.5}],
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 3}},
        log_level="ERROR",
        experiment_name="converted",
    )
    run.train()
    [hook] = [hook for hook in run.hooks if isinstance(hook, hooks.EMAHook)]
    network = hook.ema_model.module.eval()
    assert difference(answers(converted(tmp_path / "epoch_3.pth"), X), answers(network, X)) < 1e-6
