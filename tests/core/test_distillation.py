"""Distillation: losses by the papers' formulas, gradients of the student alone, and what the teacher sees."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lbitcls.core.distillation import Student, Teacher, softened_kl, squared_error
from lbitcls.core.hooks.distiller import Distiller
from lbitcls.core.step import OptimizerStep, Precision
from lbitcls.settings.distill import DistillConfig
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import get_logger

CPU = torch.device("cpu")


class Net(nn.Module):
    """What a distillation needs of a classifier: `backbone` and `head`, both linear."""

    def __init__(self, seed: int, classes: int = 3, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Linear(4, width)
        self.head = nn.Linear(width, classes)
        self.unused = nn.Identity()
        self.double()

    def predict(self, img: Tensor) -> Tensor:
        return self.head(self.backbone(img).relu())

    def loss(self, logits: Tensor, gt_label: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(logits, gt_label), "top-1": logits.sum().detach()}


def section(**given: Any) -> DistillConfig:
    return DistillConfig(teacher=dict(checkpoint="teacher.pth"), **given)


def batch(number: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return dict(img=torch.randn(number, 4).double(), gt_label=torch.randint(3, (number,)), index=torch.arange(number))


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(logits / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_is_hintons_formula_and_so_is_its_gradient(temperature: float) -> None:
    torch.manual_seed(0)
    logits, given = torch.randn(7, 5).double().requires_grad_(), 3 * torch.randn(7, 5).double()
    loss = softened_kl(logits, given, temperature)
    loss.backward()
    p, q = softmax(given.numpy(), temperature), softmax(logits.detach().numpy(), temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum() / 7
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert logits.grad is not None  # section 2.1 of the paper: (q - p) / T, times T²
    np.testing.assert_allclose(logits.grad.numpy(), temperature * (q - p) / 7, rtol=1e-9, atol=1e-14)


def test_squared_error_is_the_mean_over_all_values_in_float32() -> None:
    one, other = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    expected = ((one.double() - other.double()) ** 2).numpy().mean()
    assert squared_error(one, other).item() == pytest.approx(expected, rel=1e-5)
    half = squared_error(one.bfloat16(), other.bfloat16())
    kl = softened_kl(one[:, :, 0, 0].bfloat16(), other[:, :, 0, 0].bfloat16(), 4.0)
    assert half.dtype is kl.dtype is torch.float32
    assert half.item() == pytest.approx(((one.bfloat16().float() - other.bfloat16().float()) ** 2).mean().item())


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (dict(loss="mse", weight=2.0, label_weight=0.5), ("logits",)),
        (dict(loss="feature", modules=["backbone", "head"]), ("backbone", "head")),
        (dict(loss="feature", modules=dict(backbone="head", head="backbone")), ("head", "backbone")),
    ],
)
def test_the_loss_has_its_parts_and_trains_the_student_alone(given: dict[str, Any], names: tuple[str, ...]) -> None:
    own, other = Net(1, width=3), Net(2, width=3)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    settings = section(**given)
    teacher, student = Teacher(other, settings.pairs).train(), Student(own, settings)
    data = batch()
    outputs = student(data["img"], data["gt_label"], teacher(data["img"]))
    parts = dict(backbone=lambda m: m.backbone(data["img"]), head=lambda m: m.predict(data["img"]))
    pairs = [("head", "head")] if "logits" in names else list(zip(("backbone", "head"), names, strict=True))
    distances = [((parts[a](own) - parts[b](other)) ** 2).mean().item() for a, b in pairs]
    label = nn.functional.cross_entropy(own.predict(data["img"]), data["gt_label"]).item()
    assert outputs["loss_distill"].item() == pytest.approx(np.mean(distances), rel=1e-12)
    assert outputs["loss_label"].item() == pytest.approx(label, rel=1e-12)
    total = settings.weight * np.mean(distances) + settings.label_weight * label
    assert outputs["loss"].item() == pytest.approx(total, rel=1e-12) and "top-1" in outputs
    outputs["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own.parameters())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert not any(module.training for module in other.modules())
    assert {id(p) for p in student.parameters()} == {id(p) for p in own.parameters()}


def test_without_labels_their_loss_may_be_infinite() -> None:
    own = Net(1)
    own.loss = lambda logits, gt_label: {"loss": logits.sum() * float("inf")}  # type: ignore[method-assign]
    student, data = Student(own, section(label_weight=0)), batch()
    outputs = student(data["img"], data["gt_label"], Teacher(Net(2), {})(data["img"]))
    assert torch.isfinite(outputs["loss"]) and outputs["loss"] == 0.9 * outputs["loss_distill"]


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        (["backbon", "head"], "the model has no module 'backbon'. Did you mean 'backbone'?"),
        (dict(backbone="heads"), "the teacher has no module 'heads'. Did you mean 'head'?"),
        (["unused"], "'unused' of the model must return a tensor; it returns nothing: it is not called"),
        (["backbone"], "'backbone' has the shape (6, 5) in the model and (6, 9) in the teacher"),
    ],
)
def test_modules_that_do_not_fit(modules: Any, told: str) -> None:
    settings, data = section(loss="feature", modules=modules), batch()
    with pytest.raises(ConfigError) as error:
        student = Student(Net(1), settings)
        teacher = Teacher(Net(2, width=9), settings.pairs)
        outputs = (
            {name: torch.zeros(6, 9) for name in settings.pairs} if modules == ["unused"] else teacher(data["img"])
        )
        student(data["img"], data["gt_label"], outputs)
    assert told in str(error.value)


def test_a_classifier_without_a_loss() -> None:
    with pytest.raises(ConfigError, match=r"needs a classifier with predict\(\), which Linear lacks"):
        Student(nn.Linear(4, 3), section())


@pytest.mark.parametrize("given", [dict(), dict(loss="feature", modules=["backbone"])])
def test_a_compiled_step_is_one_graph_with_the_same_loss(given: dict[str, Any]) -> None:
    settings, data = section(**given), batch()
    results = []
    for compiled in (False, True):
        teacher, student = Teacher(Net(2), settings.pairs), Student(Net(1), settings)
        if compiled:
            teacher.compile(fullgraph=True, backend="aot_eager")
            student.compile(fullgraph=True, backend="aot_eager")
        for _ in range(2):  # the second call must not see the outputs of the first
            outputs = student(data["img"], data["gt_label"], teacher(data["img"]))
        outputs["loss"].backward()
        results.append([outputs["loss"].detach(), *(p.grad for p in student.parameters())])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(eager, graph, rtol=1e-12, atol=1e-14)


class Loader:
    """Two batches of an epoch, always the same."""

    dataset = range(12)

    def __len__(self) -> int:
        return 2

    def iterate(self, epoch: int, start: int = 0) -> Any:
        whole = batch(12)
        for part in (slice(0, 8), slice(8, 12)):
            yield {name: value[part] for name, value in whole.items()}


def run(epochs: int = 3, **step: Any) -> Any:
    return types.SimpleNamespace(
        loader=Loader(),
        max_epochs=epochs,
        epoch=0,
        step=OptimizerStep(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), CPU, **step),
        to_device=lambda given: given,
        logger=get_logger(),
    )


def counted(teacher: Teacher) -> list[int]:
    calls: list[int] = []
    teacher.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    return calls


def test_logits_are_computed_once_per_image_if_no_image_changes(caplog: Any) -> None:
    student, teacher = Net(1), Teacher(Net(2), {})
    calls = counted(teacher)
    distiller = Distiller(teacher, student, changing="")
    with caplog.at_level("INFO", logger="lbitcls"):
        distiller.before_run(run())
    assert calls == [8, 4] and "Keeping the teacher's logits of 12 images" in caplog.text
    whole, mixed = batch(12), torch.tensor([11, 0, 5])
    arguments = distiller.arguments({name: value[mixed] for name, value in whole.items()})
    assert calls == [8, 4]
    torch.testing.assert_close(
        arguments["teacher"]["logits"], teacher(whole["img"])["logits"][mixed].float(), rtol=1e-6, atol=1e-6
    )
    assert arguments["img"].equal(whole["img"][mixed]) and arguments["gt_label"].equal(whole["gt_label"][mixed])


@pytest.mark.parametrize(
    ("changing", "epochs", "most", "told"),
    [
        ("data.train has random steps, Flip", 3, 1024.0, "in each step: data.train has random steps, Flip."),
        ("", 1, 1024.0, "in each step: there is one epoch."),
        ("", 3, 1e-5, "in each step: its logits of 12 images need 0 MiB, more than 0."),
    ],
)
def test_otherwise_the_teacher_runs_in_each_step(
    changing: str, epochs: int, most: float, told: str, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lbitcls.core.hooks.distiller.MOST_MIB", most)
    teacher = Teacher(Net(2), {})
    distiller = Distiller(teacher, Net(1), changing)
    with caplog.at_level("INFO", logger="lbitcls"):
        distiller.before_run(run(epochs))
    assert told in caplog.text
    calls, data = counted(teacher), batch()
    assert torch.equal(distiller.arguments(data)["teacher"]["logits"], teacher(data["img"])["logits"])
    assert calls == [6, 6]


def test_the_teacher_sees_the_mixed_images_and_runs_under_the_step_s_autocast() -> None:
    own, other = Net(1).float(), Net(2).float()
    own.augments = lambda img, gt_label: (img + 1, gt_label.flip(0))  # type: ignore[assignment]
    distiller, student = Distiller(Teacher(other, {}), own, "mixed"), Student(own, section())
    seen: list[Tensor] = []
    for net in (own, other):
        net.backbone.register_forward_hook(lambda module, inputs, output: seen.extend((inputs[0], output)))
    step = OptimizerStep(
        torch.optim.SGD(own.parameters(), 0.1), CPU, precision=Precision(torch.bfloat16), arguments=distiller.arguments
    )
    data = batch()
    data["img"] = data["img"].float()
    outputs = step(student.train(), data, 0, 1)
    of_teacher, of_student = seen[:2], seen[2:]
    assert torch.equal(of_teacher[0], data["img"] + 1) and torch.equal(of_student[0], data["img"] + 1)
    assert of_teacher[1].dtype is of_student[1].dtype is torch.bfloat16
    assert outputs["loss_distill"].dtype is torch.float32
    own.eval()
    assert torch.equal(distiller.arguments(data)["img"], data["img"])  # mixing is for training


@pytest.mark.slow
def test_two_processes_learn_as_one(run_ranks: Callable[[Path], None]) -> None:
    run_ranks(Path(__file__).with_name("distill_worker.py"))
