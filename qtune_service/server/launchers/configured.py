"""Create the launchers that the settings configure.

The local launcher is always included, so that a server that was switched to a cluster still follows its earlier jobs.
"""

from __future__ import annotations

import logging
from pathlib import Path

from qtune_service.errors import LaunchError
from qtune_service.server.launchers.base import Launcher
from qtune_service.server.launchers.local import LocalLauncher
from qtune_service.server.settings import Settings

_log = logging.getLogger(__name__)


def make_launchers(settings: Settings) -> dict[str, Launcher]:
    """Return the launchers by name. Log a warning for a cluster that does not answer: jobs stay readable."""
    folder = settings.data_root / "jobs"
    launchers: dict[str, Launcher] = {"local": LocalLauncher(folder, environment=settings.child_environment)}
    if settings.ray_address:
        from qtune_service.server.launchers.ray import RayLauncher
        from qtune_service.server.launchers.ray_api import RayApi

        api = RayApi(settings.ray_address, settings.ray_token)
        try:
            api.check()
        except LaunchError as error:
            _log.warning("the Ray cluster cannot start jobs at the moment: %s", error)
        launchers["ray"] = RayLauncher(
            api,
            folder,
            command=settings.ray_command,
            driver_cpus=settings.ray_driver_cpus,
            has_gpus=settings.ray_has_gpus,
        )
    if settings.kube_cluster:
        launchers["kuberay"] = _kuberay(settings, folder)
    return launchers


def _kuberay(settings: Settings, folder: Path) -> Launcher:
    from qtune_service.server.launchers.kuberay import Account, KubeApi, KubeRayLauncher

    api = KubeApi(settings.kubernetes, Account(settings.kube_account))
    try:
        api.cluster(settings.kube_cluster)
    except LaunchError as error:
        _log.warning("Kubernetes cannot start jobs at the moment: %s", error)
    return KubeRayLauncher(
        api,
        folder,
        cluster=settings.kube_cluster,
        token=settings.ray_token,
        command=settings.ray_command,
        driver_cpus=settings.ray_driver_cpus,
        has_gpus=settings.ray_has_gpus,
    )
