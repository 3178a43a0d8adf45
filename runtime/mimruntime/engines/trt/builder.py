"""Build a serialised plan from an ONNX graph; the same code serves TensorRT 10, 11 and TensorRT-RTX."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mimruntime.engines.base import Progress
from mimruntime.engines.trt.messages import Messages, contained_stderr, make_logger, uncollected
from mimruntime.engines.trt.plan import BuildPlan
from mimruntime.errors import EngineError
from mimruntime.outputs import check_writable
from mimruntime.writing import write_file

_GIB = 1 << 30


def build(trt: Any, graph: Path, plan: BuildPlan, progress: Progress) -> Any:
    """Build a plan. Ctrl-C, or an exception from `progress`, cancels the build at its next step.

    Args:
        trt: the module of `plan.flavour`.
        graph: the ONNX file; it determines the plan's precision.
        plan: the checked options.
        progress: called in the caller's thread.

    Returns:
        The plan as a buffer of the library.

    Raises:
        EngineError: the build failed; the message contains the first logged error.
        OutputError: the timing cache is not writable.

    """
    messages = Messages()
    try:
        with contained_stderr(), uncollected():
            return _build(trt, graph, plan, progress, messages)
    except (RuntimeError, TypeError, ValueError) as error:  # pybind11 converts C++ exceptions to these
        raise messages.failure(f"{plan.flavour.name} cannot build {graph}", hint=str(error)) from error


def _build(trt: Any, graph: Path, plan: BuildPlan, progress: Progress, messages: Messages) -> Any:
    # Keep a reference to every object until the end: a parser crashes the process if its network was collected.
    logger = make_logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        said = parser.get_error(0).desc() if parser.num_errors else None
        raise messages.failure(f"{plan.flavour.name} {trt.__version__} cannot parse {graph}", hint=said)
    _check_precision(trt, network, graph, plan)
    config = _configure(trt, builder, plan, messages)
    _add_profile(builder, network, config, plan, messages)
    built = _watched(trt, config, progress, lambda: builder.build_serialized_network(network, config))
    if built is None:
        raise messages.failure(f"{plan.flavour.name} {trt.__version__} cannot build {graph}")
    if plan.timing_cache is not None:
        write_file(plan.timing_cache, config.get_timing_cache().serialize())
    return built


def _network_flags(trt: Any) -> int:
    """Return the flag for strong typing in TensorRT 10; later versions and RTX are always strongly typed."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if trt.__version__.startswith("10.") else 0


def _check_precision(trt: Any, network: Any, graph: Path, plan: BuildPlan) -> None:
    """Raise EngineError if the precision of the graph's matrix products differs from the manifest."""
    found = network_precision(trt, network)
    if found != plan.precision:
        raise EngineError(
            f"{graph} computes in {found}, but its manifest says {plan.precision}; build the artifact again"
        )
    if "sm75" not in plan.architectures:
        return
    layers = (network.get_layer(index) for index in range(network.num_layers))
    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    wide = [layer.name for layer in products if layer.get_input(0).dtype == trt.float32]
    if wide:
        raise EngineError(
            f"--arch sm75: Turing has no fp32 matrix product in {plan.flavour.name}, and {graph} has {len(wide)}"
            f" ({wide[0]} …): the backbone needs --precision fp16, and the aggregator none of its own (topk, mean, gem,"
            " without --whiten); or leave sm75 out"
        )


def network_precision(trt: Any, network: Any) -> str:
    """Return the narrowest type of the network's products: "int8", "fp8", "fp16", "bf16" or "fp32"."""
    products = {trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION, trt.LayerType.DEQUANTIZE}
    layers = (network.get_layer(index) for index in range(network.num_layers))
    types = {layer.get_input(0).dtype for layer in layers if layer.type in products}
    narrowest = ("int8", "INT8"), ("fp8", "FP8"), ("fp16", "HALF"), ("bf16", "BF16")
    return next((name for name, member in narrowest if getattr(trt.DataType, member) in types), "fp32")


def _configure(trt: Any, builder: Any, plan: BuildPlan, messages: Messages) -> Any:
    config = builder.create_builder_config()
    (config.set_flag if plan.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if plan.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(plan.workspace_gib * _GIB))
    if plan.architectures:
        config.num_compute_capabilities = len(plan.architectures)
        for index, arch in enumerate(plan.architectures):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, arch.upper()), index):
                raise messages.failure(f"{plan.flavour.name} {trt.__version__} does not build for {arch}")
    if plan.hardware_compatibility != "none":
        level = {"ampere+": "AMPERE_PLUS", "same": "SAME_COMPUTE_CAPABILITY"}[plan.hardware_compatibility]
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if plan.timing_cache is not None:
        _load_timing_cache(config, plan.timing_cache, messages)
    return config


def _add_profile(builder: Any, network: Any, config: Any, plan: BuildPlan, messages: Messages) -> None:
    if network.num_inputs != 1:
        raise EngineError(f"the graph has {network.num_inputs} inputs, expected one")
    pixels = network.get_input(0)
    shapes = [(batch, *tuple(pixels.shape)[1:]) for batch in (plan.batch.least, plan.batch.best, plan.batch.most)]
    profile = builder.create_optimization_profile()
    profile.set_shape(pixels.name, *shapes)
    if not profile or config.add_optimization_profile(profile) < 0:
        raise messages.failure(f"{plan.flavour.name} does not take the batch profile {shapes}")


def _watched(trt: Any, config: Any, progress: Progress, work: Callable[[], Any]) -> Any:
    """Run `work` in another thread, so that this one can handle Ctrl-C, and forward progress events."""
    events: queue.SimpleQueue[tuple[str, int, int] | None] = queue.SimpleQueue()
    monitor = _make_monitor(trt, events)
    config.progress_monitor = monitor
    with ThreadPoolExecutor(1, "tensorrt-build") as pool:
        future = pool.submit(work)
        future.add_done_callback(lambda _: events.put(None))
        try:
            for event in iter(events.get, None):
                progress(*event)
        except BaseException:
            monitor.cancelled = True  # leaving the pool waits until the builder stops
            raise
    return future.result()


def _make_monitor(trt: Any, events: queue.SimpleQueue[tuple[str, int, int] | None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # pybind11 demands this form
            self.cancelled = False
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            events.put((phase_name, 0, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            events.put((phase_name, step + 1, self.totals[phase_name]))
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            events.put((phase_name, self.totals[phase_name], self.totals[phase_name]))

    return Monitor()


def _load_timing_cache(config: Any, path: Path, messages: Messages) -> None:
    check_writable(path)
    try:
        known = path.read_bytes()
    except FileNotFoundError:
        known = b""
    except OSError as error:
        raise EngineError(f"--timing-cache {path} cannot be read: {error.strerror}") from error
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise messages.failure(
            f"--timing-cache {path}", hint="it is of another GPU or TensorRT version; delete it or choose another file"
        )
