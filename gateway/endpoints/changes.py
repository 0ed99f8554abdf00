"""What of an endpoint makes its workers what they are, and how one of its specs differs from another in that. Pure."""

from typing import Any

import msgspec

from gateway.endpoints.types import EndpointSpec

SERVING_FIELDS = ("engine", "model", "revision", "gpus", "gpu_memory_gib", "max_model_len", "engine_args", "lora")
"""Fields of an endpoint that its workers are made of: another value needs other workers."""


def served_as(spec: EndpointSpec, good: EndpointSpec) -> EndpointSpec:
    """An endpoint whose workers are made as `good` says; all else is as `spec` says."""
    return msgspec.structs.replace(spec, **{field: getattr(good, field) for field in SERVING_FIELDS})


def is_served_alike(one: EndpointSpec, other: EndpointSpec) -> bool:
    """Whether the workers of both are made alike."""
    return served_as(one, other) == one


def pinned(spec: EndpointSpec, path: str) -> EndpointSpec:
    """The same with the commit in place of a branch: what served is told apart from what the branch means later."""
    return spec if spec.is_local() else msgspec.structs.replace(spec, revision=path.rpartition("/")[2])


def changed_fields(good: EndpointSpec, spec: EndpointSpec, *, same_files: bool) -> dict[str, dict[str, Any]]:
    """What a change changed, `{field: {"from", "to"}}`; a branch and its commit are the same where the files are."""
    return {
        field: {"from": getattr(good, field), "to": getattr(spec, field)}
        for field in SERVING_FIELDS
        if getattr(good, field) != getattr(spec, field) and not (field == "revision" and same_files)
    }
