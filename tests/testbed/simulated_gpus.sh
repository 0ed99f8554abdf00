#!/bin/sh
# Makes this machine a simulated GPU host: installs the stand-in for NVIDIA's container hook and puts two cards under
# /var/lib/hostler-simulated-gpus. Run it as root and before dockerd starts, which looks for the hook only then.
# Needs gcc and Python 3.11 or newer; runs again without harm. `simulated_gpus.sh --remove` takes the cards away.
set -eu
cd "$(dirname "$0")/../.."

HOOK=/usr/local/bin/nvidia-container-runtime-hook
HOST=/var/lib/hostler-simulated-gpus
MARK='Stands in for NVIDIA'

if [ "${1:-}" = --remove ]; then
    rm -rf "$HOST"
    exit 0
fi
if [ -e "$HOOK" ] && ! grep -q "$MARK" "$HOOK"; then
    echo "$HOOK is NVIDIA's own: this machine has a real GPU runtime and is left as it is" >&2
    exit 1
fi
install -m 0755 tests/testbed/nvidia_hook_stand_in "$HOOK"
"${PYTHON:-python3}" -m tests.testbed.simulated_gpus "$HOST" "${CARDS:-2}" "${CARD_MIB:-24576}"
