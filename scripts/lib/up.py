"""Start Hostler in the best way this machine allows, wait until it is ready, and say how to talk to it.

Running it again is harmless: what runs stays, what is missing is added.
"""

import argparse
import shlex

from lib import address, compose, demo, dotenv, engine, machine, processes, ready, tls, venv
from lib.console import Problem, say, step, warn

READY_SECONDS = 120


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="scripts/up", description=__doc__, epilog="scripts/down stops it again.")
    parser.add_argument("--demo", action="store_true", help="also make a tiny model and register it as 'demo'")
    parser.add_argument("--no-docker", action="store_true", help="run plain processes even where there is Docker")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there are GPUs")
    parser.add_argument(
        "--install-engine",
        action="store_true",
        help="get vLLM if it is missing: build the CPU image, or install it into .venv-vllm; --demo does so too",
    )
    parser.add_argument("--no-pull", action="store_true", help="do not pull a missing engine image")
    parser.add_argument("--no-build", action="store_true", help="use the images as they are")
    return parser.parse_args(words)


def announce(choice: machine.Choice) -> None:
    """Say which way was chosen, and why none better."""
    say(f"Hostler on this machine: {choice.mode}")
    for reason in choice.reasons:
        say(f"   {reason}")


def up_docker(mode: machine.Mode, options: argparse.Namespace) -> None:
    """Gateway and manager as containers, until they are ready."""
    if processes.any_alive():
        raise Problem("Hostler runs already, as plain processes: scripts/up --no-docker, or scripts/down first")
    tls.prepare()
    compose.prepare()
    if not compose.running():
        address.check_free()
    if not options.no_build:
        with step("building the images of gateway and worker manager"):
            compose.build(gpu=mode.gpu)
    wanted = options.demo or options.install_engine
    if wanted or not options.no_pull:
        engine.ensure(gpu=mode.gpu, build=wanted)
    with step("starting the containers"):
        compose.up(gpu=mode.gpu)
    with step("waiting until it is ready"):
        ready.wait(READY_SECONDS, compose.trouble, compose.tail)


def up_processes(mode: machine.Mode, options: argparse.Namespace) -> None:
    """Gateway and manager as plain processes, until they are ready."""
    if not processes.alive("gateway"):
        address.check_free()
    gateway = "people" if dotenv.settings().get("HOSTLER_OIDC_ISSUER") else "gateway"  # with what it takes to sign in
    python = venv.ensure(gateway, "manager", instead=("dev",))
    if not venv.vllm_command():
        if options.demo or options.install_engine:
            venv.install_vllm(gpu=mode.gpu)
        else:
            warn(
                "vLLM is not installed, so no model can start yet: scripts/up --install-engine gets it, "
                "or HOSTLER_VLLM_COMMAND in .env names the one you have"
            )
    with step("starting gateway and worker manager"):
        processes.start(python, gpu=mode.gpu)
    with step("waiting until it is ready"):
        ready.wait(READY_SECONDS, processes.trouble, processes.tail)


def curl(path: str, body: str = "") -> str:
    """A command line that works when pasted, from any folder."""
    key = "$HOSTLER_ADMIN_KEY"
    if value := dotenv.read(dotenv.path()).get(dotenv.KEY):
        key = f"sed -n 's/^{dotenv.KEY}=//p' {shlex.quote(str(dotenv.path()))}"
        if f"{dotenv.KEY}={value}" not in dotenv.path().read_text(encoding="utf-8").splitlines():
            key += """ | tr -d "'\\""  """.rstrip()
        key = f"$({key})"
    data = f" \\\n    -H 'Content-Type: application/json' -d '{body}'" if body else ""
    curl = "curl -sk" if address.secure() else "curl -s"  # the certificate is for the name that others use
    return f'{curl} {address.url()}{path} -H "Authorization: Bearer {key}"{data}'


def farewell(choice: machine.Choice, *, with_demo: bool) -> None:
    """Say where Hostler is, where the key is, and what to try first."""
    where = (
        f"in {dotenv.path()} (HOSTLER_ADMIN_KEY)" if dotenv.read(dotenv.path()).get(dotenv.KEY) else "the one you set"
    )
    others = f"From elsewhere: {tls.public_url()}\n" if choice.mode.docker and tls.public_url() else ""
    say(f"\nHostler is ready: {address.url()}   ({choice.mode})\n{others}Admin key: {where}\n")
    if with_demo:
        say("Ask the demo model (it babbles; its first answer waits for vLLM to start, about a minute):\n")
        body = '{"model": "demo", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32}'
        say(f"  {curl('/v1/chat/completions', body)}\n")
    else:
        say(f"First request:\n\n  {curl('/v1/models')}\n")
        say('Next: register a model (README.md, "Your first model"), or try scripts/up --demo.')
    say("Stop it with scripts/down.")


def run(words: list[str]) -> int:
    """The whole of scripts/up; its exit code."""
    options = parse(words)
    choice = machine.choose(no_docker=options.no_docker, cpu=options.cpu)
    announce(choice)
    dotenv.ensure_key()
    dotenv.models_folder()
    if options.demo:
        demo.make_model()
    (up_docker if choice.mode.docker else up_processes)(choice.mode, options)
    if options.demo:
        demo.register()
    farewell(choice, with_demo=options.demo)
    return 0
