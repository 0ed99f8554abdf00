"""Start, serve, stop: bind early and listen late as vLLM does, say what vLLM says, drain on TERM."""

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import suppress

from tests.engine_simulator import failures
from tests.engine_simulator.command_line import EngineArguments
from tests.engine_simulator.configuration import ConfigurationError, Simulation, SimulationFile
from tests.engine_simulator.engine import Engine
from tests.engine_simulator.gpu_memory import GpuMemory
from tests.engine_simulator.http import Connection
from tests.engine_simulator.routes import Router

BACKLOG = 2048
MIB_PER_GIB = 1024
DEFAULT_KEEP_ALIVE_SECONDS = 5.0
"""As vLLM's VLLM_HTTP_TIMEOUT_KEEP_ALIVE."""
DRAIN_POLL_SECONDS = 0.01


def run(arguments: EngineArguments) -> int:
    """Serve until TERM; the exit code."""
    listener = _bind(arguments)
    try:
        runner = asyncio.Runner(loop_factory=_loop_factory())
        with runner:
            return runner.run(_serve(arguments, listener))
    except failures.EngineStartError as error:
        failures.die(error.text)
    except ConfigurationError as error:
        failures.die(f"ValueError: {error}")


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415 - optional: the simulator also runs where it is missing

        return uvloop.Loop
    return None


def _bind(arguments: EngineArguments) -> socket.socket:
    """Bind before the load, as vLLM does: the socket's path is there long before anybody listens."""
    if arguments.uds is None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((arguments.host, arguments.port))
        return listener
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(arguments.uds))
    except OSError as error:
        failures.die(f"OSError: {error} ({arguments.uds})")
    return listener


async def _serve(arguments: EngineArguments, listener: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    engine = await _load(arguments, stopping)
    if engine is None:
        return 0
    connections: set[Connection] = set()
    development = os.environ.get("VLLM_SERVER_DEV_MODE") == "1" and arguments.enable_sleep_mode
    updates = os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").strip().lower() in ("1", "true")
    router = Router(engine, development=development, updates_adapters=updates)
    idle = float(os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", DEFAULT_KEEP_ALIVE_SECONDS))

    def connect() -> Connection:
        return Connection(router.handle, connections, idle)

    is_unix = arguments.uds is not None
    if is_unix:
        server = await loop.create_unix_server(connect, sock=listener, backlog=BACKLOG)
    else:
        server = await loop.create_server(connect, sock=listener, backlog=BACKLOG)
    _log("launcher.py:58", f"Starting vLLM server on {f'unix:{arguments.uds}' if is_unix else arguments.port}")
    _log("server.py:75", "Application startup complete.")
    await stopping.wait()
    server.close()
    await _drain(engine, connections, arguments.shutdown_timeout)
    return 0


async def _drain(engine: Engine, connections: set[Connection], seconds: float) -> None:
    """Let running answers end within the grace, then end them all."""
    _log("launcher.py:212", f"Shutting down, waiting up to {seconds:g} s for {engine.live} requests")
    deadline = time.monotonic() + seconds
    for connection in list(connections):
        connection.drain()
    while engine.live and time.monotonic() < deadline:  # noqa: ASYNC110 - many may end at once
        await asyncio.sleep(DRAIN_POLL_SECONDS)
    engine.end_all()
    await asyncio.sleep(0)


async def _load(arguments: EngineArguments, stopping: asyncio.Event) -> Engine | None:
    """Do what a load does, in vLLM's order and words; None if told to stop meanwhile. Raises `EngineStartError`."""
    _log("api_server.py:1288", f"vLLM API server version 0.32.0 (simulated), model {arguments.model}")
    if not (arguments.model / "config.json").is_file():
        raise failures.EngineStartError(failures.TRACEBACKS["missing_model"].replace("/models/x", str(arguments.model)))
    file = SimulationFile(arguments.model)
    simulation = file.current()
    memory = GpuMemory(arguments, os.environ)
    if arguments.enable_sleep_mode and not memory.has_gpu and not os.environ.get("SIMULATOR_SLEEP_WITHOUT_GPU"):
        raise failures.EngineStartError(failures.TRACEBACKS["sleep_unsupported"])
    if await _told_to_stop(stopping, simulation.import_seconds):
        return None
    _log("core.py:107", "Initializing a V1 LLM engine (v0.32.0)")
    memory.claim(simulation)
    began = time.monotonic()
    if await _told_to_stop(stopping, simulation.load_seconds + simulation.faults.slow_load):
        return None
    if simulation.faults.crash_with_sleep_mode and arguments.enable_sleep_mode:
        failures.crash_at_load("sleep_allocator")
    if simulation.faults.crash_at_load:
        failures.crash_at_load(simulation.faults.crash_at_load)
    engine = Engine(arguments, file, memory, asyncio.get_running_loop())
    _report(engine, simulation, time.monotonic() - began)
    return engine


async def _told_to_stop(stopping: asyncio.Event, seconds: float) -> bool:
    """Whether TERM comes within so many seconds."""
    if seconds > 0:
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), seconds)
    return stopping.is_set()


def _report(engine: Engine, simulation: Simulation, seconds: float) -> None:
    """Log the figures that the engine's reader learns from. Raises `EngineStartError` if the KV cache is too small."""
    _log("default_loader.py:502", f"Loading weights took {seconds:.2f} seconds")
    weights = simulation.weights_mib / MIB_PER_GIB
    _log("gpu_model_runner.py:3921", f"Model loading took {weights:.4f} GiB memory and {seconds:.6f} seconds")
    kv_mib = engine.kv_mib(simulation)
    exact = engine.arguments.kv_cache_memory_bytes
    if exact is None:
        _log("gpu_worker.py:760", f"Available KV cache memory: {kv_mib / MIB_PER_GIB:.2f} GiB")
    else:
        told = "as specified by kv_cache_memory_bytes config and skipped memory profiling."
        _log(
            "gpu_worker.py:669",
            f"Initial free memory 0 GiB, reserved {exact / 2**30:.2f} GiB memory for KV Cache {told}",
        )
    if kv_mib <= 0:
        raise failures.EngineStartError(failures.TRACEBACKS["kv_cache"])
    tokens, longest = engine.kv_tokens(simulation), engine.arguments.max_model_len
    if tokens < longest:
        needed = longest * simulation.kv_kib_per_token / MIB_PER_GIB / 1024
        raise failures.EngineStartError(
            f"ValueError: To serve at least one request with the models's max seq len ({longest}), ({needed:.2f} GiB"
            f" KV cache is needed, which is larger than the available KV cache memory ({kv_mib / MIB_PER_GIB:.2f}"
            f" GiB). Based on the available memory, the estimated maximum model length is {tokens}. Try increasing "
            "`gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine."
        )
    _log("kv_cache_utils.py:2327", f"GPU KV cache size: {tokens:,} tokens, Maximum concurrency for {longest:,} tokens "
         f"per request: {tokens / longest:.2f}x")  # fmt: skip
    if engine.memory.has_gpu and not engine.arguments.enforce_eager:
        graphs = simulation.engine_mib / 2 / MIB_PER_GIB
        _log("gpu_model_runner.py:6581", f"Graph capturing finished in {seconds:.0f} secs, took {graphs:.2f} GiB")
    took = f"init engine (profile, create kv cache, warmup model) took {seconds:.2f} s"
    _log("core.py:403", took)


def _log(place: str, message: str) -> None:
    stamp = time.strftime("%m-%d %H:%M:%S")
    sys.stdout.write(f"INFO {stamp} [{place}] {message}\n")
    sys.stdout.flush()
