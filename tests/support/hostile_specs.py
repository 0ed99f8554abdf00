"""Worker descriptions as somebody would send them who wants more than he may: from a seed, as JSON values."""

import random
from typing import Any

GPU = "GPU-11111111-2222-3333-4444-555555555555"
OTHER_GPU = "GPU-66666666-7777-8888-9999-000000000000"
OTHER_IMAGE = "other/engine:1"

TEXTS = [
    *(
        "",
        " ",
        "a",
        "tiny",
        ".",
        "..",
        "/",
        "//",
        "\x00",
        "a\x00b",
        "\n",
        "a\nb",
        "\r\n",
        "\t",
        "-",
        "--",
        "--privileged",
    ),
    *("-v", "--volume=/:/host", "--uds=/cache/x", "--trust-remote-code", "--config=/x", "=", "a=b", "LD_PRELOAD=/x.so"),
    *("$(id)", "`id`", "; id", "| id", "&& id", "${HOME}", "%s%n", "{{.Id}}", "'", '"', "\\", "*", "?", "~", "!"),
    *(
        "\u00fc",
        "\ufb01",
        "\uff0e\uff0e",
        "\u2215etc",
        "\u202e",
        "\u200b",
        "\ufeff",
        "\U0001d552",
        "\U0010ffff",
        "\u0130",
    ),
    *("a" * 300, "\u00fc" * 200),
    *("../..", "/etc", "/etc/passwd", "/var/run/docker.sock", "/proc/self/root", "local/..", "local/../..", "hub"),
    *("local", "local/", "local/.", "local/tiny/", "local//tiny", "local/tiny/..", "./local/tiny", "/local/tiny"),
    *("local/tiny:ro", "local/tiny,dst=/", "local\\tiny", "local/-v", "local/.ssh", "local/a\n", "local/tïny"),
    *("hub/a/b/abcdef0", "hub/../b/abcdef0", "hub/a/../abcdef0", "hub/a/b/..", "hub/a/b/ABCDEF0", "hub/a/b/abc"),
    *("hub/a/b/abcdef0\n", "hub/a/b/abcdef0/x", "file:///etc", "http://host/x", "all", "none", "0", GPU, OTHER_GPU),
    *("GPU-x", "MIG-x", "nvidia.com/gpu=all", "evil/miner:latest", OTHER_IMAGE, f"{OTHER_IMAGE}@sha256:00", "vllm"),
    *("null", "true", "-1", "1e9", "NaN", "Infinity", "host", "container:gateway", "unconfined", "seccomp=unconfined"),
]
NUMBERS: list[Any] = [0, -1, 1, 2, 8, 64, 65536, 80_000, 80_001, 2**31, 2**53, 2**63, 2**64, 10**40, 0.5, -0.0, 1e308]
FLAGS = [
    *("max-num-seqs", "dtype", "enforce-eager", "seed", "quantization", "kv-cache-memory-bytes", "cpu-offload-gb"),
    *("hf-overrides", "speculative-config", "tensor-parallel-size", "enable-prefix-caching", "load-format"),
    *("trust-remote-code", "uds", "port", "host", "api-key", "middleware", "chat-template", "download-dir", "config"),
    *("model", "tokenizer", "plugins", "worker-cls", "kv-transfer-config", "tool-parser-plugin", "enable-lora"),
    *("lora-modules", "enable-sleep-mode", "no-enforce-eager", "Max-Num-Seqs", "max_num_seqs", "max-num-seqs ", ""),
    *("max-num-seqs=1 --trust-remote-code", "-dtype", "--dtype", "dtype\x00", "x y", "shutdown-timeout"),
]
STRANGERS: list[tuple[str, Any]] = [
    *(("mounts", [{"Type": "bind", "Source": "/", "Target": "/host"}]), ("volumes", ["/:/host"]), ("binds", ["/:/h"])),
    *(("HostConfig", {"Privileged": True}), ("privileged", True), ("Privileged", True), ("cap_add", ["ALL"])),
    *(("CapAdd", ["SYS_ADMIN"]), ("user", "root"), ("User", "0:0"), ("devices", ["/dev/sda"]), ("pid", "host")),
    *(
        ("security_opt", ["seccomp=unconfined"]),
        ("SecurityOpt", []),
        ("env", {"LD_PRELOAD": "/x.so"}),
        ("Env", ["A=b"]),
    ),
    *(("environment", {"PYTHONPATH": "/tmp"}), ("network", "host"), ("network_mode", "host"), ("ports", ["80:80"])),
    *(("entrypoint", ["/bin/sh"]), ("command", ["sh"]), ("Cmd", ["sh"]), ("runtime", "runc"), ("ipc", "host")),
    *(("resolved_model", "/etc"), ("entry_point", "x"), ("labels", {"dev.hostler.kind": "job"}), ("__class__", "x")),
    *(("restart", "always"), ("tmpfs", {"/x": ""}), ("ulimits", []), ("sysctls", {"kernel.core_pattern": "|x"})),
]
"""Fields that a description does not have."""


