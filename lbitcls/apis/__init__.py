"""Python entry points behind the CLI."""

from typing import TYPE_CHECKING

from lbitcls.utils.lazy import exports

if TYPE_CHECKING:
    from lbitcls.core.evaluation import evaluate as evaluate
    from lbitcls.inference.api import inference_model as inference_model
    from lbitcls.inference.api import init_model as init_model
    from lbitcls.inference.api import show_result as show_result
    from lbitcls.inference.api import show_result_pyplot as show_result_pyplot
    from lbitcls.workflows.analyzing import compare_runs as compare_runs
    from lbitcls.workflows.testing import test_classifier as test_classifier
    from lbitcls.workflows.testing import test_model as test_model
    from lbitcls.workflows.training import train_classifier as train_classifier
else:
    __getattr__, __dir__, __all__ = exports(__name__)
