"""Which launcher this machine gets, and how it is made from the settings."""

from collections.abc import Callable, Mapping
from typing import Literal

from worker_manager.contract import DownloadSpec
from worker_manager.launchers.base import Launcher, LauncherError
from worker_manager.launchers.docker import DockerLauncher, ping
from worker_manager.launchers.process import ProcessLauncher
from worker_manager.settings import Settings

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
WAY_OUT = (*PROXIES, *(name.lower() for name in PROXIES), "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
"""Variables of the manager that say how to reach the network; engines get none of them."""

LauncherName = Literal["docker", "process"]


async def choose(settings: Settings) -> LauncherName:
    """The launcher as set; `auto` is Docker where its Engine answers."""
    if settings.launcher != "auto":
        return settings.launcher
    try:
        await ping(settings.docker_host)
    except LauncherError:
        return "process"
    return "docker"


def make_launcher(
    kind: LauncherName,
    settings: Settings,
    *,
    environ: Mapping[str, str],
    device: Callable[[], str],
    gpu_totals: Callable[[], Mapping[str, int]],
) -> Launcher:
    """The launcher of this kind."""

    def job_command(spec: DownloadSpec, models: str) -> tuple[str, ...]:
        return download_command(spec, models, settings.disk_reserve_gib)

    job_env = download_environment(settings, environ)
    if kind == "docker":
        return DockerLauncher(settings, device=device, gpu_totals=gpu_totals, job_command=job_command, job_env=job_env)
    return ProcessLauncher(
        settings, device=device, environ=environ, gpu_totals=gpu_totals, job_command=job_command, job_env=job_env
    )


def download_command(spec: DownloadSpec, models: str, reserve_gib: float) -> tuple[str, ...]:
    """The words after `python` that run the download job; joined by `=`, so that no name can pass for an option."""
    return (
        "-m",
        "worker_manager.jobs.download",
        f"--model={spec.model}",
        f"--revision={spec.revision}",
        f"--models={models}",
        f"--reserve-gib={reserve_gib:g}",
    )


def download_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """What only a download job is told: the hub's address and token, and the way to it."""
    values = {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
    values |= {name: environ[name] for name in WAY_OUT if name in environ}
    if settings.hf_token:
        values["HF_TOKEN"] = settings.hf_token
    if settings.hf_endpoint:
        values["HF_ENDPOINT"] = settings.hf_endpoint
    return values