def plain() -> dict[str, Any]:
    """A description that nothing speaks against."""
    return {"id": "w1", "endpoint": "tiny", "model": "local/tiny", "served_names": ["tiny"]}


def hostile(chance: random.Random) -> dict[str, Any]:
    """A plain description with up to four fields that are anything, seldom of another type, seldom unknown."""
    made = plain()
    for _ in range(chance.randint(0, 4)):
        name = chance.choice(list(FIELDS))
        made[name] = _anything(chance) if chance.random() < 0.08 else FIELDS[name](chance)
    if chance.random() < 0.1:
        made.update([chance.choice(STRANGERS)])
    return made


def _text(chance: random.Random) -> str:
    if chance.random() < 0.15:
        return "".join(chr(chance.choice((chance.randrange(1, 128), chance.randrange(0xA0, 0xD7FF)))) for _ in range(9))
    return chance.choice(("", "", "local/", "w", "/")) + chance.choice(TEXTS)


def _number(chance: random.Random) -> Any:
    return chance.choice(NUMBERS) if chance.random() < 0.5 else chance.randint(1, 90_000)


def _anything(chance: random.Random) -> Any:
    return chance.choice([None, True, [], {}, _text(chance), _number(chance), [_text(chance)], {"a": _number(chance)}])


def _flags(chance: random.Random) -> dict[str, Any]:
    kinds = (_text, _number, lambda one: one.random() < 0.5)
    names = (chance.choice(FLAGS[:12] if chance.random() < 0.6 else FLAGS) for _ in range(chance.randint(0, 4)))
    return {name: chance.choice(kinds)(chance) for name in names}


def _lora(chance: random.Random) -> Any:
    room = {"max_rank": chance.choice([1, 16, 17, 512, -1]), "max_loras": chance.randint(0, 9)}
    return (
        room | {"max_cpu_loras": chance.choice([1, 16, 1024, 1025])} | ({"path": "/"} if chance.random() < 0.1 else {})
    )


FIELDS: dict[str, Any] = {
    "id": lambda one: one.choice(["w1", "a-b-0", "a" * 40, "a" * 41, _text(one), "../w1", "w1/../w2", "W1"]),
    "endpoint": _text,
    "engine": lambda one: one.choice(["vllm", "vllm", "sh", _text(one)]),
    "image": lambda one: one.choice([None, OTHER_IMAGE, OTHER_IMAGE, _text(one)]),
    "model": lambda one: one.choice(["local/tiny", "hub/org/name/abcdef0", _text(one), f"local/{_text(one)}"]),
    "served_names": lambda one: [_text(one) for _ in range(one.randint(0, 3))],
    "gpus": lambda one: [one.choice([GPU, GPU, OTHER_GPU, "all", _text(one)]) for _ in range(one.randint(0, 3))],
    "gpu_memory_mib": _number,
    "max_model_len": _number,
    "is_length_chosen": lambda one: one.random() < 0.5,
    "args": _flags,
    "lora": _lora,
}


def hostile_folder(chance: random.Random) -> str | None:
    """Where a model's folder was found to be: mostly where it should."""
    return chance.choice(["local/tiny", "local/tiny", "hub/org/name/abcdef0", None, "..", "../x", "/", "/etc", ".", ""])
