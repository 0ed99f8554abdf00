#!/usr/bin/env bash
# Installs Docker Engine, Compose and Buildx from Debian 13's packages (they run on Debian 12 too) and starts the daemon,
# with whatever hook for GPU requests lies on its PATH by then. As root. Does nothing where a daemon answers.
set -euo pipefail
# not `docker info`: some clients exit 0 from it without a daemon
docker version -f '{{.Server.Version}}' >/dev/null 2>&1 && exit 0

install_packages() {
  local mirror suite=()
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # asked of apt and not of /etc/os-release: that file moves to the next release with the packages installed from there
  if ! apt-cache show docker-buildx >/dev/null 2>&1; then
    # the mirror this machine already uses, with the next release's suite beside its own, at low priority
    mirror=$( (grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true) | tr -d ' ' | awk 'NR==1')
    echo "deb $mirror trixie main" > /etc/apt/sources.list.d/trixie.list
    printf 'Package: *\nPin: release n=trixie\nPin-Priority: 100\n' > /etc/apt/preferences.d/trixie
    suite=(-t trixie)
    apt-get update -qq
  fi
  apt-get install -y -qq iptables iproute2 debootstrap gcc libc6-dev >/dev/null
  apt-get install -y -qq "${suite[@]}" docker.io docker-cli docker-compose docker-buildx >/dev/null
}

if ! command -v dockerd >/dev/null || ! docker compose version >/dev/null 2>&1 || ! command -v debootstrap >/dev/null; then
  install_packages
fi

# a daemon that was killed leaves its pid file, and the next one refuses to start if that pid is in use again
for file in /var/run/docker.pid /run/docker/containerd/containerd.pid; do
  if [ -f "$file" ] && ! grep -qE 'dockerd|containerd' "/proc/$(cat "$file")/comm" 2>/dev/null; then rm -f "$file"; fi
done
# the package may have started one on a machine with an init system
for _ in $(seq 10); do docker version >/dev/null 2>&1 && exit 0; pgrep -x dockerd >/dev/null || break; sleep .5; done

interface=$(ip route show default | awk '{for (i = 1; i < NF; i++) if ($i == "dev") {print $(i + 1); exit}}')
mtu=$(cat "/sys/class/net/$interface/mtu" 2>/dev/null || echo 1500)
setsid dockerd --mtu "$mtu" >/var/log/dockerd.log 2>&1 </dev/null &
for _ in $(seq 120); do docker version >/dev/null 2>&1 && break; sleep .5; done
docker version -f 'Docker Engine {{.Server.Version}}' || { tail -30 /var/log/dockerd.log; exit 1; }
