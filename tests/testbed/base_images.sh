#!/bin/bash
# Makes python:3.13-slim (Debian 13) and python:3.11-slim (Debian 12) locally, for hosts with no container registry.
set -euo pipefail
mirror=$( (grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true) | tr -d ' ' | awk 'NR==1')
for pair in trixie:3.13 bookworm:3.11; do
  suite=${pair%:*} version=${pair#*:}
  docker image inspect "python:$version-slim" >/dev/null 2>&1 && continue
  root=$(mktemp -d)
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip "$suite" "$root" "$mirror" >/dev/null
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  ca=/etc/ssl/certs/ca-certificates.crt
  tar -C "$root" -c . | docker import -c "ENV PIP_CERT=$ca SSL_CERT_FILE=$ca REQUESTS_CA_BUNDLE=$ca LANG=C.UTF-8" - "python:$version-slim" >/dev/null
  rm -rf "$root"
  echo "python:$version-slim"
done
