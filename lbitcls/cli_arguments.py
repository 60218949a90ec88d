"""The options of the commands: a function for each verb adds them to its parser."""

from __future__ import annotations

import argparse


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls train`."""
    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add("--work-dir", metavar="DIR", help="where the run writes (default: work_dirs/ and the config's name)")
    add("--resume", action="store_true", help="go on from the newest checkpoint of the work directory, if any")
    add("--resume-from", metavar="FILE", help="go on from this checkpoint")
    add("--load-from", metavar="FILE", help="start from the weights in this file")
    add("--no-validate", action="store_true", help="train without validation")
    add("--seed", type=int, metavar="N", help="seed of everything random (default: drawn, and logged)")
    add("--deterministic", action="store_true", help="only kernels that give the same bits each time")
    add("--gpus", type=int, metavar="N", help="number of GPUs; more than one needs tools/dist_train.sh")
    add("--gpu-ids", type=int, nargs="+", metavar="N", help="numbers of the GPUs to use")
    add("--sycbn", action="store_true", help="BatchNorm statistics over all GPUs")
    add("--cpu-only", action="store_true", help="train on the CPU")
    common_arguments(parser)


def test_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls test`."""
    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add(
        "checkpoint",
        nargs="?",
        help="checkpoint of the config's model, or an .onnx file that was exported of it "
        "(default: none; the model as a training would begin with it)",
    )
    engine_arguments(parser)
    add(
        "--metrics",
        nargs="+",
        default=["accuracy"],
        metavar="NAME",
        help="accuracy precision recall f1_score confusion",
    )
    add("--out", metavar="FILE", help="write the results to this JSON file")
    add("--predictions", metavar="FILE", help="write a row per image to this .csv or .jsonl file")
    common_arguments(parser)


def infer_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls infer`."""
    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add("checkpoint", help="checkpoint of the config's model, or an .onnx file that was exported of it")
    add("images", nargs="+", metavar="IMAGE", help="image files, and folders of them")
    add("--topk", type=int, default=1, metavar="K", help="classes to list for each image (default: 1)")
    add("--json", metavar="FILE", help="write the results to this file; -: to standard output")
    add("--batch-size", type=int, default=16, metavar="N", help="images that are predicted at once (default: 16)")
    add("--device", metavar="NAME", help="of a checkpoint's model: cpu, cuda, cuda:N or gpu:N")
    engine_arguments(parser)
    option_arguments(parser)


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls convert`."""
    add = parser.add_argument
    add("source", help="published weights, such as resnet20-12fca82f.th")
    add("target", help="checkpoint to write")
    add("--format", default="cifar-resnet", metavar="NAME", help="what the source is: cifar-resnet (option A)")


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls plan`."""
    add = parser.add_argument
    add("config", help="config file; of one without a quant_transformer the float model is shown")
    add("--shape", type=int, nargs=3, metavar=("C", "H", "W"), help="an image (default: as the test pipeline makes it)")
    option_arguments(parser)


def calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls calibrate`."""
    add = parser.add_argument
    add("config", help="config file with a quant_transformer")
    add("checkpoint", help="float weights of the config's model")
    add("--out", required=True, metavar="FILE", help="quantized checkpoint to write")
    add("--num-images", type=int, default=200, metavar="N", help="images to calibrate on (default: 200)")
    add("--method", default="mse", metavar="NAME", help="mse (default), percentile, minmax, or own: the method's rule")
    add("--split", metavar="NAME", help="part of data to calibrate on (default: calibration, else train)")
    add("--no-test", action="store_true", help="write the checkpoint without measuring accuracy")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder below which relative data paths are found")
    option_arguments(parser)


def benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls benchmark`."""
    add = parser.add_argument
    add("models", nargs="+", metavar="FILE", help="ONNX files; ratios are to the float one, or else to the last")
    engine_arguments(parser, threads=2)
    add("--batch", type=int, nargs="+", default=[1, 16], metavar="N", help="batch sizes (default: 1 16)")
    add("--precision", default="f32", metavar="NAME", help="of what is not computed in integers: f32 (default) or bf16")
    add("--bf16", action="store_true", help="time the float files in bf16 too, where the CPU has it")
    add("--repeats", type=int, default=30, metavar="N", help="turns at each batch size (default: 30)")
    add("--json", metavar="FILE", help="write the results to this file")


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the commands that train and test."""
    add = parser.add_argument
    add("--device", metavar="NAME", help="cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder below which relative data paths are found")
    option_arguments(parser)
    add("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="who started the processes")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # older launchers pass it


def visualize_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls visualize`."""
    add = parser.add_argument
    add("kind", metavar="KIND", help="batch, predictions, errors or confusion")
    add("config", help="config file: .py, .yaml or .json")
    add("checkpoint", nargs="?", help="checkpoint or .onnx file (default: the best of the work directory)")
    add("--out", metavar="FILE", help="picture to write: .png, .svg, .pdf (default: in the work directory)")
    add("--num-images", type=int, metavar="N", help="most images in the picture (default: 24)")
    add("--rows", type=int, metavar="N", help="rows of the grid")
    add("--cols", type=int, metavar="N", help="images in a row")
    add("--split", metavar="NAME", help="part of data (default: train for a batch, else val)")
    add("--tensorboard", action="store_true", help="write the picture for TensorBoard too")
    add("--work-dir", metavar="DIR", help="work directory of the run")
    engine_arguments(parser)
    add("--device", metavar="NAME", help="cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder below which relative data paths are found")
    option_arguments(parser)


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls compare`."""
    add = parser.add_argument
    add("images", help="an image, or a folder of images")
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help="FLOAT_CONFIG INT_CONFIG FLOAT_CHECKPOINT INT_CHECKPOINT [DEVICE [PAGE]]; of one model CONFIG CHECKPOINT",
    )
    add("--save-path", metavar="FILE", help="page to write (default: model_analysis.html)")
    add("--num-images", type=int, default=64, metavar="N", help="most images of a folder (default: 64)")
    add("--float-only", action="store_true", help="look at one float model")
    safe_argument(parser)
    add("--device", metavar="NAME", help="cpu, cuda, cuda:N or gpu:N")


def analyze_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls analyze`."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="work directories, or files log.jsonl")
    add("--keys", nargs="+", default=["loss", "top-1"], metavar="KEY", help="quantities: loss top-1 val/top-1 lr time")
    add("--x", default="epoch", metavar="NAME", help="epoch (default), iter or images (images seen)")
    add("--names", nargs="+", metavar="NAME", help="of the runs in the legend (default: their folders')")
    add("--out", default="curves.png", metavar="FILE", help="picture to write (default: curves.png)")


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls export`."""
    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add("checkpoint", help="checkpoint of the config's model")
    add("--out", required=True, metavar="FILE", help="ONNX file to write")
    add("--verify", action="store_true", help="compare the file with the model in the engines for its target")
    add("--num-images", type=int, default=200, metavar="N", help="images to compare on (default: 200)")
    add("--opset", type=int, default=21, metavar="N", help="version of ONNX's operators, 17 to 21 (default)")
    add("--part", default="model", metavar="NAME", help="model (default), or backbone for its features")
    add("--pack", action="store_true", help="store weights of 4 bits or fewer in 4 bits")
    add("--residual-bits", type=int, metavar="N", help="8: carry skip connections in 8 bits (default: float)")
    add("--target", default="cpu", metavar="NAME", help="cpu (default) or tensorrt")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder below which relative data paths are found")
    option_arguments(parser)


def init_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `lbitcls init`."""
    add = parser.add_argument
    add("folder", help="folder of images: a folder for each class, or train/ and val/ with such folders")
    add("--backbone", default="mobilenet_v2", metavar="NAME", help="mobilenet_v2 (default), resnet18, squeezenet1_1, …")
    add("--quantize", metavar="NAME", help="lsq-4w4f or qat-8w8f: train in float, then quantized")
    add("--pretrained", metavar="FILE", help="weights, torchvision://NAME, or none (default: torchvision's)")
    add("--out", metavar="FILE", help="config to write (default: the folder's name, .py)")
    add("--val", type=float, default=0.2, metavar="PART", help="of the images, where there is no val/ (default: 0.2)")
    add("--workers", type=int, metavar="N", help="threads that read the images (default: one for each core)")
    add("--time-limit", type=float, default=120, metavar="S", help="seconds to read images for (default: 120)")


def engine_arguments(parser: argparse.ArgumentParser, threads: int | None = None) -> None:
    """The engine of `.onnx` files."""
    add = parser.add_argument
    add("--engine", metavar="NAME", help="of an .onnx file: openvino (default) or onnxruntime")
    said = "the engine's choice" if threads is None else threads
    add("--threads", type=int, default=threads, metavar="N", help=f"of the engine (default: {said})")


def option_arguments(parser: argparse.ArgumentParser) -> None:
    """Overrides of the config."""
    parser.add_argument(
        "--options",
        "--cfg-options",  # as mmcls's commands call it
        nargs="+",
        action="extend",
        default=[],
        metavar="K=V",
        help="override the config: optimizer.lr=0.01",
    )
    safe_argument(parser)


def safe_argument(parser: argparse.ArgumentParser) -> None:
    """Of every command that reads a config."""
    parser.add_argument("--safe", action="store_true", help="refuse a config that runs code (also LBITCLS_SAFE=1)")
