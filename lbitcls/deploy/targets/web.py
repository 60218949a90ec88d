"""Web browsers: a static folder with a page, the model and ONNX Runtime for WebAssembly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbitcls.deploy.passes.exact_sums import sum_exactly
from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.runtime.metadata import ModelInfo, sealed
from lbitcls.deploy.runtime.page.page_files import check_runtime_choice, page_names, preparation_of, write_page
from lbitcls.deploy.targets.cpu import CPU
from lbitcls.registry import TARGETS

if TYPE_CHECKING:
    from onnx import ModelProto


@TARGETS.register_module(name="web")
class Web(CPU):
    """Page for any browser with WebAssembly; its model has the layers and integers of the target `cpu`.

    Attributes:
        runtime: `'copy'`: copy the runtime into the folder; `'cdn'`: link the pinned version.
    """

    suffix = ""
    extra = "web"
    engines = ("onnxruntime-web",)
    runtime = "copy"

    def choose_runtime(self, runtime: str) -> None:
        """Choose `'copy'` or `'cdn'`.

        Raises:
            ConfigError: It is neither.
            DependencyError: The npm package to copy is missing.
        """
        check_runtime_choice(runtime)
        self.runtime = runtime

    def check_preparation(
        self, part: str, pipeline: Sequence[dict[str, Any]], input_shape: tuple[int, int, int]
    ) -> None:
        """Check that the page can prepare images as the test pipeline does.

        Raises:
            ConfigError: It cannot; names the steps.
        """
        preparation_of(part, pipeline, input_shape)

    def foreign(self, folder: Path) -> list[str]:
        """Return the entries that are none of a page's."""
        return sorted({entry.name for entry in folder.iterdir()} - page_names())

    def write(self, model: ModelProto, info: ModelInfo, path: Path) -> None:
        """Fill the folder with the page; its layers add integers, since WebAssembly has only float kernels for them."""
        graph = Graph(model)
        sum_exactly(graph)
        write_page(path, sealed(graph.save()), info, self.runtime)
