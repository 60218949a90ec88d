"""Complete jobs as functions of a config, behind the commands: train, test, calibrate, export, compare, …"""

from typing import TYPE_CHECKING

from lbitcls.utils.lazy import exports

if TYPE_CHECKING:
    from lbitcls.workflows.analyzing import analyze_logs as analyze_logs
    from lbitcls.workflows.analyzing import compare_runs as compare_runs
    from lbitcls.workflows.benchmarking import benchmark_models as benchmark_models
    from lbitcls.workflows.calibrating import calibrate_checkpoint as calibrate_checkpoint
    from lbitcls.workflows.comparing import compare_checkpoints as compare_checkpoints
    from lbitcls.workflows.converting import convert_checkpoint as convert_checkpoint
    from lbitcls.workflows.examining import examine_checkpoint as examine_checkpoint
    from lbitcls.workflows.examining import recommend_bits as recommend_bits
    from lbitcls.workflows.exporting import export_checkpoint as export_checkpoint
    from lbitcls.workflows.planning import show_plan as show_plan
    from lbitcls.workflows.testing import test_classifier as test_classifier
    from lbitcls.workflows.testing import test_model as test_model
    from lbitcls.workflows.training import train_classifier as train_classifier
    from lbitcls.workflows.visualizing import visualize as visualize
else:
    __getattr__, __dir__, __all__ = exports(__name__)
